"""The loss of RARE-UNet: 0.35 cross-entropy + 0.65 soft Dice per route, and gateway consistency."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

CROSS_ENTROPY_WEIGHT = 0.35
DICE_WEIGHT = 0.65


def label_shares(labels: Tensor, classes: int) -> Tensor:
    """Labels int64 [n, i, j, k] as what each class has of each voxel, float [n, classes, i, j, k]:
    all or nothing."""
    return functional.one_hot(labels, classes).movedim(-1, 1).float()


def segmentation_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Logits against what each class has of each voxel in truth, both [n, classes, i, j, k]; Dice
    leaves out label 0."""
    logits = logits.float()
    share = torch.softmax(logits, dim=1)
    axes = (0, 2, 3, 4)
    overlap = (share * truth).sum(axes)[1:]
    size = (share + truth).sum(axes)[1:]
    dice = ((2.0 * overlap + 1.0) / (size + 1.0)).mean()
    return CROSS_ENTROPY_WEIGHT * functional.cross_entropy(logits, truth) + DICE_WEIGHT * (
        1.0 - dice
    )


def consistency_loss(gateways: Sequence[Tensor], encoder: Sequence[Tensor]) -> Tensor:
    """Mean squared distance of each gateway's features from the encoder's at the same level.

    The encoder's features (of the scan at base spacing) are the target and get no gradient. Where
    one route takes a scan's own voxels and another resamples them, grids can differ by a voxel:
    such a level is left out.
    """
    distances = [
        functional.mse_loss(gate.float(), level.detach().float())
        for gate, level in zip(gateways, encoder, strict=True)
        if gate.shape == level.shape
    ]
    return torch.stack(distances).mean() if distances else torch.zeros(())
