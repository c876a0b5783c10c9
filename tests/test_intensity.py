"""The normalisation that training, export and runtime share."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rare_trt.errors import ScanError
from rare_trt.scan.geometry import Canonical, Grid
from rare_trt.scan.intensity import IntensityRule, normalise
from rare_trt.scan.nifti import read_scan

RULE = IntensityRule()

quick = settings(max_examples=40, deadline=None)


def tissue(seed: int = 0, shape: tuple[int, int, int] = (20, 24, 18)) -> NDArray[np.float64]:
    """Three tissues with noise, in integers that every wide type holds exactly."""
    place = np.moveaxis(np.indices(shape), 0, -1) / shape - 0.5
    radius = np.sqrt((place**2).sum(axis=-1))
    noise = np.random.default_rng(seed).normal(0.0, 15.0, shape)
    return np.round(
        10.0 * (np.select([radius < 0.25, radius < 0.4], [300.0, 220.0], 120.0) + noise)
    )


def hippocampus_crops(shared_data: Path) -> list[NDArray[np.float64]]:
    paths = sorted((shared_data / "hippocampus" / "images").glob("hippocampus_*.nii.gz"))[:6]
    assert paths
    return [read_scan(path).volume.voxels.astype(np.float64) for path in paths]


def test_foreground_has_mean_zero_and_deviation_one() -> None:
    voxels = tissue()
    low, high = np.percentile(voxels, RULE.clip_percentiles)
    foreground = np.clip(voxels, low, high) >= low + RULE.foreground_share * (high - low)
    found = normalise(voxels, RULE)
    assert found.shape == (1, *voxels.shape)
    assert found.dtype == np.float32
    assert found[0][foreground].mean(dtype=float) == pytest.approx(0.0, abs=1e-5)
    assert found[0][foreground].std(dtype=float) == pytest.approx(1.0, abs=1e-5)


@quick
@given(st.integers(0, 99), st.floats(-6, 6), st.floats(-1e3, 1e3))
def test_gain_and_offset_of_the_scanner_do_not_matter(
    seed: int, decades: float, offset: float
) -> None:
    """The offset is in units of the scan's own contrast."""
    voxels, gain = tissue(seed), 10.0**decades
    scaled = (voxels + offset * np.ptp(voxels)) * gain
    difference = np.abs(normalise(scaled, RULE) - normalise(voxels, RULE))
    # A voxel on the foreground's border may fall to the other side: one of some thousands.
    assert difference.max() < 2e-3


@pytest.mark.parametrize(
    ("dtype", "offset"),
    [
        (np.float64, 1e6),
        (np.float64, 1e9),
        (np.int32, 10**6),
        (np.int32, 10**9),
        (np.uint32, 10**9),
    ],
)
def test_contrast_survives_an_offset_that_float32_cannot_hold(dtype: Any, offset: float) -> None:
    voxels = tissue()
    shifted = (voxels + offset).astype(dtype)
    assert np.abs(normalise(shifted, RULE) - normalise(voxels, RULE)).max() < 1e-6


@pytest.mark.parametrize("offset", [1e5, -1e5, 3e6])
def test_an_offset_of_whole_numbers_changes_not_one_bit(offset: float) -> None:
    """float32 holds whole numbers up to 2^24, and eighths, as averages of 8 voxels are, to 2^21."""
    voxels = np.round(tissue()).astype(np.float32)
    parts = 8 if abs(offset) < 2**21 - voxels.max() else 1
    voxels /= parts
    assert np.array_equal(normalise(voxels + np.float32(offset), RULE), normalise(voxels, RULE))


@pytest.mark.parametrize(
    "dtype", [np.int16, np.uint16, np.int32, np.int64, np.uint64, np.float32, ">i2", ">f4", ">f8"]
)
def test_type_and_byte_order_of_the_file_do_not_matter(dtype: Any) -> None:
    voxels = np.maximum(tissue(), 0.0)
    stored = voxels.astype(dtype)
    np.testing.assert_allclose(normalise(stored, RULE), normalise(voxels, RULE), atol=1e-5)


def test_input_is_left_as_it_was() -> None:
    for dtype in (np.float32, np.float64, np.int16):
        voxels = tissue().astype(dtype)
        before = voxels.copy()
        normalise(voxels, RULE)
        assert np.array_equal(voxels, before)


