"""Training samples: for every route a case averaged to the route's spacing, and a random
acquisition of about its resolution."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from rare_trt.evaluation.cases import Case
from rare_trt.evaluation.simulation import (
    Profile,
    acquire,
    add_hot_voxels,
    add_rician_noise,
    parallel_grid,
)
from rare_trt.scan.geometry import Grid, Slices, Triple
from rare_trt.training.downsampling import average_blocks, block_grid, pad_to_multiple
from rare_trt.training.recipe import Recipe

# Each route trains on acquisitions from half an octave below its spacing to one octave above (root
# mean square of the three spacings). Neighbouring routes overlap, so that the choice between them
# can be measured.
OCTAVES = (-0.5, 1.0)

# The share of a case's parts that lie about a labelled voxel.
LABELLED_SHARE = 0.65

# A simulated scan has at least as many voxels along each axis.
MIN_VOXELS = 2


@dataclass(frozen=True, eq=False)
class TrainingSample:
    """A scan for `route` and the labels to find in it.

    Voxels [c, i, j, k] lie on `grid`. Labels lie on `truth_grid`, at base spacing: those of the
    slices `part` of the case, and background beyond it. All `aligned` samples of one case have the
    same field of view, so that the gateways' features can be compared with the encoder's.
    """

    route: int
    aligned: bool
    voxels: NDArray[np.float32]
    grid: Grid
    labels: NDArray[np.uint8]
    truth_grid: Grid
    part: Slices


def draw_samples(case: Case, rng: Generator, recipe: Recipe) -> list[TrainingSample]:
    """Draws the samples of one step from `case`, for the routes that its own spacing serves.

    Coarser routes get an averaged scan and a simulated acquisition each; the case's own route,
    which takes most of the time, gets one of the two. With `recipe.patch_voxels` every route sees
    a part of the case of so many of its own voxels at most: a patch at base spacing, all of it on
    coarse routes.
    """
    first = own_route(case, recipe)
    part = draw_part(case, rng, first, recipe)
    samples = aligned_samples(part, rng, range(first, recipe.network.routes))
    if rng.random() < recipe.acquisition.simulated_share:
        samples[0] = simulate_sample(part, rng, first, recipe)
    return samples + [
        simulate_sample(draw_part(case, rng, one.route, recipe), rng, one.route, recipe)
        for one in samples[1:]
    ]


def own_route(case: Case, recipe: Recipe) -> int:
    """The route whose spacing is nearest to the case's own (mean of its axes, in octaves)."""
    octaves = float(np.log2(np.mean(case.grid.spacing_mm) / recipe.base_spacing_mm))
    return min(max(round(octaves), 0), recipe.network.routes - 1)


def draw_part(case: Case, rng: Generator, route: int, recipe: Recipe) -> Case:
    """A part of `case` that `route` sees as `recipe.patch_voxels` per axis at most; all of it where
    it is no larger, or without that entry.

    Most parts lie about a labelled voxel, so that small labels are seen; the others anywhere, so
    that the network learns where there are none.
    """
    if recipe.patch_voxels is None:
        return case
    size_mm = recipe.patch_voxels * recipe.base_spacing_mm * 2**route
    shape = np.array(case.labels.shape)
    size = np.minimum(shape, np.round(size_mm / np.array(case.grid.spacing_mm))).astype(int)
    if (size == shape).all():
        return case
    labelled = np.flatnonzero(case.labels)
    centre = rng.random(3) * shape
    if len(labelled) and rng.random() < LABELLED_SHARE:
        chosen = np.unravel_index(labelled[rng.integers(len(labelled))], case.labels.shape)
        centre = np.array(chosen) + rng.uniform(-0.35, 0.35, 3) * size
    first = np.clip(np.round(centre - size / 2), 0, shape - size).astype(int)
    a, b, c = first.tolist()
    i, j, k = size.tolist()
    part = (slice(a, a + i), slice(b, b + j), slice(c, c + k))
    return replace(
        case,
        voxels=case.voxels[(slice(None), *part)],
        labels=case.labels[part],
        grid=case.grid.box((a, b, c), (i, j, k)),
    )


