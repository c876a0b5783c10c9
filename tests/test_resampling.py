"""The six matrices of a plan, its tiles, and the answer's sub-voxels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rare_trt.plan.resampling import (
    ResamplingPlan,
    axis_matrices,
    majority_vote,
    plan_resampling,
    subvoxel_counts,
    tiles,
)
from rare_trt.plan.routing import Route
from rare_trt.scan.geometry import Canonical, Grid

BAND = (0.95, 1.05)
UNLIMITED = (10_000, 10_000, 10_000)

quick = settings(max_examples=60, deadline=None)
orders = st.permutations(range(3)).map(tuple)
flips = st.tuples(st.booleans(), st.booleans(), st.booleans())
seeds = st.integers(0, 2**32 - 1)


def rotation(axis: NDArray[np.float64], degrees: float) -> NDArray[np.float64]:
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    angle = np.radians(degrees)
    turn: NDArray[np.float64] = (
        np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    )
    return turn


@st.composite
def grids(
    draw: st.DrawFn, spacing_mm: tuple[float, float] = (0.6, 7.0), size: tuple[int, int] = (1, 24)
) -> Grid:
    """Oblique anisotropic grids in canonical order."""
    axis = np.array(draw(st.tuples(*[st.floats(0.1, 1)] * 3)))
    spacing = draw(st.tuples(*[st.floats(*spacing_mm)] * 3))
    affine = np.eye(4)
    affine[:3, :3] = rotation(axis, draw(st.floats(-40, 40))) @ np.diag(spacing)
    affine[:3, 3] = draw(st.tuples(*[st.floats(-200, 200)] * 3))
    return Grid(draw(st.tuples(*[st.integers(*size)] * 3)), affine)


@st.composite
def routes(draw: st.DrawFn) -> Route:
    index = draw(st.integers(0, 3))
    return Route(index, 2.0**index, BAND, draw(st.sampled_from((1, 2, 4, 8))), UNLIMITED)


def reordered(voxels: Any, grid: Grid, order: Any, flipped: Any) -> tuple[Any, Grid]:
    """The same voxels at the same places in the world, stored in another order."""
    voxels, affine = voxels.transpose(order), grid.affine.copy()
    affine[:, :3] = affine[:, order]
    for axis in np.flatnonzero(flipped):
        affine[:3, 3] += affine[:3, axis] * (voxels.shape[axis] - 1)
        affine[:3, axis] *= -1.0
        voxels = np.flip(voxels, int(axis))
    return voxels, Grid(voxels.shape, affine)


def applied(matrices: Sequence[NDArray[Any]], image: NDArray[Any]) -> NDArray[np.float64]:
    """The three matrices on the first three axes of `image`."""
    result = np.asarray(image, np.float64)
    for axis, matrix in enumerate(matrices):
        result = np.moveaxis(np.tensordot(matrix.astype(np.float64), result, (1, axis)), 0, axis)
    return result


def through(steps: ResamplingPlan, image: NDArray[Any]) -> NDArray[np.float64]:
    """What a network that changes nothing would answer."""
    return applied(steps.out_matrices, applied(steps.in_matrices, image))


def world_field(grid: Grid) -> NDArray[np.float64]:
    """The world position of each voxel, as an image of three channels."""
    return grid.world_mm(np.moveaxis(np.indices(grid.shape), 0, -1))


def line(n: int, spacing_mm: float, first_mm: float = 0.0) -> Grid:
    """A grid that has something to resample along its first axis alone."""
    affine = np.diag([spacing_mm, 1.0, 1.0, 1.0])
    affine[0, 3] = first_mm
    return Grid((n, 1, 1), affine)


# One axis


def test_same_grid_is_the_exact_identity() -> None:
    grid = line(7, 1.3, -20.7)
    assert np.array_equal(axis_matrices(grid, line(7, 1.3, -20.7))[0], np.eye(7))


def test_shared_voxel_centres_are_copied_exactly() -> None:
    """A crop of the same voxels must not blur them, however rounded the affine is."""
    matrix = axis_matrices(line(9, 1.1, -20.7), line(4, 1.1, float(np.float32(-20.7 + 3 * 1.1))))[0]
    assert np.array_equal(matrix, np.eye(9)[3:7])


@quick
@given(
    st.integers(1, 30),
    st.integers(1, 40),
    st.floats(0.5, 8),
    st.floats(0.5, 8),
    st.floats(-40, 40),
)
def test_rows_sum_to_one_inside_the_extent_and_to_zero_beyond(
    n: int, m: int, own_mm: float, other_mm: float, first_mm: float
) -> None:
    """The outer half voxel is inside: a constant stays constant up to the border."""
    source, target = line(n, own_mm), line(m, other_mm, first_mm)
    matrix = axis_matrices(source, target)[0]
    position = (first_mm + other_mm * np.arange(m)) / own_mm
    inside = (position > -0.499) & (position < n - 0.501)
    beyond = (position < -0.501) | (position > n - 0.499)
    assert matrix.shape == (m, n)
    assert (matrix >= 0.0).all()
    np.testing.assert_allclose(matrix[inside].sum(axis=1), 1.0, atol=1e-12)
    assert not matrix[beyond].any()


@quick
@given(st.integers(2, 30), st.floats(0.5, 8), st.floats(0.1, 1), st.floats(0, 1))
def test_finer_grid_reproduces_a_ramp(n: int, own_mm: float, ratio: float, place: float) -> None:
    """To a ten-thousandth of a voxel: nearer centres than that are taken to be the same."""
    source = line(n, own_mm)
    m = int((n - 1) / ratio * 0.999 - place) + 1
    target = line(max(m, 1), own_mm * ratio, place * ratio * own_mm)
    ramp_mm = source.world_mm(np.arange(n)[:, None] * [1, 0, 0])[:, 0]
    expected_mm = target.world_mm(np.arange(target.shape[0])[:, None] * [1, 0, 0])[:, 0]
    assume(expected_mm.max() <= ramp_mm.max())
    found_mm = axis_matrices(source, target)[0] @ ramp_mm
    np.testing.assert_allclose(found_mm, expected_mm, rtol=0.0, atol=1.01e-4 * own_mm)


@pytest.mark.parametrize("ratio", [2, 3, 4, 8])
@pytest.mark.parametrize("place", [0.0, 0.25, 0.37, 0.5])
def test_whole_ratio_reproduces_a_ramp_exactly(ratio: int, place: float) -> None:
    source, target = line(60, 1.0), line(40 // ratio, ratio, ratio + place)
    found_mm = axis_matrices(source, target)[0] @ np.arange(60.0)
    np.testing.assert_allclose(found_mm, ratio + place + ratio * np.arange(40 // ratio), atol=1e-9)


@quick
@given(st.floats(1, 8), st.floats(0, 1))
def test_coarser_grid_reproduces_a_ramp_to_a_tenth_of_a_voxel(ratio: float, place: float) -> None:
    """A widened triangle that falls between voxels is a little lopsided: by .086 at the worst."""
    first = 2 * ratio + place
    target = line(int((59 - 2 * first) / ratio), ratio, first)
    found_mm = axis_matrices(line(60, 1.0), target)[0] @ np.arange(60.0)
    np.testing.assert_allclose(found_mm, first + ratio * np.arange(target.shape[0]), atol=0.09)


@pytest.mark.parametrize(("ratio", "left"), [(2, 1e-12), (2.5, 0.08), (3, 0.12), (4, 1e-12)])
def test_coarser_grid_averages_away_what_it_cannot_hold(ratio: float, left: float) -> None:
    """The finest pattern, +1 -1 +1 ..., would alias to full contrast without a wider kernel."""
    checks = (-1.0) ** np.arange(100)
    for place in np.linspace(0.0, 1.0, 11):
        target = line(int(70 / ratio), ratio, 10 + place)
        found = axis_matrices(line(100, 1.0), target)[0] @ checks
        assert np.abs(found).max() <= left


def test_coarser_grid_keeps_the_mean_of_a_pattern() -> None:
    """Sampling every second voxel would see ones only."""
    pattern = np.array([1.0, 0.0] * 20)
    found = axis_matrices(line(40, 1.0), line(20, 2.0, 0.5))[0] @ pattern
    np.testing.assert_allclose(found[1:-1], 0.5, atol=1e-12)


def test_grids_that_are_turned_against_each_other_are_refused() -> None:
    turned = np.eye(4)
    turned[:3, :3] = rotation(np.array([0.0, 0.0, 1.0]), 5.0)
    route = Route(0, 1.0, BAND, 8, UNLIMITED)
    with pytest.raises(ValueError, match="parallel"):
        plan_resampling(Grid((20, 20, 20), np.eye(4)), route, Grid((20, 20, 20), turned))


# A whole plan


@quick
@given(grids(), routes())
def test_native_scan_is_taken_and_answered_as_it_is(grid: Grid, route: Route) -> None:
    """Inside the native band the working voxels are the scan's own."""
    own = grid.regrid((route.spacing_mm * 0.96, route.spacing_mm, route.spacing_mm), grid.shape)
    steps = plan_resampling(own, route, own)
    assert steps.core == own.shape
    for n, into, out in zip(own.shape, steps.in_matrices, steps.out_matrices, strict=True):
        assert into.dtype == out.dtype == np.float32
        assert np.array_equal(into, np.eye(len(into), n))
        assert np.array_equal(out, np.eye(n, len(into)))