def test_hot_voxels_hardly_move_the_others(shared_data: Path) -> None:
    """One voxel in a thousand at fifty times the maximum; .08 deviations was the most measured."""
    random = np.random.default_rng(0)
    for voxels in hippocampus_crops(shared_data):
        hot = np.zeros(voxels.size, bool)
        hot[random.choice(voxels.size, voxels.size // 1000, replace=False)] = True
        spoiled = np.where(hot.reshape(voxels.shape), voxels.max() * 50, voxels)
        difference = np.abs(normalise(spoiled, RULE) - normalise(voxels, RULE)).ravel()
        assert difference[~hot].max() < 0.15


@pytest.mark.parametrize("outlier", [-32768.0, -1e6, -1e10, -3.4e38, 3.4e38])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_voxel_far_away_takes_no_steps_from_the_others(dtype: Any, outlier: float) -> None:
    """A fit that failed, a value that stands for none: as if it were the percentile's own voxel."""
    voxels = (tissue() / 4000.0).astype(dtype)
    ordered = np.sort(voxels, axis=None)
    place = np.argwhere(voxels == (ordered[0] if outlier < 0 else ordered[-1]))[0]
    spoiled = voxels.copy()
    spoiled[tuple(place)] = outlier
    assert np.array_equal(normalise(spoiled, RULE), normalise(voxels, RULE))


def test_a_range_that_float32_cannot_hold_is_refused() -> None:
    voxels = np.linspace(-3e38, 3e38, 1000).reshape(10, 10, 10).astype(np.float32)
    with pytest.raises(ScanError, match="no contrast to compute with"):
        normalise(voxels, RULE)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_a_slab_of_air_hardly_moves_the_rest(shared_data: Path, share: float) -> None:
    """Air beside a crop, as noise and not as zeros; .2 deviations was the most measured."""
    random = np.random.default_rng(0)
    for voxels in hippocampus_crops(shared_data):
        slab = (int(len(voxels) * share / (1.0 - share)), *voxels.shape[1:])
        air = np.abs(random.normal(0.0, 0.005 * voxels.max(), slab))
        found = normalise(np.concatenate([voxels, air]), RULE)[:, : len(voxels)]
        difference = np.abs(found - normalise(voxels, RULE))
        assert difference.max() < 0.3
        assert difference.mean() < 0.1


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.float64])
def test_memory_order_does_not_matter(dtype: Any) -> None:
    """Sums depend on the order of their terms; the order must not depend on the file's."""
    voxels = tissue().astype(dtype)
    expected = normalise(voxels, RULE)
    wide = np.zeros((40, 24, 36), dtype)
    wide[::2, :, ::2] = voxels
    for stored in (np.asfortranarray(voxels), wide[::2, :, ::2], voxels[::-1].copy()[::-1]):
        assert np.array_equal(normalise(stored, RULE), expected)


def test_axis_order_of_the_file_does_not_matter_once_canonical() -> None:
    voxels = tissue(shape=(9, 11, 7)).astype(np.float32)
    expected = normalise(voxels, RULE)
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        affine = np.eye(4)
        affine[:3, :3] = np.eye(3)[:, order] * signs
        stored = np.asfortranarray(
            voxels.transpose(order)[tuple(slice(None, None, s) for s in signs)]
        )
        canonical = Canonical(Grid(stored.shape, affine))
        assert np.array_equal(normalise(canonical.from_scan(stored), RULE), expected)


@pytest.mark.parametrize("value", [0, 7, -1e6])
def test_image_without_contrast_is_refused(value: float) -> None:
    with pytest.raises(ScanError, match="no contrast") as error:
        normalise(np.full((5, 6, 7), value), RULE)
    assert "\n" not in str(error.value)


def test_image_whose_contrast_is_one_voxel_is_refused() -> None:
    voxels = np.zeros((10, 10, 10), np.float32)
    voxels[5, 5, 5] = 1e6
    with pytest.raises(ScanError, match="no contrast"):
        normalise(voxels, RULE)


def test_two_level_image_stays_finite() -> None:
    """The foreground of a mask has no deviation to divide by."""
    voxels = np.zeros((10, 10, 10), np.uint8)
    voxels[2:8, 2:8, 2:8] = 1
    assert np.isfinite(normalise(voxels, RULE)).all()


def test_channels_are_normalised_apart() -> None:
    one, other = tissue(1), tissue(2) * 1000.0 + 5e5
    both = normalise(np.stack([one, other], axis=-1), RULE)
    assert both.shape == (2, *one.shape)
    assert np.array_equal(both[0], normalise(one, RULE)[0])
    assert np.array_equal(both[1], normalise(other, RULE)[0])


def test_one_channel_without_contrast_refuses_the_scan() -> None:
    with pytest.raises(ScanError, match="no contrast"):
        normalise(np.stack([tissue(), np.zeros((20, 24, 18))], axis=-1), RULE)
