"""Dice of every route on held-out cases, on the labels' own grid."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

import numpy as np
import torch
from numpy.typing import NDArray

from rare_trt.evaluation.cases import Case
from rare_trt.evaluation.dice import dice
from rare_trt.training.downsampling import pad_to_multiple
from rare_trt.training.inputs import downsampled_inputs
from rare_trt.training.network import RareUNet
from rare_trt.training.recipe import Recipe
from rare_trt.training.samples import own_route


@torch.no_grad()
def validate(network: RareUNet, cases: Sequence[Case], recipe: Recipe) -> NDArray[np.float64]:
    """Returns Dice [case, route, label - 1] of scans averaged to each route's spacing; NaN on
    routes finer than the case.

    Whatever the scan's resolution, labels are computed at base spacing and compared with the full
    manual label. Afterwards the network is in training mode.
    """
    network.eval()
    device = next(network.parameters()).device
    scores = [
        [
            _route_dice(network, case, route, recipe, device)
            for route in range(recipe.network.routes)
        ]
        for case in cases
    ]
    network.train()
    return np.array(scores)


def _route_dice(
    network: RareUNet, case: Case, route: int, recipe: Recipe, device: torch.device
) -> list[float]:
    own = own_route(case, recipe)
    if route < own:
        return [nan] * (recipe.network.classes - 1)
    factor = 2 ** (route - own)
    voxels, truth = pad_to_multiple(case.voxels, case.labels, factor)
    inputs = downsampled_inputs(voxels, case.grid.spacing_mm, factor, route, recipe, device)
    labels = inputs.predict(network, route)[0].argmax(0).cpu().numpy().astype(np.uint8)
    return dice(labels, truth, recipe.network.classes)
