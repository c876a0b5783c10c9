"""Intensity normalisation: the one implementation that training, export and runtime share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rare_trt.constants import MIN_DEVIATION
from rare_trt.errors import ScanError


@dataclass(frozen=True)
class IntensityRule:
    """Clip to two percentiles, then centre and scale by the foreground's mean and deviation.

    The foreground is every voxel at least `foreground_share` of the way from the lower percentile
    to the upper one; so the rule gives the same result for any gain and offset of the scanner.
    """

    clip_percentiles: tuple[float, float] = (0.5, 99.5)
    foreground_share: float = 0.15


@dataclass(frozen=True)
class Percentile:
    """A percentile of some values: `share` of the way from one of them to the next larger one."""

    below: float
    above: float
    share: float

    def counted_from(self, zero: float) -> float:
        """Its value less `zero`, linear between the two."""
        return (self.below - zero) + (self.above - self.below) * self.share


def percentiles(values: NDArray[Any], wanted: Sequence[float]) -> list[Percentile]:
    """The `wanted` percentiles (0 to 100) of `values`, which are not empty."""
    # All of them sorted is faster than numpy's search for a few.
    ordered = np.sort(values, axis=None)
    last = ordered.size - 1
    found = []
    for percentile in wanted:
        place = last * (percentile / 100)
        below = int(place)
        above = min(below + 1, last)
        found.append(Percentile(float(ordered[below]), float(ordered[above]), place - below))
    return found


def normalise(voxels: NDArray[Any], rule: IntensityRule) -> NDArray[np.float32]:
    """Voxels [i, j, k] or [i, j, k, channel] -> float32 [channel, i, j, k], each channel apart.

    Applied to the scan's own voxels before any resampling, so that padding with zero is padding
    with the foreground's mean. Raises ScanError for a channel without contrast.
    """
    channels = voxels[..., None] if voxels.ndim == 3 else voxels
    out = np.empty((channels.shape[3], *channels.shape[:3]), np.float32)
    for channel in range(channels.shape[3]):
        _normalise_channel(channels[..., channel], rule, out[channel])
    return out


def _normalise_channel(voxels: NDArray[Any], rule: IntensityRule, out: NDArray[np.float32]) -> None:
    # float32 has 24 bits: wider types are scaled to 0..1 first: an offset costs no contrast.
    wide = voxels.dtype.itemsize > 4 or (voxels.dtype.kind in "iu" and voxels.dtype.itemsize == 4)
    values: NDArray[Any] = np.empty(out.shape, np.float64) if wide else out
    values[...] = voxels
    lower, upper = percentiles(values, rule.clip_percentiles)
    # Counted from the voxel below the lower percentile, which is exact, neither percentile is
    # rounded to the steps of a large offset. Values beyond are clipped first.
    zero = lower.below
    low, high = lower.counted_from(zero), upper.counted_from(zero)
    if not low < high <= float(np.finfo(values.dtype).max):
        raise ScanError(
            "the voxels have no contrast to compute with (percentiles "
            f"{rule.clip_percentiles[0]:g} and {rule.clip_percentiles[1]:g} are "
            f"{lower.counted_from(0.0):g} and {upper.counted_from(0.0):g}); expected an image: "
            "check the file"
        )
    np.clip(values, zero, upper.above, out=values)
    values -= zero
    np.clip(values, low, high, out=values)
    values -= low
    values /= high - low
    foreground = values[values >= rule.foreground_share]
    mean = foreground.mean(dtype=np.float64)
    deviation = foreground.std(dtype=np.float64)
    values -= mean
    # In float64, also where the deviation is MIN_DEVIATION.
    values /= max(deviation, np.float64(MIN_DEVIATION))
    if wide:
        out[...] = values
