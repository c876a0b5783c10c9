"""Grids in the world, and the canonical order of their axes."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray

from rare_trt.errors import ScanError
from rare_trt.scan.geometry import Canonical, Grid, Volume
from rare_trt.scan.nifti import read_scan

Affine = NDArray[np.float64]
Order = tuple[int, ...]
Flips = tuple[bool, ...]

quick = settings(max_examples=80, deadline=None)
orders = st.permutations(range(3)).map(tuple)
flips = st.tuples(st.booleans(), st.booleans(), st.booleans())


def rotation(axis: NDArray[np.float64], degrees: float) -> NDArray[np.float64]:
    """Rodrigues' rotation about `axis`."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    angle = np.radians(degrees)
    turn: NDArray[np.float64] = (
        np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    )
    return turn


def affine_of(matrix: NDArray[np.float64], origin: Any = (0.0, 0.0, 0.0)) -> Affine:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix, origin
    return affine


@st.composite
def grids(draw: st.DrawFn, max_degrees: float = 40.0) -> Grid:
    """Oblique anisotropic grids whose axes are near right, anterior and superior, in this order.

    A rotation by less than 45 degrees about any axis keeps each voxel axis nearest to its own
    world axis.
    """
    axis = np.array(draw(st.tuples(*[st.floats(-1, 1)] * 3)))
    if np.abs(axis).max() < 0.1:
        axis = np.array([0.0, 0.0, 1.0])
    turn = rotation(axis, draw(st.floats(0, max_degrees)))
    spacing = draw(st.tuples(*[st.floats(0.4, 8)] * 3))
    origin = draw(st.tuples(*[st.floats(-200, 200)] * 3))
    shape = draw(st.tuples(*[st.integers(1, 7)] * 3))
    return Grid(shape, affine_of(turn @ np.diag(spacing), origin))


def reordered(voxels: Any, grid: Grid, order: Order, flipped: Flips) -> tuple[Any, Grid]:
    """The same voxels at the same places in the world, stored in another order."""
    voxels = voxels.transpose(*order, *range(3, voxels.ndim))
    affine = grid.affine.copy()
    affine[:, :3] = affine[:, order]
    for axis in np.flatnonzero(flipped):
        affine[:3, 3] += affine[:3, axis] * (voxels.shape[axis] - 1)
        affine[:3, axis] *= -1.0
        voxels = np.flip(voxels, int(axis))
    return voxels, Grid(voxels.shape[:3], affine)


