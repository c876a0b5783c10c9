"""The box that --at cuts out, and the fields of view that are refused."""

from __future__ import annotations

import re
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rare_trt.errors import ScanError
from rare_trt.scan.field_of_view import (
    FieldOfView,
    box_at,
    box_grid,
    check_field_of_view,
    join_boxes,
    select_regions,
    without_padding,
)
from rare_trt.scan.geometry import Canonical, Grid, Volume

ACCEPTED = FieldOfView(min=(20.0, 30.0, 20.0), typical=(36.0, 50.0, 36.0), max=(60.0, 80.0, 60.0))

quick = settings(max_examples=100, deadline=None)


def grid_of(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], turn_deg: float = 0.0
) -> Grid:
    """A grid turned about the superior axis, its first voxel at (-40, 10, 25) mm."""
    c, s = np.cos(np.radians(turn_deg)), np.sin(np.radians(turn_deg))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]) @ np.diag(spacing)
    affine[:3, 3] = (-40.0, 10.0, 25.0)
    return Grid(shape, affine)


def at(grid: Grid, index: object) -> tuple[float, float, float]:
    x, y, z = grid.world_mm(np.asarray(index)).tolist()
    return x, y, z


def test_box_inside_has_the_trained_size_and_the_point_at_its_centre() -> None:
    grid = grid_of((100, 100, 100), (1.0, 2.0, 0.5), turn_deg=20.0)
    box = box_at(grid, at(grid, (50, 50, 50)), (7.0, 14.0, 3.5))
    assert box == (slice(47, 54), slice(47, 54), slice(47, 54))


@quick
@given(
    st.tuples(*[st.floats(0.5, 5)] * 3),
    st.floats(-40, 40),
    st.tuples(*[st.floats(0, 1)] * 3),
    st.tuples(*[st.floats(1, 60)] * 3),
)
def test_box_reaches_half_its_size_to_either_side_unless_cut_off(
    spacing: tuple[float, float, float],
    turn_deg: float,
    where: tuple[float, float, float],
    size: tuple[float, float, float],
) -> None:
    grid = grid_of((30, 20, 10), spacing, turn_deg)
    centre = np.array(where) * grid.shape - 0.5
    # On the very faces of the scan rounding decides whether the point is inside.
    centre = np.clip(centre, -0.499, np.array(grid.shape) - 0.501)
    for part, n, s, c, mm in zip(
        box_at(grid, at(grid, centre), size), grid.shape, spacing, centre, size, strict=True
    ):
        assert 0 <= part.start < part.stop <= n
        # Edges fall on voxel faces: a quarter of a voxel for the size, half a one for the place.
        half = max(mm / s, 1.0) / 2
        assert part.start == 0 or abs(c - (part.start - 0.5) - half) <= 0.751
        assert part.stop == n or abs((part.stop - 0.5) - c - half) <= 0.751


def test_box_at_the_border_is_cut_off() -> None:
    grid = grid_of((40, 40, 40), (1.0, 1.0, 1.0))
    assert box_at(grid, at(grid, (0, 20, 39)), (11.0, 11.0, 11.0)) == (
        slice(0, 6),
        slice(15, 26),
        slice(34, 40),
    )


def test_box_larger_than_the_scan_is_the_scan() -> None:
    grid = grid_of((10, 11, 12), (1.0, 1.0, 1.0))
    box = box_at(grid, at(grid, (5, 5, 5)), (99.0, 99.0, 99.0))
    assert box == (slice(0, 10), slice(0, 11), slice(0, 12))


def test_box_is_never_empty() -> None:
    grid = grid_of((10, 10, 10), (8.0, 8.0, 8.0))
    assert box_at(grid, at(grid, (5, 5, 5)), (1.0, 1.0, 1.0)) == (slice(5, 6),) * 3


def test_grid_of_a_box_lies_where_its_voxels_do() -> None:
    grid = grid_of((40, 40, 40), (1.0, 2.0, 3.0), turn_deg=30.0)
    inside = box_grid(grid, (slice(3, 13), slice(5, 11), slice(7, 9)))
    assert inside.shape == (10, 6, 2)
    assert at(inside, (0, 0, 0)) == pytest.approx(at(grid, (3, 5, 7)))


