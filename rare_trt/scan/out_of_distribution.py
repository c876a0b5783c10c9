"""The out-of-distribution check: how far a scan lies from those that the network was trained on.

A few statistics that do not depend on a scanner's gain or offset are computed from the normalised
voxels and compared with their ranges over the training scans (`model.seen` of the manifest,
measured by calibration/training_distribution.py). The flags warn about the input; they do not
measure how good the labels are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rare_trt.scan.field_of_view import as_mm, within
from rare_trt.scan.geometry import Grid, Triple
from rare_trt.scan.intensity import IntensityRule, percentiles

Image: TypeAlias = NDArray[np.float32]

# Blocks per axis of the coarse image that is compared with the mean of training.
BLOCKS: Final = 4

# A block with less foreground than this shows no anatomy: air, or an edge.
LEAST_FOREGROUND: Final = 0.1

PERCENTILES: Final = (5, 25, 50, 75, 95)

# The statistics by their names in a manifest, in words.
NAMES: Final = {
    "foreground_share": "the share of foreground",
    **{f"p{p}": f"percentile {p} of the foreground" for p in PERCENTILES},
    "neighbour_correlation": "the correlation of neighbouring voxels",
    "pattern_correlation": "the correlation with the mean training scan",
}


@dataclass(frozen=True)
class RouteDistribution:
    """The training scans of `route`: per channel the range of each statistic."""

    route: int
    ranges: tuple[Mapping[str, tuple[float, float]], ...]


@dataclass(frozen=True)
class TrainingDistribution:
    """Statistics of `scans` training scans, real and simulated.

    Views are their extents per canonical axis; `patterns` are, per channel, the mean of a scan in
    4 x 4 x 4 blocks, k fastest.
    """

    scans: int
    min_view_mm: Triple
    max_view_mm: Triple
    patterns: tuple[tuple[float, ...], ...]
    routes: tuple[RouteDistribution, ...]


def block_means(voxels: Image, rule: IntensityRule) -> NDArray[np.float64]:
    """Means of the foreground of a normalised channel [i, j, k] in 4 x 4 x 4 blocks; NaN where
    there is hardly any.

    The left half is folded onto the right one, so that it is the same for a scan of either side.
    """
    shares = _shares(voxels)
    return _block_means(shares, shares >= rule.foreground_share)


def statistics(voxels: Image, rule: IntensityRule, mean: NDArray[np.float64]) -> dict[str, float]:
    """The statistics of a normalised channel [i, j, k]; `mean` is the mean of the training scans in
    blocks."""
    shares = _shares(voxels)
    foreground = shares >= rule.foreground_share
    inside = shares[foreground]
    values = [
        inside.size / shares.size,
        *(percentile.counted_from(0.0) for percentile in percentiles(inside, PERCENTILES)),
        _neighbours(shares),
        _likeness(_block_means(shares, foreground), mean),
    ]
    return dict(zip(NAMES, values, strict=True))


def out_of_distribution_flags(
    image: Image, grid: Grid, route: int, rule: IntensityRule, seen: TrainingDistribution
) -> list[str]:
    """One sentence for each way in which normalised voxels [c, i, j, k] on a canonical `grid` lie
    outside what the network was trained on along `route`."""
    found = []
    low, high = seen.min_view_mm, seen.max_view_mm
    if not within(grid.extent_mm, low, high):
        found.append(
            f"unlike the training data: the field of view is {as_mm(grid.extent_mm)} mm "
            f"({as_mm(low)} to {as_mm(high)} in training)"
        )
    ranges = next((entry.ranges for entry in seen.routes if entry.route == route), None)
    if ranges is None:
        return [*found, f"unlike the training data: no training scan took route {route}"]
    for channel, voxels in enumerate(image):
        mean = np.array(seen.patterns[channel]).reshape(BLOCKS, BLOCKS, BLOCKS)
        where = f" in channel {channel + 1}" if len(image) > 1 else ""
        for name, value in statistics(voxels, rule, mean).items():
            least, most = ranges[channel][name]
            if not least <= value <= most:
                found.append(
                    f"unlike the training data: {NAMES[name]}{where} is {value:.2f} ({least:.2f} "
                    f"to {most:.2f} in training)"
                )
    return found


def _shares(voxels: Image) -> Image:
    """Voxels as shares of the way from the lower clip percentile to the upper one."""
    low, high = voxels.min(), voxels.max()
    shares: Image = (voxels - low) / (high - low)
    return shares


def _block_means(shares: Image, foreground: NDArray[np.bool_]) -> NDArray[np.float64]:
    both = np.stack([np.where(foreground, shares, np.float32(0)), foreground])
    total, share = _averaged(both).astype(np.float64)
    total, share = total + total[::-1], share + share[::-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(share >= 2 * LEAST_FOREGROUND, total / share, np.nan))


def _averaged(images: Image) -> Image:
    """Means of each image [n, i, j, k] in blocks: [n, 4, 4, 4]."""
    n, ni, nj, nk = images.shape
    i, j, k = map(_blocks, (ni, nj, nk))
    along_k = images.reshape(-1, nk) @ k.T
    along_j = j @ along_k.reshape(n, ni, nj, BLOCKS)
    blocks: Image = i @ along_j.reshape(n, ni, BLOCKS * BLOCKS)
    return blocks.reshape(n, BLOCKS, BLOCKS, BLOCKS)


@lru_cache(maxsize=256)
def _blocks(size: int) -> Image:
    """Weights [BLOCKS, size] of each voxel along an axis in the mean of each block."""
    edges = np.linspace(0.0, size, BLOCKS + 1)
    overlap = np.minimum(edges[1:, None], np.arange(1, size + 1)) - np.maximum(
        edges[:-1, None], np.arange(size)
    )
    weights: Image = (np.maximum(overlap, 0.0) * BLOCKS / size).astype(np.float32)
    return weights


def _neighbours(shares: Image) -> float:
    """Correlation of a voxel with the next one, mean over the axes that have neighbours."""
    centred = shares - shares.mean(dtype=np.float64).astype(np.float32)
    variance = float((centred**2).mean())
    found = []
    for axis in range(3):
        along = np.moveaxis(centred, axis, 0)
        if len(along) > 1:
            found.append(float((along[1:] * along[:-1]).mean()) / variance)
    return sum(found) / len(found) if found else 0.0


def _likeness(one: NDArray[np.float64], mean: NDArray[np.float64]) -> float:
    known = np.isfinite(one)
    found, expected = one[known], mean[known]
    if found.size < 2 or np.ptp(found) == 0.0 or np.ptp(expected) == 0.0:
        return 0.0
    found, expected = found - found.mean(), expected - expected.mean()
    return float(found @ expected / np.sqrt((found @ found) * (expected @ expected)))
