"""The out-of-distribution check: how far a scan, and the labels found in it, lie from training's.

Two checks, each against statistics that calibration/training_distribution.py measured:

- The scan (`model.seen` of the manifest): a few statistics of the normalised voxels that do not
  depend on a scanner's gain or offset, each with its range. These flags warn about the input alone.
- The labels (`model.label_distribution`): shape and position of the parts, and the intensities
  under and around them as ranks among the voxels of the scan, which no monotone change of contrast
  alters. Each kind is one Mahalanobis distance. These flags doubt the labels themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rare_trt.constants import EDGE_SHARE
from rare_trt.scan.field_of_view import as_mm, within
from rare_trt.scan.geometry import Grid, Slices, Triple
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


# Most digits of a value that lies close to a limit.
MAX_DIGITS: Final = 6

# The statistics of a label's shape, of two labels' position, and of the intensities of a label in
# one channel, in words.
SHAPE_NAMES: Final = (
    "the logarithm of the volume of {}",
    "the logarithm of the right-left extent of {}",
    "the logarithm of the anterior-posterior extent of {}",
    "the logarithm of the superior-inferior extent of {}",
    "the tilt of {}",
    "the looseness of {}",
)
POSITION_NAMES: Final = (
    "the right-left distance in mm of {} and {}",
    "how many mm {} lies in front of {}",
    "how many mm {} lies above {}",
)
CONTENT_NAMES: Final = (
    "the mean intensity rank in {}",
    "the deviation of the intensity ranks in {}",
    "percentile 90 of the intensity ranks in {}",
    "the rank of the surroundings less that of {}",
)
HIGH_PERCENTILE: Final = 90

# How far the surroundings of a label reach.
SHELL_MM: Final = 3.0

# Equal steps between the clip percentiles in which intensities are ranked.
LEVELS: Final = 256

# How far from the mean usual values lie: 95 % of a normal distribution.
USUAL_DEVIATIONS: Final = 2.0

# What is less of a mm, between the centres of two grids, is rounding.
OFFSET_DECIMALS: Final = 6


@dataclass(frozen=True)
class Gaussian:
    """Statistics of training's labels: their mean and deviation, and the largest distance that is
    accepted.

    `whitening` has the rows of a lower triangle, by which the statistics less their mean become
    uncorrelated and of deviation 1; the root of their mean square is the distance.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    whitening: tuple[tuple[float, ...], ...]
    limit: float

    def distance(self, values: Sequence[float]) -> float:
        """The Mahalanobis distance of `values` per statistic (root mean square)."""
        away = [value - mean for value, mean in zip(values, self.mean, strict=True)]
        total = 0.0
        for row in self.whitening:
            total += sum(weight * one for weight, one in zip(row, away, strict=False)) ** 2
        return math.sqrt(total / len(away))


@dataclass(frozen=True)
class RouteLabelDistribution:
    """The labels found in training scans of `route`: their shape and position, and the intensities
    under and around them."""

    route: int
    shape: Gaussian
    content: Gaussian


@dataclass(frozen=True)
class LabelDistribution:
    """Statistics of the labels that the network finds in `scans` training scans."""

    scans: int
    routes: tuple[RouteLabelDistribution, ...]


@dataclass(frozen=True, eq=False)
class LabelStatistics:
    """Statistics of the labels of one scan, NaN for absent labels: `shape` has six per label and
    three per pair of labels that follow each other, `content` four per label and channel. They
    touch the edge where more than a tip of them reaches the faces of the field of view."""

    shape: tuple[float, ...]
    content: tuple[float, ...]
    touch_edge: bool


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
                    f"unlike the training data: {NAMES[name]}{where} is "
                    f"{range_text(value, (least, most), 2)} in training)"
                )
    return found


def range_text(value: float, limits: tuple[float, float], digits: int, unit: str = "") -> str:
    """'0.486 (0.24 to 0.485': a value outside its limits with as many digits, at least `digits`, as
    show on which side it lies."""
    low, high = limits
    beyond = high if value > high else low
    while digits < MAX_DIGITS and _fixed(value, digits) == _fixed(beyond, digits):
        digits += 1
    return f"{_fixed(value, digits)}{unit} ({_fixed(low, digits)} to {_fixed(high, digits)}"


