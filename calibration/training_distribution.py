"""The training distribution: `model.seen` and `model.label_distribution` of a manifest.

Measured on labelled scans as they are and as other scanners would make them: every acquisition of
the evaluation, and random ones for each route. So a coarse, padded or noisy scan of the same
anatomy lies inside the distribution, and another contrast or body part outside. The labels are
those that the package finds in these scans. Further scans, of other scanners, can widen both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from nibabel.quaternions import angle_axis2mat
from numpy.random import Generator
from numpy.typing import NDArray

from rare_trt.errors import RareTrtError, ScanError
from rare_trt.evaluation.cases import Case
from rare_trt.evaluation.measurements import acquisitions
from rare_trt.package.manifest import Model, RouteEntry
from rare_trt.package.reading import Package, route_from_entry
from rare_trt.plan.routing import choose_route
from rare_trt.scan.field_of_view import select_regions
from rare_trt.scan.geometry import Grid, Triple, Volume
from rare_trt.scan.intensity import normalise
from rare_trt.scan.nifti import Scan
from rare_trt.scan.out_of_distribution import (
    NAMES,
    SHAPE_NAMES,
    Gaussian,
    LabelDistribution,
    LabelStatistics,
    RouteDistribution,
    RouteLabelDistribution,
    TrainingDistribution,
    block_means,
    statistics,
)
from rare_trt.segmenter import Segmenter
from rare_trt.training.recipe import Recipe
from rare_trt.training.samples import simulate_sample

# More cases change the distribution little.
MAX_CASES: Final = 64

# Random acquisitions of each case for each route.
SIMULATED: Final = 3

# Ranges lie between these percentiles of the scans, so that a few outliers do not widen them:
# spikes in more voxels than the intensity rule clips leave hardly any foreground. They are then
# widened by a share of their width on either side; inverted scans, noise and other contrasts lie
# far outside.
PERCENTILES: Final = (0.5, 99.5)
MARGIN: Final = 0.2

DIGITS: Final = 4


# Two of three scans are measured with the head turned in the scanner, by random angles of these
# deviations about the right, anterior and superior axes: the network is trained on tilted scans,
# and heads nod more than they turn. Scans on oblique grids stay as they are.
TURNED_SHARE: Final = 2 / 3
OBLIQUE_DEG: Final = 5.0
TURN_DEG: Final = (12.0, 6.0, 6.0)

# A route with fewer scans has no distribution of labels.
LEAST_SCANS: Final = 4

# Share of the covariance that is taken from its diagonal, so that few scans suffice.
SHRINKAGE: Final = 0.1
LEAST_VARIANCE: Final = 1e-6

# The largest accepted distances of shape and content, in multiples of the distance that the
# percentile of the scans has. Between the scans of two scanners the intensities under the labels
# differ more than their shape: docs/decisions/label-distribution.md.
LABEL_PERCENTILE: Final = 99.5
SHAPE_MARGIN: Final = 1.3
CONTENT_MARGIN: Final = 1.4

# Volumes are plausible up to so many times beyond those that were found.
VOLUME_MARGIN: Final = 1.3


def measure_training_distribution(
    cases: Sequence[Case],
    model: Model,
    routes: Sequence[RouteEntry],
    recipe: Recipe,
    others: Sequence[Volume] = (),
) -> TrainingDistribution:
    """The distribution of `cases`, of simulated acquisitions of them and of `others`; the same on
    every run.

    Cases that the runtime would refuse are left out. Raises RareTrtError where none is left.
    """
    kept: list[Case] = []
    images: list[NDArray[np.float32]] = []
    for case in cases:
        try:
            images.append(_prepare(_volume(case.voxels, case.grid), model)[0])
        except ScanError:
            continue
        kept.append(case)
    if not kept:
        raise RareTrtError(
            f"none of {len(cases)} scans fits the package; expected labelled scans of its field of "
            "view: name the data that the network was trained on"
        )
    patterns = _average_patterns(images, model)
    geometries = [route_from_entry(entry) for entry in routes]
    found: dict[int, list[list[dict[str, float]]]] = {entry.index: [] for entry in routes}
    extents: list[Triple] = []
    for volume in _all_volumes(kept, others, recipe):
        try:
            image, grid = _prepare(volume, model)
            spacing = grid.spacing_mm
            route = choose_route(spacing, geometries, model.spacing_limits_mm, None).route
        except ScanError:
            # The runtime refuses it, so it never compares it.
            continue
        extents.append(grid.extent_mm)
        found[route].append(
            [statistics(v, model.intensity, p) for v, p in zip(image, patterns, strict=True)]
        )
    low, high = _widen(np.min(extents, axis=0), np.max(extents, axis=0))
    return TrainingDistribution(
        scans=len(extents),
        min_view_mm=_triple(np.maximum(low, 1.0)),
        max_view_mm=_triple(high),
        patterns=tuple(tuple(p.ravel().round(DIGITS).tolist()) for p in patterns),
        routes=tuple(
            RouteDistribution(route, tuple(_ranges(channel) for channel in zip(*rows, strict=True)))
            for route, rows in found.items()
            if rows
        ),
    )


def measure_label_distribution(
    package: Package, cases: Sequence[Case], recipe: Recipe, others: Sequence[Volume] = ()
) -> tuple[LabelDistribution, tuple[tuple[float, float], ...]]:
    """The distribution of the labels that `package` finds in `cases`, in simulated acquisitions of
    them and in `others`, and the range of each label's volume in mm3.

    The same on every run. Scans in which a label is not found are left out.
    """
    model = package.manifest.model
    rows: dict[int, list[LabelStatistics]] = {e.index: [] for e in package.manifest.routes}
    rng = np.random.default_rng(0)
    scans = 0
    with Segmenter(package) as segmenter:
        for volume in _all_volumes(cases, others, recipe):
            try:
                result = segmenter.segment(Scan(Volume(volume.voxels, _turned(volume.grid, rng))))
            except ScanError:
                continue
            scans += 1
            (box,) = result.boxes
            if np.isfinite(box.label_statistics.shape).all():
                rows[result.route.route].append(box.label_statistics)
    routes = tuple(
        RouteLabelDistribution(
            route,
            _gaussian([one.shape for one in found], SHAPE_MARGIN),
            _gaussian([one.content for one in found], CONTENT_MARGIN),
        )
        for route, found in rows.items()
        if len(found) >= LEAST_SCANS
    )
    shapes = [one.shape for found in rows.values() for one in found]
    volumes = tuple(
        _volume_range(
            [float(np.exp(shape[label * len(SHAPE_NAMES)])) for shape in shapes],
            [_manual_volume(case, label + 1) for case in cases],
            known,
        )
        for label, known in enumerate(model.volume_range_mm3)
    )
    return LabelDistribution(scans, routes), volumes


def _manual_volume(case: Case, label: int) -> float:
    """The volume of `label` in mm3 in the labels of `case`."""
    return float(np.count_nonzero(case.labels == label) * np.prod(case.grid.spacing_mm))


def _volume_range(
    found: Sequence[float], manual: Sequence[float], known: tuple[float, float]
) -> tuple[float, float]:
    """Plausible volumes, from those found but for a few outliers and the manual ones; `known` where
    none was found."""
    there = [volume for volume in manual if volume > 0.0]
    if not found or not there:
        return known
    low, high = np.percentile(found, PERCENTILES)
    return (
        float(round(min(low, *there) / VOLUME_MARGIN)),
        float(round(max(high, *there) * VOLUME_MARGIN)),
    )


def _turned(grid: Grid, rng: Generator) -> Grid:
    """`grid` about the same first voxel, in a world turned by random angles."""
    turn = np.eye(4)
    if rng.random() < TURNED_SHARE and grid.obliqueness_deg < OBLIQUE_DEG:
        for angle, axis in zip(rng.normal(0.0, TURN_DEG), np.eye(3), strict=True):
            turn[:3, :3] = angle_axis2mat(np.radians(angle), axis) @ turn[:3, :3]
    return Grid(grid.shape, turn @ grid.affine)


def _gaussian(rows: Sequence[Sequence[float]], margin: float) -> Gaussian:
    """The distribution of `rows` of statistics, which accepts nearly all of them by a `margin`."""
    values = np.array(rows)
    mean = values.mean(axis=0)
    covariance = np.cov(values.T)
    variances = np.diag(covariance)
    covariance = (1.0 - SHRINKAGE) * covariance + SHRINKAGE * np.diag(variances)
    covariance += LEAST_VARIANCE * np.eye(len(mean))
    whitening = np.linalg.inv(np.linalg.cholesky(covariance))
    gaussian = Gaussian(
        mean=_significant(mean),
        deviation=_significant(np.sqrt(np.diag(covariance))),
        whitening=tuple(_significant(row[: size + 1]) for size, row in enumerate(whitening)),
        limit=1.0,
    )
    distances = [gaussian.distance(row) for row in rows]
    limit = margin * float(np.percentile(distances, LABEL_PERCENTILE))
    return replace(gaussian, limit=round(limit, DIGITS))


def _significant(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(f"{value:.5g}") for value in values)


def _all_volumes(
    cases: Sequence[Case], others: Sequence[Volume], recipe: Recipe
) -> Iterator[Volume]:
    """Every acquisition of `cases`, and `others`."""
    for number, case in enumerate(cases):
        yield from _simulate(case, np.random.default_rng(number), recipe)
    yield from others


def _average_patterns(
    images: Sequence[NDArray[np.float32]], model: Model
) -> list[NDArray[np.float64]]:
    """The mean pattern of each channel over normalised `images` [c, i, j, k]."""
    found = []
    for channel in range(len(model.channels)):
        stack = np.stack([block_means(image[channel], model.intensity) for image in images])
        known = np.isfinite(stack)
        total = np.where(known, stack, 0.0).sum(axis=0)
        # A block that is air in every case gets the mean of all blocks.
        overall = stack[known].mean()
        count = known.sum(axis=0)
        found.append(np.where(count > 0, total / np.maximum(count, 1), overall))
    return found


def _simulate(case: Case, rng: Generator, recipe: Recipe) -> Iterator[Volume]:
    """`case` as it is, and every simulated acquisition of it."""
    yield _volume(case.voxels, case.grid)
    for acquisition in acquisitions(recipe.base_spacing_mm):
        yield acquisition.make(case, rng)[0]
    for route in range(recipe.network.routes):
        for _ in range(SIMULATED):
            sample = simulate_sample(case, rng, route, recipe)
            yield _volume(sample.voxels, sample.grid)


def _prepare(volume: Volume, model: Model) -> tuple[NDArray[np.float32], Grid]:
    """Normalised voxels [c, i, j, k] and their grid, as the runtime prepares them."""
    (region,) = select_regions(volume, model.field_of_view_mm, None)
    return normalise(region.voxels, model.intensity), region.grid


def _volume(voxels: NDArray[np.float32], grid: Grid) -> Volume:
    return Volume(np.moveaxis(voxels, 0, 3), grid)


def _ranges(rows: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    found = {}
    for name in NAMES:
        low, high = np.percentile([row[name] for row in rows], PERCENTILES)
        low, high = _widen(low, high)
        found[name] = (round(float(low), DIGITS), round(float(high), DIGITS))
    return found


def _widen(
    low: NDArray[np.float64], high: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return low - MARGIN * (high - low), high + MARGIN * (high - low)


def _triple(values: NDArray[np.float64]) -> Triple:
    i, j, k = values.round(1).tolist()
    return i, j, k
