"""Scans of lower resolution, made from one at base spacing as a scanner would have made them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from rare_trt.geometry import Grid, Triple
from rare_trt.training.averaging import averaged
from rare_trt.training.passes import RouteInputs, route_inputs
from rare_trt.training.recipe import Recipe


def averaged_inputs(
    voxels: NDArray[np.float32],
    spacing_mm: Triple,
    route: int,
    recipe: Recipe,
    device: torch.device,
) -> RouteInputs:
    """What `route` takes for voxels [c, i, j, k] averaged to its spacing, with the answer on the
    grid of those voxels; axes must be multiples of 2^route."""
    factor = 2**route
    i, j, k = voxels.shape[1:]
    full = Grid((i, j, k), np.diag([*spacing_mm, 1.0]))
    si, sj, sk = (s * factor for s in spacing_mm)
    low = full.regridded((si, sj, sk), (i // factor, j // factor, k // factor))
    return route_inputs(averaged(voxels, factor), low, route, full, recipe, device)