@quick
@given(grids(), routes())
def test_native_axis_is_exact_beside_a_resampled_one(grid: Grid, route: Route) -> None:
    s = route.spacing_mm
    mixed = grid.regrid((s, s * 1.7, s * 0.3), grid.shape)
    steps = plan_resampling(mixed, route, mixed)
    into, out = steps.in_matrices[0], steps.out_matrices[0]
    assert np.array_equal(into, np.eye(len(into), mixed.shape[0]))
    assert np.array_equal(out, into.T)


@quick
@given(grids(), routes())
def test_working_grid_covers_the_scan_with_less_than_a_voxel_to_spare(
    grid: Grid, route: Route
) -> None:
    steps = plan_resampling(grid, route, grid)
    for n, extent, own in zip(steps.core, grid.extent_mm, grid.spacing_mm, strict=True):
        native = BAND[0] <= own / route.spacing_mm <= BAND[1]
        spacing = own if native else route.spacing_mm
        assert extent - 1e-3 * spacing <= n * spacing < extent + 1.001 * spacing


@quick
@given(grids(), routes())
def test_padding_is_zero_at_the_end_and_the_least_that_the_network_takes(
    grid: Grid, route: Route
) -> None:
    steps = plan_resampling(grid, route, grid)
    for n, padded, into, out in zip(
        steps.core, steps.working_shape, steps.in_matrices, steps.out_matrices, strict=True
    ):
        assert padded % route.multiple == 0
        assert n <= padded < n + route.multiple
        assert into.any(axis=1).sum() == n
        assert not into[n:].any()
        assert not out[:, n:].any()
    assert steps.output_shape == grid.shape


