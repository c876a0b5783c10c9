"""What each route is shown of a case: the scan averaged to the route's spacing, and a random
acquisition of about its resolution."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray

from rare_trt.evaluation.cases import Case
from rare_trt.evaluation.simulation import (
    Profile,
    acquired,
    scanned_grid,
    with_hot_voxels,
    with_rician_noise,
)
from rare_trt.scan.geometry import Grid, Triple
from rare_trt.training.averaging import averaged, fitted
from rare_trt.training.passes import RouteInputs, route_inputs
from rare_trt.training.recipe import Recipe

# Octaves about a route's spacing within which it is shown acquisitions (root mean square of the
# three spacings): neighbouring routes overlap, so that the choice between them can be measured.
OCTAVES = (-0.5, 1.0)

# Fewer voxels than this along an axis are no scan.
FEWEST = 2


@dataclass(frozen=True, eq=False)
class Sample:
    """A scan as `route` is shown it, voxels [c, i, j, k] on `grid`, and the labels to find, on
    `truth_grid` at base spacing: those of `part` of the case, and beyond it background. Of one case
    all `aligned` samples show the same field of view, so that the gateways' features can be
    compared with the encoder's."""

    route: int
    aligned: bool
    voxels: NDArray[np.float32]
    grid: Grid
    labels: NDArray[np.uint8]
    truth_grid: Grid
    part: tuple[slice, slice, slice]


def averaged_inputs(
    voxels: NDArray[np.float32],
    spacing_mm: Triple,
    route: int,
    recipe: Recipe,
    device: torch.device,
) -> RouteInputs:
    """What `route` takes for voxels [c, i, j, k] averaged to its spacing, with the answer on the
    grid of those voxels; axes must be multiples of 2^route."""
    i, j, k = voxels.shape[1:]
    full = Grid((i, j, k), np.diag([*spacing_mm, 1.0]))
    low = _averaged_grid(full, 2**route)
    return route_inputs(averaged(voxels, 2**route), low, route, full, recipe, device)


def samples(case: Case, rng: Generator, recipe: Recipe) -> list[Sample]:
    """What is shown of `case`: to coarser routes both kinds; to route 0, which takes most of the
    time, either."""
    shown = aligned_samples(case, rng, recipe.network.routes)
    if rng.random() < recipe.acquisition.simulated_share:
        shown[0] = simulated_sample(case, rng, 0, recipe)
    return shown + [simulated_sample(case, rng, one.route, recipe) for one in shown[1:]]


def aligned_samples(case: Case, rng: Generator, routes: int) -> list[Sample]:
    """`case` averaged to every route's spacing, all of one field of view."""
    multiple = 2 ** (routes - 1)
    keep = []
    for n in case.labels.shape:
        start = int(rng.integers(0, n % multiple + 1))
        cut = n > multiple and rng.random() < 0.5
        keep.append(slice(start, start + n - n % multiple) if cut else slice(0, n))
    part = (keep[0], keep[1], keep[2])
    voxels, labels = fitted(case.voxels[(slice(None), *part)], case.labels[part], multiple)
    i, j, k = labels.shape
    full = Grid((i, j, k), np.diag([*case.grid.spacing_mm, 1.0]))
    return [
        Sample(r, True, averaged(voxels, 2**r), _averaged_grid(full, 2**r), labels, full, part)
        for r in range(routes)
    ]


def drawn_spacing(rng: Generator, route: int, recipe: Recipe) -> Triple:
    """Random spacings for `route`: isotropic, one axis coarser, or one axis finer."""
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


def simulated_sample(case: Case, rng: Generator, route: int, recipe: Recipe) -> Sample:
    """A random acquisition of `case` for `route`."""
    spacing = drawn_spacing(rng, route, recipe)
    extent, step = np.array(case.grid.extent_mm), np.array(spacing)
    # The last voxel ends inside the object, or beyond its border.
    inside = rng.random(3) < 0.6
    shape = np.where(inside, np.floor(extent / step + 1e-6), np.ceil(extent / step - 1e-6))
    shape = np.maximum(shape, FEWEST).astype(int)
    start = rng.uniform(0.0, 1.0, 3) * (extent - shape * step)
    i, j, k = shape.tolist()
    low = scanned_grid(case.grid, spacing, (start[0], start[1], start[2]), (i, j, k))
    profile: Profile = "box" if rng.random() < 0.6 else "gaussian"
    voxels = _corrupted(acquired(case.voxels, case.grid, low, profile), rng)
    fine = np.array(case.grid.spacing_mm)
    first = np.maximum(np.ceil(start / fine - 1e-6), 0).astype(int)
    last = np.floor((start + shape * step) / fine + 1e-6)
    last = np.minimum(last, case.grid.shape).astype(int)
    a, b, c = first.tolist()
    part = (slice(a, int(last[0])), slice(b, int(last[1])), slice(c, int(last[2])))
    i, j, k = (last - first).tolist()
    truth_grid = case.grid.box((a, b, c), (i, j, k))
    return Sample(route, False, voxels, low, case.labels[part], truth_grid, part)


def _corrupted(voxels: NDArray[np.float32], rng: Generator) -> NDArray[np.float32]:
    """Noise of a magnitude image, and now and then spikes; voxels run from about 0 to 1."""
    if rng.random() < 0.3:
        voxels = with_rician_noise(np.maximum(voxels, 0.0), rng.uniform(0.0, 0.06), rng)
    if rng.random() < 0.1:
        share, factor = rng.uniform(0.0, 0.002), rng.uniform(1.0, 10.0)
        voxels = with_hot_voxels(voxels, float(share), float(factor), rng)
    return voxels


def _averaged_grid(full: Grid, factor: int) -> Grid:
    i, j, k = (n // factor for n in full.shape)
    si, sj, sk = (s * factor for s in full.spacing_mm)
    return full.regrid((si, sj, sk), (i, j, k))
