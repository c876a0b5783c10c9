"""Simulated scans: image and labels keep their place in the world."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.quaternions import angle_axis2mat
from numpy.random import default_rng
from numpy.typing import NDArray

from rare_trt.evaluation.cases import Case
from rare_trt.evaluation.simulation import (
    acquire,
    add_air,
    add_hot_voxels,
    add_rician_noise,
    parallel_grid,
    reslice,
    reslice_labels,
    rotated_grid,
    whole_voxel_grid,
)
from rare_trt.scan.geometry import Grid, Triple
from rare_trt.training import samples
from rare_trt.training.augmentation import augment
from rare_trt.training.downsampling import average_blocks, pad_to_multiple
from rare_trt.training.network import NetworkConfig
from rare_trt.training.recipe import AcquisitionRule, Recipe, load_recipe
from rare_trt.training.samples import draw_samples, draw_spacing

quick = settings(max_examples=60, deadline=None)
spacings = st.tuples(*[st.floats(0.5, 9.0)] * 3)
FULL = Grid((31, 40, 28), np.diag([1.0, 1.0, 1.0, 1.0]))


def places(grid: Grid) -> NDArray[np.float32]:
    """An image whose three channels are its voxels' own world coordinates in mm."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), -1)
    return np.moveaxis(grid.world_mm(index), 3, 0).astype(np.float32)


