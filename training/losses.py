"""The loss of RARE-UNet: 0.35 cross-entropy + 0.65 soft Dice per route, and gateway consistency."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

CROSS_ENTROPY_WEIGHT = 0.35
DICE_WEIGHT = 0.65


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """One-hot encodes labels int64 [n, i, j, k] as float [n, classes, i, j, k]."""
    return functional.one_hot(labels, classes).movedim(-1, 1).float()


def soft_dice_loss(probabilities: Tensor, target: Tensor) -> Tensor:
    """Returns 1 - soft Dice of probabilities and target probabilities, both
    [n, classes, i, j, k], averaged over the labels without the background (label 0)."""
    axes = (0, 2, 3, 4)
    overlap = (probabilities * target).sum(axes)[1:]
    size = (probabilities + target).sum(axes)[1:]
    return 1.0 - ((2.0 * overlap + 1.0) / (size + 1.0)).mean()


def segmentation_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Returns the loss of logits against the target probabilities, both [n, classes, i, j, k]."""
    logits = logits.float()
    cross_entropy = functional.cross_entropy(logits, target)
    dice_loss = soft_dice_loss(torch.softmax(logits, dim=1), target)
    return CROSS_ENTROPY_WEIGHT * cross_entropy + DICE_WEIGHT * dice_loss


def consistency_loss(gateways: Sequence[Tensor], encoder: Sequence[Tensor]) -> Tensor:
    """Returns the mean squared distance of each gateway's features from the encoder's at the same
    level, both [n, c, i, j, k].

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