@quick
@given(grids(), routes(), st.floats(-1e3, 1e3))
def test_constant_stays_constant_up_to_the_border(grid: Grid, route: Route, value: float) -> None:
    """The way back must not mix in the padding."""
    fine = grid.subdivide(subvoxel_counts(grid, 1.0))
    found = through(plan_resampling(grid, route, fine), np.full(grid.shape, value))
    np.testing.assert_allclose(found, value, atol=1e-6 * abs(value) + 1e-12)


@quick
@given(grids(spacing_mm=(0.6, 1.6), size=(12, 24)), st.tuples(*[st.floats(0, 6.28)] * 3))
def test_there_and_back_is_the_identity_on_smooth_volumes(
    grid: Grid, phase: tuple[float, float, float]
) -> None:
    """Waves of 16 mm on a 1 mm working grid lose at most 8 %, away from the border."""
    place = np.moveaxis(np.indices(grid.shape), 0, -1) * grid.spacing_mm
    smooth = np.sin(2 * np.pi * place / 16.0 + phase).sum(axis=-1) / 3
    steps = plan_resampling(grid, Route(0, 1.0, BAND, 8, UNLIMITED), grid)
    inner = (slice(2, -2),) * 3
    error = np.abs(through(steps, smooth) - smooth)[inner]
    assert error.max() < 0.08


@quick
@given(grids(size=(8, 20)), routes(), orders, flips, st.tuples(*[st.sampled_from((1, 2, 3))] * 3))
def test_world_positions_land_where_they_belong(
    grid: Grid, route: Route, order: Any, flipped: Any, parts: tuple[int, int, int]
) -> None:
    """The world's own coordinates, sent through a plan as images, arrive at the target's.

    On oblique, anisotropic, permuted and flipped grids. Ratios that are no whole numbers may be
    off by the widened triangle's lopsidedness.
    """
    grid = reordered(np.empty(grid.shape), grid, order, flipped)[1]
    target = grid.subdivide(parts)
    working = np.array(route.working_spacing_mm(grid.spacing_mm))
    coarser = np.maximum(working / grid.spacing_mm, 1.0)
    # Beyond this distance from a face no kernel, there or back, is cut off by the border.
    index = grid.index(world_field(target))
    to_face = np.minimum(index + 0.5, np.array(grid.shape) - 0.5 - index) * grid.spacing_mm
    inner = (to_face > 2.0 * working + np.array(grid.spacing_mm)).all(axis=-1)
    assume(inner.any())
    found = through(plan_resampling(grid, route, target), world_field(grid))
    error = np.abs(found - world_field(target))[inner]
    lopsided = 0.09 * max(grid.spacing_mm) * np.sqrt(3) if (coarser > 1.0).any() else 0.0
    back = 0.09 * max(working) * np.sqrt(3) if (np.array(target.spacing_mm) > working).any() else 0
    assert error.max() < 1e-3 + lopsided + back