def _fixed(value: float, digits: int) -> str:
    """`value` with so many decimals; zero has no sign."""
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if not text.strip("-0.") else text


def label_statistics(
    image: Image,
    grid: Grid,
    labels: NDArray[np.uint8],
    fine: Grid,
    classes: int,
    rule: IntensityRule,
) -> LabelStatistics:
    """The statistics of `labels` [i, j, k] on the grid `fine`, which has the axes of `grid`, on
    which the normalised scan `image` [c, i, j, k] lies."""
    steps = [max(1, round(SHELL_MM / size)) for size in fine.spacing_mm]
    box = _label_box(labels, steps)
    part = labels[box]
    ranks = [_ranks_at(voxels, _nearest(fine, grid, box), rule) for voxels in image]
    shape: list[float] = []
    content: list[float] = []
    centres = []
    for label in range(1, classes):
        mask = part == label
        centre, values = _shape_statistics(mask, fine)
        centres.append(centre)
        shape += values
        shell = _shell(mask, steps) & (part == 0)
        for rank in ranks:
            content += _content_statistics(rank[mask], rank[shell])
    for first, second in pairwise(centres):
        x, y, z = (first - second).tolist()
        shape += [abs(x), y, z]
    touch_edge = bool(_edge_share(labels, box, fine) >= EDGE_SHARE)
    return LabelStatistics(tuple(shape), tuple(content), touch_edge)


def doubtful_label_flags(
    found: LabelStatistics,
    route: int,
    distribution: LabelDistribution,
    labels: Sequence[str],
    channels: Sequence[str],
) -> list[str]:
    """One sentence for the shape and one for the content of labels that lie outside what the
    network found in training scans along `route`; `labels` are the names from 1 up."""
    known = next((entry for entry in distribution.routes if entry.route == route), None)
    if known is None:
        return []
    kinds = (
        (
            "their shape and position lie",
            found.shape,
            known.shape,
            [name.format(label) for label in labels for name in SHAPE_NAMES]
            + [name.format(*pair) for pair in pairwise(labels) for name in POSITION_NAMES],
        ),
        (
            "the intensities under and around them lie",
            found.content,
            known.content,
            [
                name.format(label) + (f" in channel {number}" if len(channels) > 1 else "")
                for label in labels
                for number in range(1, len(channels) + 1)
                for name in CONTENT_NAMES
            ],
        ),
    )
    flags = []
    for what, values, gaussian, names in kinds:
        if not all(map(math.isfinite, values)):
            # A label is absent, which is a flag of its own.
            continue
        distance = gaussian.distance(values)
        if distance <= gaussian.limit:
            continue
        away = [
            abs(value - mean) / deviation
            for value, mean, deviation in zip(
                values, gaussian.mean, gaussian.deviation, strict=True
            )
        ]
        most = away.index(max(away))
        mean, reach = gaussian.mean[most], USUAL_DEVIATIONS * gaussian.deviation[most]
        flags.append(
            f"doubtful labels: {what} {distance:.2f} deviations from training's, "
            f"{gaussian.limit:.2f} at most are accepted (the furthest: {names[most]} is "
            f"{_fixed(values[most], 2)}, usually {_fixed(mean - reach, 2)} to "
            f"{_fixed(mean + reach, 2)} in training)"
        )
    return flags


def _label_box(labels: NDArray[np.uint8], steps: Sequence[int]) -> Slices:
    """The box around all labels, `steps` wider on every side where the volume is."""
    present = labels > 0
    box = []
    for axis, step in enumerate(steps):
        others = tuple(other for other in range(3) if other != axis)
        places = np.flatnonzero(present.any(axis=others))
        if not places.size:
            return slice(0, 0), slice(0, 0), slice(0, 0)
        box.append(slice(max(0, int(places[0]) - step), int(places[-1]) + 1 + step))
    return box[0], box[1], box[2]


