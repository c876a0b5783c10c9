"""Dice of every route on held-out cases, on the labels' own grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from rare_trt.evaluation.cases import Case
from rare_trt.evaluation.dice import dice
from rare_trt.training.downsampling import pad_to_multiple
from rare_trt.training.inputs import downsampled_inputs
from rare_trt.training.network import RareUNet
from rare_trt.training.recipe import Recipe


@torch.no_grad()
def validate(network: RareUNet, cases: Sequence[Case], recipe: Recipe) -> NDArray[np.float64]:
    """Returns Dice [case, route, label - 1] of scans averaged to each route's spacing.

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
    voxels, truth = pad_to_multiple(case.voxels, case.labels, 2**route)
    inputs = downsampled_inputs(voxels, case.grid.spacing_mm, route, recipe, device)
    labels = inputs.predict(network, route)[0].argmax(0).cpu().numpy().astype(np.uint8)
    return dice(labels, truth, recipe.network.classes)