@quick
@given(
    grids(spacing_mm=(1.0, 1.0), size=(14, 18)),
    st.tuples(*[st.sampled_from((0.5, 1.0, 2.0, 2.7))] * 3),
    orders,
    flips,
)
def test_world_positions_are_exact_where_nothing_is_made_coarser(
    grid: Grid, spacing: tuple[float, float, float], order: Any, flipped: Any
) -> None:
    """0.5 mm to 1 mm is a whole ratio; all others go to a finer grid and a yet finer answer."""
    grid = reordered(np.empty(grid.shape), grid.regrid(spacing, grid.shape), order, flipped)[1]
    target = grid.subdivide(subvoxel_counts(grid, 1.0))
    index = grid.index(world_field(target))
    to_face = np.minimum(index + 0.5, np.array(grid.shape) - 0.5 - index) * grid.spacing_mm
    inner = (to_face > 2.0 + np.array(grid.spacing_mm)).all(axis=-1)
    assert inner.any()
    found = through(
        plan_resampling(grid, Route(0, 1.0, BAND, 8, UNLIMITED), target), world_field(grid)
    )
    # 1e-3 mm is float32's resolution of matrices that meet coordinates of some hundred mm.
    assert np.abs(found - world_field(target))[inner].max() < 1e-3


@quick
@given(grids(), routes(), orders, flips, seeds)
def test_axis_order_of_the_file_does_not_change_the_answer(
    grid: Grid, route: Route, order: Any, flipped: Any, seed: int
) -> None:
    """Not by one bit: labels must not hang on how a file was stored."""
    voxels = np.random.default_rng(seed).normal(size=grid.shape)
    expected = through(plan_resampling(grid, route, grid), voxels)
    stored, stored_grid = reordered(voxels, grid, order, flipped)
    canonical = Canonical(stored_grid)
    steps = plan_resampling(canonical.grid, route, canonical.grid)
    found = canonical.to_scan(through(steps, canonical.from_scan(stored)))
    assert np.array_equal(found, reordered(expected, grid, order, flipped)[0])


@quick
@given(grids(), routes(), seeds)
def test_flipped_output_grid_gives_the_flipped_answer(grid: Grid, route: Route, seed: int) -> None:
    voxels = np.random.default_rng(seed).normal(size=grid.shape)
    flipped = reordered(voxels, grid, (0, 1, 2), (True, False, True))[1]
    found = through(plan_resampling(grid, route, flipped), voxels)
    np.testing.assert_allclose(
        found, np.flip(through(plan_resampling(grid, route, grid), voxels), (0, 2)), atol=1e-5
    )


# Tiles


@st.composite
def plans(draw: st.DrawFn) -> tuple[Grid, ResamplingPlan]:
    """Plans whose answer is finer than their scan, offset, larger or smaller than it."""
    grid = draw(grids(spacing_mm=(0.6, 3.0), size=(1, 40)))
    route = Route(0, 1.0, BAND, 8, UNLIMITED)
    fine = grid.subdivide(subvoxel_counts(grid, 1.0))
    start = draw(st.tuples(*[st.integers(-6, 6)] * 3))
    target = draw(st.sampled_from((fine, fine.box(start, fine.shape), fine.box(start, (9, 9, 9)))))
    return grid, plan_resampling(grid, route, target)


# Below 16 the overlap, a quarter of a tile on either side, is too short for the kernels.
tile_sizes = st.sampled_from((16, 24, 32))


@settings(quick, max_examples=40)
@given(plans(), st.tuples(tile_sizes, tile_sizes, tile_sizes), seeds)
def test_tiled_answer_is_the_untiled_one(
    grid_and_plan: tuple[Grid, ResamplingPlan], max_shape: tuple[int, int, int], seed: int
) -> None:
    """With a network that changes nothing; every output voxel is answered exactly once."""
    grid, steps = grid_and_plan
    voxels = np.random.default_rng(seed).uniform(-1, 1, grid.shape)
    answer, answers = np.zeros(steps.output_shape), np.zeros(steps.output_shape, int)
    for tile in tiles(steps, max_shape):
        working = applied(tile.in_matrices, voxels[tile.image])
        whole = zip(working.shape, steps.working_shape, max_shape, strict=True)
        assert all(n == min(size, most) for n, size, most in whole)
        answer[tile.output] = applied(tile.out_matrices, working)
        answers[tile.output] += 1
    assert (answers == 1).all()
    np.testing.assert_allclose(answer, through(steps, voxels), atol=1e-5)