def _nearest(fine: Grid, grid: Grid, box: Slices) -> tuple[NDArray[np.intp], ...]:
    """Per axis the voxel of `grid` that contains the centre of each voxel of `fine` in `box`."""
    found = []
    centre = grid.index(fine.world_mm((np.array(fine.shape) - 1) / 2))
    # In mm from centre to centre: zero but for rounding, where no other grid was requested.
    offset = ((centre - (np.array(grid.shape) - 1) / 2) * grid.spacing_mm).round(OFFSET_DECIMALS)
    for axis in range(3):
        size, spacing = fine.shape[axis], fine.spacing_mm[axis]
        count, coarse = grid.shape[axis], grid.spacing_mm[axis]
        start = (count * coarse - size * spacing) / 2 + offset[axis]
        place = (start + (np.arange(size)[box[axis]] + 0.5) * spacing) / coarse
        found.append(np.clip(np.floor(place).astype(np.intp), 0, count - 1))
    return tuple(found)


def _ranks_at(
    voxels: Image, index: tuple[NDArray[np.intp], ...], rule: IntensityRule
) -> NDArray[np.float64]:
    """Ranks of the voxels at `index`, one list per axis: the share of the foreground of the whole
    channel that is darker. Intensities are counted in equal levels."""
    low, high = voxels.min(), voxels.max()
    scale = np.float32(LEVELS) / (high - low)
    levels = np.minimum((voxels - low) * scale, np.float32(LEVELS - 1)).astype(np.uint8)
    counts = np.bincount(levels.ravel(), minlength=LEVELS).astype(np.float64)
    counts[: int(rule.foreground_share * LEVELS)] = 0.0
    ranks = (np.cumsum(counts) - counts / 2) / counts.sum()
    return np.asarray(ranks[levels[np.ix_(*index)]])


def _shape_statistics(
    mask: NDArray[np.bool_], fine: Grid
) -> tuple[NDArray[np.float64], list[float]]:
    """The centre of a label in world mm, up to a constant, and the statistics of SHAPE_NAMES."""
    places = np.argwhere(mask).astype(np.float64)
    count = len(places)
    if not count:
        return np.full(3, np.nan), [float("nan")] * len(SHAPE_NAMES)
    centre = places.mean(axis=0)
    places -= centre
    axes = fine.affine[:3, :3]
    # A voxel has an extent of its own.
    covariance = axes @ (places.T @ places / count + np.eye(3) / 12) @ axes.T
    x, y, z = np.diag(covariance).tolist()
    volume = float(np.log(count * np.prod(fine.spacing_mm)))
    return axes @ centre, [
        volume,
        *(float(np.log(one)) / 2 for one in (x, y, z)),
        float(covariance[1, 2] / np.sqrt(y * z)),
        float(np.log(np.linalg.det(covariance))) / 2 - volume,
    ]


def _shell(mask: NDArray[np.bool_], steps: Sequence[int]) -> NDArray[np.bool_]:
    """The voxels within so many `steps` of a label along an axis, its own among them."""
    shell = mask.copy()
    for axis, step in enumerate(steps):
        label, around = np.moveaxis(mask, axis, 0), np.moveaxis(shell, axis, 0)
        for far in range(1, min(step, len(label) - 1) + 1):
            around[far:] |= label[:-far]
            around[:-far] |= label[far:]
    return shell


def _content_statistics(inside: NDArray[np.float64], around: NDArray[np.float64]) -> list[float]:
    """The statistics of CONTENT_NAMES of the ranks inside a label and around it."""
    if not inside.size:
        return [float("nan")] * len(CONTENT_NAMES)
    mean = float(inside.mean())
    (high,) = percentiles(inside, (HIGH_PERCENTILE,))
    difference = float(around.mean()) - mean if around.size else 0.0
    return [mean, float(inside.std()), high.counted_from(0.0), difference]


def _edge_share(labels: NDArray[np.uint8], box: Slices, fine: Grid) -> float:
    """The share of the surface of all labels that lies on the faces of the volume."""
    part = labels[box] > 0
    surface = edge = 0.0
    for axis, size in enumerate(fine.spacing_mm):
        slices = np.moveaxis(part, axis, 0)
        if not len(slices):
            return 0.0
        face = float(np.prod(fine.spacing_mm)) / size
        ends = (np.count_nonzero(slices[0]), np.count_nonzero(slices[-1]))
        surface += (np.count_nonzero(slices[1:] != slices[:-1]) + sum(ends)) * face
        inner = box[axis].start > 0, box[axis].stop < labels.shape[axis]
        edge += sum(count for count, cut in zip(ends, inner, strict=True) if not cut) * face
    return edge / surface


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