def numbered(shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Voxels that are all different, so that no wrong order looks right."""
    return np.arange(np.prod(shape)).reshape(shape)


def test_spacing_and_extent_come_from_the_affines_columns() -> None:
    turn = rotation(np.array([1.0, 2.0, 3.0]), 33.0)
    grid = Grid((4, 5, 6), affine_of(turn @ np.diag([0.5, 2.0, 3.5]), (7.0, -8.0, 9.0)))
    assert grid.spacing_mm == pytest.approx((0.5, 2.0, 3.5))
    assert grid.extent_mm == pytest.approx((2.0, 10.0, 21.0))


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_obliqueness_is_the_angle_to_the_nearest_world_axis(order: Order) -> None:
    straight = np.diag([1.0, -2.0, 3.0])[:, order]
    assert Grid((2, 2, 2), affine_of(straight)).obliqueness_deg == 0.0
    turned = rotation(np.array([0.0, 0.0, 1.0]), 12.5) @ straight
    assert Grid((2, 2, 2), affine_of(turned)).obliqueness_deg == pytest.approx(12.5)


@quick
@given(grids(), st.tuples(*[st.floats(-50, 50)] * 3))
def test_index_is_the_inverse_of_world(grid: Grid, index: tuple[float, ...]) -> None:
    there = grid.world_mm(np.array([index, index]))
    assert there.shape == (2, 3)
    np.testing.assert_allclose(grid.index(there), [index, index], atol=1e-8)


@quick
@given(grids(), st.tuples(*[st.integers(-3, 9)] * 3))
def test_box_begins_at_its_first_voxel(grid: Grid, start: tuple[int, int, int]) -> None:
    box = grid.box(start, (2, 3, 4))
    assert box.shape == (2, 3, 4)
    np.testing.assert_allclose(
        box.world_mm(np.array([1, 2, 3])), grid.world_mm(np.add(start, (1, 2, 3))), atol=1e-9
    )


@quick
@given(grids(), st.tuples(*[st.floats(0.3, 9)] * 3), st.tuples(*[st.integers(1, 9)] * 3))
def test_regridded_keeps_the_centre_and_the_axes(
    grid: Grid, spacing: tuple[float, float, float], shape: tuple[int, int, int]
) -> None:
    other = grid.regrid(spacing, shape)
    assert other.shape == shape
    assert other.spacing_mm == pytest.approx(spacing)
    np.testing.assert_allclose(
        other.world_mm((np.array(shape) - 1) / 2),
        grid.world_mm((np.array(grid.shape) - 1) / 2),
        atol=1e-9,
    )
    np.testing.assert_allclose(
        other.affine[:3, :3] / spacing, grid.affine[:3, :3] / grid.spacing_mm, atol=1e-12
    )


@quick
@given(grids(), st.tuples(*[st.integers(1, 4)] * 3))
def test_subdivided_covers_the_same_extent(grid: Grid, parts: tuple[int, int, int]) -> None:
    fine = grid.subdivide(parts)
    assert fine.shape == tuple(n * p for n, p in zip(grid.shape, parts, strict=True))
    for corner in product((0, 1), repeat=3):
        np.testing.assert_allclose(
            fine.world_mm(np.array(corner) * fine.shape - 0.5),
            grid.world_mm(np.array(corner) * grid.shape - 0.5),
            atol=1e-9,
        )


def test_undivided_is_the_very_same_affine() -> None:
    """Native axes must be exact identities, so not even the last bit may move."""
    grid = Grid((5, 6, 7), affine_of(rotation(np.ones(3), 20.0) * 0.7, (3.3, 4.4, 5.5)))
    assert np.array_equal(grid.subdivide((1, 1, 1)).affine, grid.affine)


@pytest.mark.parametrize(
    ("affine", "word"),
    [
        (affine_of(np.array([[1.0, np.sin(np.radians(5)), 0], [0, 1, 0], [0, 0, 1]])), "degrees"),
        (affine_of(np.array([[1.0, 1, 0], [0, 0, 0], [0, 0, 1]])), "degrees"),
        (affine_of(np.diag([1.0, 0.0, 1.0])), "sizes"),
        (affine_of(np.diag([1.0, np.nan, 1.0])), "finite"),
        (affine_of(np.eye(3), (0.0, np.inf, 0.0)), "finite"),
        (np.eye(3), "4x4"),
    ],
    ids=["sheared", "flat", "zero", "nan", "infinite", "3x3"],
)
def test_affine_that_cannot_place_voxels_is_refused(affine: Affine, word: str) -> None:
    with pytest.raises(ScanError, match=word):
        Grid((2, 2, 2), affine)


def test_a_shear_that_rounding_explains_is_accepted() -> None:
    lean = np.sin(np.radians(1.0))
    Grid((2, 2, 2), affine_of(np.array([[1.0, lean, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])))


def test_a_grid_cannot_be_changed_from_outside() -> None:
    affine = np.eye(4)
    grid = Grid((2, 2, 2), affine)
    affine[0, 0] = 5.0
    assert grid.spacing_mm == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 5.0


def test_voxels_must_fit_their_grid() -> None:
    grid = Grid((2, 3, 4), np.eye(4))
    Volume(np.zeros((2, 3, 4, 5)), grid)
    with pytest.raises(ValueError, match="fit"):
        Volume(np.zeros((2, 4, 3)), grid)


@quick
@given(grids(), orders, flips)
def test_axis_order_of_the_file_does_not_matter(grid: Grid, order: Order, flipped: Flips) -> None:
    """Whatever order a scan was stored in, its canonical voxels are the same bits."""
    voxels = numbered(grid.shape)
    plain, other_voxels = Canonical(grid), reordered(voxels, grid, order, flipped)
    other = Canonical(other_voxels[1])
    found = other.from_scan(other_voxels[0])
    assert np.array_equal(found, plain.from_scan(voxels))
    assert found.flags.c_contiguous
    assert other.grid.shape == plain.grid.shape
    assert other.grid.spacing_mm == plain.grid.spacing_mm
    np.testing.assert_allclose(other.grid.affine, plain.grid.affine, atol=1e-9)


@settings(quick, max_examples=150)
@given(grids(max_degrees=180.0), orders, flips)
def test_axis_order_does_not_matter_for_any_rotation(
    grid: Grid, order: Order, flipped: Flips
) -> None:
    """Also where two voxel axes are nearest to the same world axis."""
    cosines = np.sort(np.abs(grid.affine[:3, :3] / grid.spacing_mm).ravel())
    if np.diff(cosines[cosines > 0.3]).min(initial=1.0) < 1e-6:
        return  # Equally near to two world axes: either order is right.
    voxels = numbered(grid.shape)
    other_voxels, other_grid = reordered(voxels, grid, order, flipped)
    plain, other = Canonical(grid), Canonical(other_grid)
    assert np.array_equal(other.from_scan(other_voxels), plain.from_scan(voxels))
    np.testing.assert_allclose(other.grid.affine, plain.grid.affine, atol=1e-9)


@quick
@given(grids(max_degrees=180.0), orders, flips, st.booleans())
def test_way_back_from_canonical_order_is_exact(
    grid: Grid, order: Order, flipped: Flips, channels: bool
) -> None:
    voxels = numbered((*grid.shape, 2) if channels else grid.shape)
    voxels, scan_grid = reordered(voxels, grid, order, flipped)
    canonical = Canonical(scan_grid)
    assert np.array_equal(canonical.to_scan(canonical.from_scan(voxels)), voxels)
    back = canonical.scan_grid(canonical.grid)
    assert back.shape == scan_grid.shape
    np.testing.assert_allclose(back.affine, scan_grid.affine, atol=1e-9)


@quick
@given(grids(max_degrees=180.0))
def test_canonical_voxels_stay_where_they_were_in_the_world(grid: Grid) -> None:
    canonical = Canonical(grid)
    index = np.indices(grid.shape).transpose(1, 2, 3, 0)
    np.testing.assert_allclose(
        canonical.from_scan(grid.world_mm(index)),
        canonical.grid.world_mm(np.indices(canonical.grid.shape).transpose(1, 2, 3, 0)),
        atol=1e-8,
    )


@quick
@given(st.tuples(*[st.floats(-1, 1)] * 3), st.floats(0, 40), orders, flips)
def test_header_only_rotation_gives_the_same_canonical_voxels(
    axis: tuple[float, ...], degrees: float, order: Order, flipped: Flips
) -> None:
    """Up to 45 degrees about any axis the nearest world axes, and so the voxels, are the same."""
    turn = rotation(np.add(axis, (0.0, 0.0, 1.5)), degrees)
    voxels, grid = reordered(numbered((3, 4, 5)), Grid((3, 4, 5), np.eye(4)), order, flipped)
    turned = grid.affine.copy()
    turned[:3] = turn @ turned[:3]
    canonical = Canonical(Grid(grid.shape, turned))
    assert np.array_equal(canonical.from_scan(voxels), Canonical(grid).from_scan(voxels))
    np.testing.assert_allclose(canonical.grid.affine[:3, :3], turn, atol=1e-9)


def test_one_head_in_all_48_axis_orders_is_one_volume(shared_data: Path) -> None:
    """The files' names are their axis codes; every one holds the same head at the same place."""
    volumes = {}
    for path in sorted((shared_data / "nifti_space48").glob("*.nii.gz")):
        scan = read_scan(path).volume
        assert "".join(aff2axcodes(scan.grid.affine)) == path.name[:3]
        canonical = Canonical(scan.grid)
        volumes[path.name] = Volume(canonical.from_scan(scan.voxels), canonical.grid)
    assert len(volumes) == 48
    first = volumes["RAS.nii.gz"]
    assert len(np.unique(first.voxels)) > 100
    for volume in volumes.values():
        assert np.array_equal(volume.voxels, first.voxels)
        np.testing.assert_allclose(volume.grid.affine, first.grid.affine, atol=1e-4)


def test_real_scan_in_48_orders_is_one_volume(shared_data: Path) -> None:
    scan = read_scan(min((shared_data / "hippocampus" / "images").glob("*.nii.gz"))).volume
    plain = Canonical(scan.grid)
    for order, flipped in product(permutations(range(3)), product((False, True), repeat=3)):
        voxels, grid = reordered(scan.voxels, scan.grid, order, flipped)
        canonical = Canonical(grid)
        assert np.array_equal(canonical.from_scan(voxels), plain.from_scan(scan.voxels))
        assert canonical.grid.spacing_mm == plain.grid.spacing_mm
        np.testing.assert_allclose(canonical.grid.affine, plain.grid.affine, atol=1e-9)