def test_a_scan_that_fits_is_one_tile_of_the_plans_own_matrices() -> None:
    grid = Grid((30, 40, 20), np.diag([1.0, 1.0, 2.0, 1.0]))
    steps = plan_resampling(grid, Route(0, 1.0, BAND, 8, UNLIMITED), grid)
    (tile,) = tiles(steps, steps.working_shape)
    assert tile.image == tile.output == tuple(slice(0, n) for n in grid.shape)
    for of_tile, of_plan in zip(
        tile.in_matrices + tile.out_matrices,
        steps.in_matrices + steps.out_matrices,
        strict=True,
    ):
        assert np.array_equal(of_tile, of_plan)


def test_a_tile_reads_no_more_of_the_scan_than_it_needs() -> None:
    grid = Grid((100, 8, 8), np.eye(4))
    steps = plan_resampling(grid, Route(0, 1.0, BAND, 8, UNLIMITED), grid)
    for tile in tiles(steps, (32, 8, 8)):
        assert tile.image[0].stop - tile.image[0].start <= 32
        # Answers keep their distance from a cut face, where the network lacks its surroundings.
        assert tile.image[0].start == 0 or tile.output[0].start - tile.image[0].start >= 7
        assert tile.image[0].stop == 100 or tile.image[0].stop - tile.output[0].stop >= 7


def test_tiles_of_a_flipped_output_grid_give_the_untiled_answer() -> None:
    grid = Grid((64, 8, 8), np.eye(4))
    voxels = np.random.default_rng(0).uniform(-1, 1, grid.shape)
    flipped = reordered(voxels, grid, (0, 1, 2), (True, False, False))[1]
    steps = plan_resampling(grid, Route(0, 1.0, BAND, 8, UNLIMITED), flipped)
    answer = np.zeros(steps.output_shape)
    for tile in tiles(steps, (32, 8, 8)):
        working = applied(tile.in_matrices, voxels[tile.image])
        answer[tile.output] = applied(tile.out_matrices, working)
    np.testing.assert_allclose(answer, through(steps, voxels), atol=1e-5)


# Sub-voxels of the answer


@pytest.mark.parametrize(
    ("spacing", "parts"), [(0.5, 1), (1.0, 1), (1.04, 1), (1.1, 2), (2.0, 2), (2.5, 3), (8.0, 8)]
)
def test_answer_is_at_least_as_fine_as_the_base_spacing(spacing: float, parts: int) -> None:
    """Five percent coarser is as fine: spacings are rarely exact."""
    assert subvoxel_counts(Grid((2, 2, 2), np.diag([spacing, 1.0, 2.0, 1.0])), 1.0) == (parts, 1, 2)
    assert subvoxel_counts(Grid((2, 2, 2), np.diag([2 * spacing] * 3 + [1.0])), 2.0) == (parts,) * 3


def test_label_of_most_sub_voxels_wins_and_ties_go_to_the_lower() -> None:
    answer = np.array([[[2, 2, 1], [2, 0, 0]], [[2, 0, 0], [2, 1, 1]]], np.uint8)
    assert majority_vote(answer, (2, 1, 3), 3).tolist() == [[[2], [0]]]
    assert majority_vote(np.array([[[2, 1, 1, 2]]], np.uint8), (1, 1, 4), 3).tolist() == [[[1]]]


def test_undivided_answer_is_the_labels() -> None:
    answer = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert np.array_equal(majority_vote(answer, (1, 1, 1), 24), answer)


@quick
@given(
    st.tuples(*[st.integers(1, 3)] * 3),
    st.tuples(*[st.integers(1, 3)] * 3),
    st.integers(1, 4),
    seeds,
)
def test_largest_share_counts_each_voxels_own_parts(
    shape: tuple[int, int, int], parts: tuple[int, int, int], classes: int, seed: int
) -> None:
    fine = tuple(n * p for n, p in zip(shape, parts, strict=True))
    answer = np.random.default_rng(seed).integers(0, classes, fine).astype(np.uint8)
    found = majority_vote(answer, parts, classes)
    assert found.shape == shape
    assert found.dtype == np.uint8
    for voxel in product(*map(range, shape)):
        own = answer[tuple(slice(v * p, v * p + p) for v, p in zip(voxel, parts, strict=True))]
        assert found[voxel] == np.bincount(own.ravel()).argmax()