def test_box_does_not_depend_on_the_axis_order_of_the_file() -> None:
    """Points halfway between two voxels included, where rounding could fall either way."""
    grid = grid_of((12, 14, 16), (1.1, 0.9, 1.3), turn_deg=17.0)
    points = [at(grid, index) for index in ((5.5, 6.5, 7.5), (4, 6.5, 8), (0.2, 13.1, 3.3))]
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        affine = grid.affine.copy()
        affine[:3, :3] = affine[:3, order] * signs
        shape = np.array(grid.shape)[list(order)]
        last = np.where(np.array(signs) < 0, shape - 1, 0)
        affine[:3, 3] -= affine[:3, :3] @ last
        canonical = Canonical(Grid(tuple(shape), affine)).grid
        for point in points:
            for size in ((4.0, 4.0, 4.0), (5.0, 6.0, 7.0)):
                assert box_at(canonical, point, size) == box_at(grid, point, size)


def test_point_outside_is_refused_with_the_point_and_the_reach() -> None:
    grid = grid_of((11, 21, 31), (1.0, 1.0, 1.0))
    with pytest.raises(
        ScanError, match=r"500, 0, 0.*-40\.5, 9\.5, 24\.5.*-29\.5, 30\.5, 55\.5"
    ) as error:
        box_at(grid, (500.0, 0.0, 0.0), (10.0, 10.0, 10.0))
    assert "\n" not in str(error.value)


def test_point_on_the_outer_half_voxel_is_inside() -> None:
    grid = grid_of((10, 10, 10), (2.0, 2.0, 2.0))
    assert box_at(grid, at(grid, (-0.4, 0, 9.4)), (2.0, 2.0, 2.0))[0] == slice(0, 1)
    with pytest.raises(ScanError):
        box_at(grid, at(grid, (-0.6, 0, 0)), (2.0, 2.0, 2.0))


def test_reach_of_an_oblique_scan_includes_all_its_voxels() -> None:
    """Two opposite corners do not bound a turned box; the message must not send a user astray."""
    grid = grid_of((50, 50, 50), (1.0, 1.0, 1.0), turn_deg=35.0)
    with pytest.raises(ScanError) as error:
        box_at(grid, (500.0, 0.0, 0.0), (10.0, 10.0, 10.0))
    low, high = reach_in(str(error.value))
    corners = grid.world_mm(np.array(list(product((0, 49), repeat=3))))
    assert (corners >= low - 0.1).all()
    assert (corners <= high + 0.1).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_point_that_is_no_point_is_refused(value: float) -> None:
    with pytest.raises(ScanError):
        box_at(grid_of((10, 10, 10), (1.0, 1.0, 1.0)), (value, 12.0, 27.0), (5.0, 5.0, 5.0))


@pytest.mark.parametrize("shape", [(20, 30, 20), (36, 50, 36), (60, 80, 60)])
def test_fields_of_view_within_the_limits_are_accepted(shape: tuple[int, int, int]) -> None:
    check_field_of_view(grid_of(shape, (1.0, 1.0, 1.0)), ACCEPTED)


@pytest.mark.parametrize(
    ("shape", "way_out"),
    [
        ((19, 50, 36), "covers more"),
        ((19, 217, 181), "covers more"),
        ((36, 81, 36), "--at"),
        ((181, 217, 181), "--at"),
        ((36, 50, 61), "--at"),
    ],
)
def test_fields_of_view_beyond_the_limits_are_refused(
    shape: tuple[int, int, int], way_out: str
) -> None:
    with pytest.raises(ScanError) as error:
        check_field_of_view(grid_of(shape, (1.0, 1.0, 1.0)), ACCEPTED)
    sentence = str(error.value)
    for text in (" x ".join(map(str, shape)), "20 x 30 x 20", "60 x 80 x 60", way_out):
        assert text in sentence
    assert "\n" not in sentence