def inner(grid: Grid, within: Grid, margin_mm: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Voxels of `grid` whose centres lie further inside `within` than `margin_mm` per axis."""
    index = within.index(np.moveaxis(places(grid), 0, 3))
    margin = margin_mm / within.spacing_mm
    low, high = margin - 0.5, np.array(within.shape) - 0.5 - margin
    return np.asarray(((index >= low) & (index <= high)).all(axis=-1))


@quick
@given(spacings, st.tuples(*[st.floats(-2.0, 5.0)] * 3), st.sampled_from(["box", "gaussian"]))
def test_every_acquired_voxel_has_the_value_of_its_own_place(
    spacing: Triple, start: Triple, profile: str
) -> None:
    shape = tuple(max(1, int(n / s)) for n, s in zip(FULL.shape, spacing, strict=True))
    target = parallel_grid(FULL, spacing, start, (shape[0], shape[1], shape[2]))
    assert target.spacing_mm == pytest.approx(spacing)
    face = target.world_mm(np.array([-0.5, -0.5, -0.5]))
    assert face == pytest.approx(FULL.world_mm(np.array(start) - 0.5))
    found = acquire(places(FULL), FULL, target, "box" if profile == "box" else "gaussian")
    # A profile that reaches beyond the object measures its continued border.
    reach = np.maximum(np.array(spacing), 1.0) * (0.5 if profile == "box" else 2.2)
    inside = inner(target, FULL, reach)
    # The object is constant within each voxel of 1 mm, which narrow profiles feel.
    assert np.abs(found - places(target))[:, inside].max(initial=0.0) < 0.13


@quick
@given(spacings, st.floats(-3.0, 3.0))
def test_a_constant_object_is_constant_up_to_every_border(spacing: Triple, start: float) -> None:
    target = parallel_grid(FULL, spacing, (start, start, start), (6, 6, 6))
    for profile in ("box", "gaussian"):
        found = acquire(np.full((1, *FULL.shape), 7.0, np.float32), FULL, target, profile)
        assert found == pytest.approx(7.0, abs=1e-4)


def test_voxels_of_whole_multiples_are_block_means() -> None:
    voxels = default_rng(0).normal(size=(1, 32, 40, 24)).astype(np.float32)
    grid = Grid((32, 40, 24), np.eye(4))
    for factor in (1, 2, 4, 8):
        low = whole_voxel_grid(grid, (factor,) * 3)
        found, means = acquire(voxels, grid, low), average_blocks(voxels, factor)
        np.testing.assert_allclose(found, means, rtol=0, atol=1e-5)


def test_a_gaussian_slice_is_as_wide_as_the_voxel_at_half_its_height() -> None:
    """A thin plate between two slices gives half the signal of one in the middle of a slice."""
    signals = []
    for offset in (0, 3):
        plate = np.zeros((1, 60, 2, 2), np.float32)
        plate[:, 30 + offset] = 1.0
        grid = Grid((60, 2, 2), np.eye(4))
        low = parallel_grid(grid, (6.0, 1.0, 1.0), (-2.5, 0.0, 0.0), (10, 2, 2))
        signals.append(acquire(plate, grid, low, "gaussian")[0, 5, 0, 0])
    assert signals[1] / signals[0] == pytest.approx(0.5, abs=0.02)


@quick
@given(st.floats(-60, 60), st.tuples(*[st.floats(-1, 1)] * 3), st.booleans())
def test_every_voxel_of_a_rotated_scan_has_the_value_of_its_own_place(
    degrees: float, axis: Triple, whole: bool
) -> None:
    if np.linalg.norm(axis) < 0.1:
        return
    rotated = rotated_grid(FULL, angle_axis2mat(np.radians(degrees), axis), whole=whole)
    assert rotated.spacing_mm == pytest.approx(FULL.spacing_mm)
    middle = (np.array(rotated.shape) - 1) / 2
    assert rotated.world_mm(middle) == pytest.approx(FULL.world_mm((np.array(FULL.shape) - 1) / 2))
    found = reslice(places(FULL), FULL, rotated, "nearest")
    inside = inner(rotated, FULL, np.full(3, 0.6))
    assert np.abs(found - places(rotated))[:, inside].max(initial=0.0) < 1e-3
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    index = rotated.index(FULL.world_mm(corners * np.array(FULL.shape) - 0.5))
    if whole:
        assert (index >= -0.51).all()
        assert (index <= np.array(rotated.shape) - 0.49).all()
    else:
        assert rotated.shape == FULL.shape


def test_rotated_labels_are_the_rotated_structure() -> None:
    """A ball is the same ball from every side, for either of its two labels."""
    away = np.linalg.norm(places(FULL) - np.array([15, 20, 14])[:, None, None, None], axis=0)
    labels = np.where(away < 9, np.where(places(FULL)[1] < 19.5, 1, 2), 0).astype(np.uint8)
    rotated = rotated_grid(FULL, angle_axis2mat(0.6, (1, 2, 3)), whole=True)
    found = reslice_labels(labels, FULL, rotated, 3)
    at = places(rotated)
    expected = np.where(
        np.linalg.norm(at - np.array([15, 20, 14])[:, None, None, None], axis=0) < 9,
        np.where(at[1] < 19.5, 1, 2),
        0,
    )
    for label in (1, 2):
        both = 2.0 * ((found == label) & (expected == label)).sum()
        assert both / ((found == label).sum() + (expected == label).sum()) > 0.95
    assert set(np.unique(found)) == {0, 1, 2}


def test_air_is_added_around_and_nothing_moves() -> None:
    voxels, rng = places(FULL), default_rng(1)
    padded, grid = add_air(voxels, FULL, (3, 0, 1), (0, 16, 2), 0.0, rng)
    assert grid.shape == (34, 56, 31)
    inside = inner(grid, FULL, np.zeros(3))
    assert inside.sum() == voxels[0].size
    assert np.abs(padded - places(grid))[:, inside].max() == 0.0
    assert (padded[:, ~inside] == 0.0).all()
    noisy, _ = add_air(voxels, FULL, (3, 0, 1), (0, 16, 2), 2.0, rng)
    # The mean of a Rayleigh distribution.
    assert noisy[:, ~inside].mean() == pytest.approx(2.0 * np.sqrt(np.pi / 2), rel=0.02)
    assert (noisy[:, inside] == padded[:, inside]).all()


def test_rician_noise_lifts_air_and_leaves_bright_tissue_unbiased() -> None:
    voxels = np.stack([np.zeros((30, 30, 30)), np.full((30, 30, 30), 100.0)]).astype(np.float32)
    noisy = add_rician_noise(voxels, 3.0, default_rng(2))
    assert noisy[0].mean() == pytest.approx(3.0 * np.sqrt(np.pi / 2), rel=0.02)
    assert noisy[1].mean() == pytest.approx(100.0, abs=0.1)
    assert noisy[1].std() == pytest.approx(3.0, rel=0.03)


def test_hot_voxels_have_the_given_share_and_brightness() -> None:
    voxels = np.linspace(0.0, 1.0, 64_000, dtype=np.float32).reshape(1, 40, 40, 40)
    hot = add_hot_voxels(voxels, 0.01, 5.0, default_rng(3))
    assert (hot == 5.0).mean() == pytest.approx(0.01, rel=0.2)
    assert (hot[hot != 5.0] == voxels[hot != 5.0]).all()


def recipe(**rule: float) -> Recipe:
    return replace(
        load_recipe("hippocampus"),
        network=NetworkConfig(channels=3),
        channels=("x", "y", "z"),
        acquisition=AcquisitionRule(**rule),
    )


def striped() -> Case:
    """Voxels that are their own place, and labels that follow from it."""
    labels = (places(FULL)[0] > 12.0).astype(np.uint8) + (places(FULL)[1] > 22.0).astype(np.uint8)
    return Case("striped", places(FULL), labels, FULL)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_samples_of_each_route_have_scan_and_labels_in_their_place(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "_add_artefacts", lambda voxels, rng: voxels)
    for seed in range(30):
        case = striped()
        drawn = draw_samples(case, default_rng(seed), recipe(simulated_share=share))
        assert [(one.route, one.aligned) for one in drawn] == [
            (0, share == 0.0),
            *((1, True), (2, True), (3, True), (1, False), (2, False), (3, False)),
        ]
        for one in drawn:
            assert one.voxels.shape[1:] == one.grid.shape
            assert one.labels.shape == one.truth_grid.shape
            # Of the case, and beyond it background.
            part = case.labels[one.part]
            rest = [(0, n - m) for n, m in zip(one.labels.shape, part.shape, strict=True)]
            assert (one.labels == np.pad(part, rest)).all()
        for one in (one for one in drawn if not one.aligned):
            truth = places(one.truth_grid)
            assert (one.labels == (truth[0] > 12.0).astype(int) + (truth[1] > 22.0)).all()
            # A Gaussian slice reaches further than a box.
            inside = inner(one.grid, FULL, np.maximum(one.grid.spacing_mm, 1.0) * 2.2)
            assert np.abs(one.voxels - places(one.grid))[:, inside].max(initial=0.0) < 0.13
        aligned = [one for one in drawn if one.aligned]
        assert len({one.labels.shape for one in aligned}) == 1
        assert all(n % 8 == 0 for n in aligned[0].labels.shape)
        # One field of view, cut or padded anywhere.
        part = aligned[0].part
        base, labels = pad_to_multiple(case.voxels[(slice(None), *part)], case.labels[part], 8)
        for one in aligned:
            assert (one.labels == labels).all()
            assert one.part == part
            means = average_blocks(base, 2**one.route)
            np.testing.assert_allclose(one.voxels, means, rtol=0, atol=1e-4)
            assert one.grid.extent_mm == pytest.approx(labels.shape)


def test_spacings_are_drawn_within_the_rule_and_near_the_route() -> None:
    rng, rule = default_rng(5), recipe()
    for route in range(4):
        drawn = np.array([draw_spacing(rng, route, rule) for _ in range(400)])
        low, high = rule.acquisition.spacing_mm
        assert (drawn >= low).all()
        assert (drawn <= high).all()
        ratios = drawn.max(axis=1) / drawn.min(axis=1)
        assert ratios.max() <= rule.acquisition.largest_ratio + 1e-9
        assert (ratios > 3).mean() > 0.07
        assert (ratios < 1.0001).mean() > 0.25
        size = np.sqrt((drawn**2).mean(axis=1))
        assert 2**route / 1.5 < np.median(size) < 2**route * 2.2
        for axis in range(3):
            assert (drawn[:, axis] > 1.2 * np.median(drawn, axis=1)).any()


def test_a_single_route_gets_every_spacing() -> None:
    one = replace(recipe(), network=NetworkConfig(channels=3, routes=1))
    drawn = np.array([draw_spacing(default_rng(seed), 0, one) for seed in range(300)])
    size = np.sqrt((drawn**2).mean(axis=1))
    assert size.min() < 1.0
    assert size.max() > 7.0


def test_augmentation_rotates_crops_and_pads_but_keeps_the_spacing() -> None:
    shapes, tilted = set(), 0
    case = striped()
    for seed in range(40):
        varied = augment(case, default_rng(seed), 3)
        assert varied.voxels.shape[1:] == varied.labels.shape == varied.grid.shape
        assert varied.grid.spacing_mm == pytest.approx((1.0, 1.0, 1.0))
        assert np.isfinite(varied.voxels).all()
        shapes.add(varied.grid.shape)
        tilted += varied.grid.shape > FULL.shape
    assert len(shapes) > 15
    assert tilted
