"""Unbiased volumes: constants on the heads' logits, set once the network is trained.

Soft Dice rewards a label that is a little too large over one that is a little too small, so a
trained network finds volumes a few percent too large, the more so the coarser the scan. A constant
on each head's logits moves every border by the same probability: it is chosen such that the mean
signed error of each label's volume over the training cases is zero. Dice hardly changes
(docs/decisions/balanced-volumes.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from rare_trt.evaluation.cases import Case
from rare_trt.plan.resampling import axis_matrices
from rare_trt.scan.geometry import Grid
from rare_trt.training.inputs import route_inputs
from rare_trt.training.network import RareUNet
from rare_trt.training.recipe import Recipe
from rare_trt.training.samples import own_route

# The largest shift of a logit, far more than any trained network needs.
LARGEST: Final = 4.0
HALVINGS: Final = 12

# Voxels over which volumes are balanced: some 500 crops of the hippocampus, 10 heads at 1 mm.
MOST_VOXELS: Final = 30_000_000
SWEEPS: Final = 3


@torch.no_grad()
def balance_volumes(network: RareUNet, cases: Sequence[Case], recipe: Recipe) -> None:
    """Sets the biases of the heads of `network` such that volumes over `cases` have no bias.

    Each route is balanced over the spacings it is chosen for: its own, and half-way to the next.
    Afterwards the network is in training mode.
    """
    network.eval()
    routes = range(recipe.network.routes)
    for route in tqdm(routes, "balancing", unit="route", leave=False):
        factors = [1.0] if route == routes[-1] else [1.0, 1.5]
        pairs = [
            _predict(
                network, case, factor * 2.0 ** (route - own_route(case, recipe)), route, recipe
            )
            for case in _enough(cases, route, recipe)
            for factor in factors
        ]
        shift = volume_shift([logits for logits, _ in pairs], [labels for _, labels in pairs])
        bias = network.get_parameter(f"heads.{route}.bias")
        bias.add_(torch.from_numpy(shift).to(bias.device))
    network.train()


def _enough(cases: Sequence[Case], route: int, recipe: Recipe) -> list[Case]:
    """Those of `cases` that `route` serves, in a random order that is always the same, until they
    have `MOST_VOXELS`: all of them where they are small."""
    chosen: list[Case] = []
    voxels = 0
    for index in np.random.default_rng(recipe.seed).permutation(len(cases)):
        case = cases[index]
        if own_route(case, recipe) <= route and voxels < MOST_VOXELS:
            chosen.append(case)
            voxels += case.labels.size
    return chosen


def volume_shift(
    logits: Sequence[NDArray[np.float32]], truths: Sequence[NDArray[np.uint8]]
) -> NDArray[np.float32]:
    """Returns the constants [class] to add to `logits` [class, i, j, k], one array per scan, so
    that the mean signed relative error of each label's volume against `truths` [i, j, k] is zero.

    It is 0 for the background and for labels that no case has. The volume of a label grows with its
    own shift, so each is found by bisection, in turn, until they agree.
    """
    shift = np.zeros(logits[0].shape[0], np.float32)
    present = [label for label in range(1, len(shift)) if any((t == label).any() for t in truths)]
    for _ in range(SWEEPS):
        for label in present:
            low, high = -LARGEST, LARGEST
            for _ in range(HALVINGS):
                shift[label] = (low + high) / 2
                if _volume_error(logits, truths, shift, label) > 0:
                    high = shift[label]
                else:
                    low = shift[label]
    return shift


def _volume_error(
    logits: Sequence[NDArray[np.float32]],
    truths: Sequence[NDArray[np.uint8]],
    shift: NDArray[np.float32],
    label: int,
) -> float:
    """Mean signed relative error of the volume of `label`, over the cases that have it."""
    errors = []
    for scan, truth in zip(logits, truths, strict=True):
        expected = np.count_nonzero(truth == label)
        if expected:
            others = [scan[c] + shift[c] for c in range(len(scan)) if c != label]
            found = np.count_nonzero(scan[label] + shift[label] > np.max(others, axis=0))
            errors.append(found / expected - 1.0)
    return float(np.mean(errors))


def _predict(
    network: RareUNet, case: Case, factor: float, route: int, recipe: Recipe
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Logits along `route` of `case` as a scan of `factor` times its spacing, and the labels.

    The scan ends, as a scanner's does, with the last whole voxel, but has one where none is whole.
    """
    shape = [max(1, int(n / factor)) for n in case.labels.shape]
    part = tuple(slice(0, int(n * factor)) for n in shape)
    labels = case.labels[part]
    full = Grid((labels.shape[0], labels.shape[1], labels.shape[2]), case.grid.affine)
    si, sj, sk = (spacing * factor for spacing in full.spacing_mm)
    low = full.regrid((si, sj, sk), (shape[0], shape[1], shape[2]))
    i, j, k = axis_matrices(full, low)
    voxels = case.voxels[(slice(None), *part)]
    scan = np.einsum("ai,bj,ck,nijk->nabc", i, j, k, voxels, optimize=True).astype(np.float32)
    device = next(network.parameters()).device
    inputs = route_inputs(scan, low, route, full, recipe, device)
    logits: NDArray[np.float32] = inputs.predict(network, route)[0].cpu().numpy()
    return logits, labels