def test_the_way_out_of_a_cut_box_works() -> None:
    """Another point helps only where the scan is large enough."""
    box = grid_of((36, 50, 10), (1.0, 1.0, 1.0))
    for whole, way_out in (((181, 217, 181), "further inside"), ((181, 217, 10), "covers more")):
        with pytest.raises(ScanError, match=way_out):
            check_field_of_view(box, ACCEPTED, box_of=grid_of(whole, (1.0, 1.0, 1.0)))


def test_extent_counts_in_mm_and_not_in_voxels() -> None:
    check_field_of_view(grid_of((6, 8, 6), (10.0, 10.0, 10.0)), ACCEPTED)
    with pytest.raises(ScanError):
        check_field_of_view(grid_of((40, 40, 40), (4.0, 4.0, 4.0)), ACCEPTED)


def test_rounding_of_a_float32_spacing_does_not_refuse() -> None:
    """60 voxels of a spacing stored a little over 1 mm still are 60 mm."""
    check_field_of_view(grid_of((60, 80, 60), (1.0001, 1.0001, 1.0001)), ACCEPTED)
    check_field_of_view(grid_of((20, 30, 20), (0.9999, 0.9999, 0.9999)), ACCEPTED)
    with pytest.raises(ScanError):
        check_field_of_view(grid_of((60, 80, 60), (1.001, 1.0, 1.0)), ACCEPTED)


def reach_in(sentence: str) -> list[NDArray[np.float64]]:
    """The two points in 'reaches from X, Y, Z to X, Y, Z mm'."""
    found = re.search(r"reaches from (.*) to (.*) mm \(right", sentence)
    assert found
    return [np.array([float(n) for n in point.split(",")]) for point in found.groups()]


@quick
@given(
    st.tuples(*[st.integers(0, 4)] * 3),
    st.tuples(*[st.integers(0, 4)] * 3),
    st.sampled_from([0.0, -1024.0, 7.5]),
    st.booleans(),
)
def test_outer_slices_of_one_value_are_padding(
    before: tuple[int, int, int], after: tuple[int, int, int], value: float, channels: bool
) -> None:
    inner = np.random.default_rng(0).normal(size=(5, 6, 7, 2) if channels else (5, 6, 7))
    pad = [*zip(before, after, strict=True), (0, 0)][: inner.ndim]
    found = without_padding(np.pad(inner, pad, constant_values=value))
    assert found == tuple(slice(b, b + n) for b, n in zip(before, inner.shape[:3], strict=True))


def test_a_constant_slice_inside_is_no_padding_and_a_constant_scan_stays_whole() -> None:
    voxels = np.random.default_rng(0).normal(size=(8, 8, 8))
    voxels[3:5] = 0.0
    assert without_padding(voxels) == (slice(0, 8),) * 3
    assert without_padding(np.ones((4, 5, 6))) == (slice(0, 4), slice(0, 5), slice(0, 6))


def test_one_channel_that_varies_keeps_a_slice() -> None:
    voxels = np.zeros((6, 6, 6, 2))
    voxels[2:4, 2:4, 2:4, 0] = np.arange(8).reshape(2, 2, 2)
    voxels[1:5, 1:5, 1:5, 1] = np.arange(64).reshape(4, 4, 4)
    assert without_padding(voxels) == (slice(1, 5),) * 3


def test_padding_does_not_count_as_field_of_view() -> None:
    inner = np.random.default_rng(0).normal(size=(36, 50, 36))
    padded = Volume(np.pad(inner, 40), grid_of((116, 130, 116), (1.0, 1.0, 1.0)))
    (region,) = select_regions(padded, ACCEPTED, None)
    assert region.grid.shape == (36, 50, 36)
    assert (region.voxels == inner).all()
    inside = [np.ones((36, 50, 36), np.uint8)]
    back = join_boxes(region.canonical.grid, [region.box], inside).labels
    assert back.shape == (116, 130, 116)
    assert back.sum() == inner.size
    with pytest.raises(ScanError, match="76 x 90 x 76"):
        noisy = np.random.default_rng(1).normal(size=(76, 90, 76))
        select_regions(Volume(noisy, grid_of((76, 90, 76), (1.0, 1.0, 1.0))), ACCEPTED, None)