def aligned_samples(case: Case, rng: Generator, routes: range) -> list[TrainingSample]:
    """Returns `case`, whose own spacing is that of the first of `routes`, averaged to the spacing
    of each of them, all with one field of view.

    Axes are cut at random, or padded at their end, to a multiple of the coarsest route's voxel.
    """
    multiple = 2 ** (routes[-1] - routes[0])
    slices = []
    for n in case.labels.shape:
        start = int(rng.integers(0, n % multiple + 1))
        cut = n > multiple and rng.random() < 0.5
        slices.append(slice(start, start + n - n % multiple) if cut else slice(0, n))
    part = (slices[0], slices[1], slices[2])
    voxels, labels = pad_to_multiple(case.voxels[(slice(None), *part)], case.labels[part], multiple)
    i, j, k = labels.shape
    full = Grid((i, j, k), np.diag([*case.grid.spacing_mm, 1.0]))
    return [
        TrainingSample(
            route=route,
            aligned=True,
            voxels=average_blocks(voxels, factor),
            grid=block_grid(full, factor),
            labels=labels,
            truth_grid=full,
            part=part,
        )
        for route, factor in ((route, 2 ** (route - routes[0])) for route in routes)
    ]


def draw_spacing(rng: Generator, route: int, recipe: Recipe) -> Triple:
    """Draws a voxel spacing in mm for `route`: isotropic, one axis coarser, or one axis finer."""
    rule = recipe.acquisition
    finest, coarsest = rule.spacing_mm
    if recipe.network.routes == 1:
        low, high = finest, coarsest
    else:
        centre = recipe.base_spacing_mm * 2**route
        low, high = (max(finest, min(coarsest, centre * 2**octave)) for octave in OCTAVES)
    size = np.exp(rng.uniform(np.log(low), np.log(high)))
    relative = np.ones(3)
    if rng.random() > 0.35:
        odd = rng.integers(3)
        ratio = np.exp(rng.uniform(0.0, np.log(rule.largest_ratio)))
        relative[odd] = ratio if rng.random() < 0.7 else 1.0 / ratio
    spacing = relative * size / sqrt(float((relative**2).mean()))
    i, j, k = np.clip(spacing, finest, coarsest).tolist()
    return i, j, k


def simulate_sample(case: Case, rng: Generator, route: int, recipe: Recipe) -> TrainingSample:
    """Simulates a random acquisition of `case` for `route`: spacing, place, slice profile, noise
    and hot voxels. The labels are those of the case's voxels that lie wholly inside the scan."""
    spacing = draw_spacing(rng, route, recipe)
    extent, step = np.array(case.grid.extent_mm), np.array(spacing)
    # The last voxel ends inside the object, or beyond its border.
    inside = rng.random(3) < 0.6
    shape = np.where(inside, np.floor(extent / step + 1e-6), np.ceil(extent / step - 1e-6))
    shape = np.maximum(shape, MIN_VOXELS).astype(int)
    start = rng.uniform(0.0, 1.0, 3) * (extent - shape * step)
    i, j, k = shape.tolist()
    low = parallel_grid(case.grid, spacing, (start[0], start[1], start[2]), (i, j, k))
    profile: Profile = "box" if rng.random() < 0.6 else "gaussian"
    voxels = _add_artefacts(acquire(case.voxels, case.grid, low, profile), rng)
    fine = np.array(case.grid.spacing_mm)
    first = np.maximum(np.ceil(start / fine - 1e-6), 0).astype(int)
    last = np.floor((start + shape * step) / fine + 1e-6)
    last = np.minimum(last, case.grid.shape).astype(int)
    a, b, c = first.tolist()
    part = (slice(a, int(last[0])), slice(b, int(last[1])), slice(c, int(last[2])))
    i, j, k = (last - first).tolist()
    truth_grid = case.grid.box((a, b, c), (i, j, k))
    return TrainingSample(route, False, voxels, low, case.labels[part], truth_grid, part)


def _add_artefacts(voxels: NDArray[np.float32], rng: Generator) -> NDArray[np.float32]:
    """Adds the noise of a magnitude image to some scans, and hot voxels to a few.

    The strengths are drawn for voxels that run from about 0 to 1.
    """
    if rng.random() < 0.3:
        voxels = add_rician_noise(np.maximum(voxels, 0.0), rng.uniform(0.0, 0.06), rng)
    if rng.random() < 0.1:
        share, factor = rng.uniform(0.0, 0.002), rng.uniform(1.0, 10.0)
        voxels = add_hot_voxels(voxels, float(share), float(factor), rng)
    return voxels
