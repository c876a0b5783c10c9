"""The training distribution of a package: the block `model.seen` of a manifest.

Measured on labelled scans as they are and as other scanners would make them: every acquisition of
the evaluation, and random ones for each route. So a coarse, padded or noisy scan of the same
anatomy lies inside the distribution, and another contrast or body part outside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from rare_trt.errors import RareTrtError, ScanError
from rare_trt.evaluation.cases import Case
from rare_trt.evaluation.measurements import acquisitions
from rare_trt.package.manifest import Model, RouteEntry
from rare_trt.package.reading import route_from_entry
from rare_trt.plan.routing import choose_route
from rare_trt.scan.field_of_view import select_regions
from rare_trt.scan.geometry import Grid, Triple, Volume
from rare_trt.scan.intensity import normalise
from rare_trt.scan.out_of_distribution import (
    NAMES,
    RouteDistribution,
    TrainingDistribution,
    block_means,
    statistics,
)
from rare_trt.training.recipe import Recipe
from rare_trt.training.samples import simulate_sample

# More cases change the ranges little.
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


def measure_training_distribution(
    cases: Sequence[Case], model: Model, routes: Sequence[RouteEntry], recipe: Recipe
) -> TrainingDistribution:
    """The distribution of `cases` and of simulated acquisitions of them; the same on every run.

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
    for number, case in enumerate(kept):
        for volume in _simulate(case, np.random.default_rng(number), recipe):
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
