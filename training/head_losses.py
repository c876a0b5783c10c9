"""The loss of the head stage: cross-entropy with weights per class, and soft Dice."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rare_trt.training.losses import CROSS_ENTROPY_WEIGHT, DICE_WEIGHT, soft_dice_loss


def fade_weights(
    weights: Sequence[float], classes: int, cycle: int, progress: float
) -> list[float]:
    """Class weights after `progress` (0 to 1) of a cycle (0, 1, ...): in the first `weights`, in
    the second they fade to 1 geometrically, and in each later one from the square root of where
    they began in the one before; 1 each where there are none."""
    exponent = 1.0 if cycle == 0 else (1.0 - progress) * 0.5 ** (cycle - 1)
    return [weight**exponent for weight in weights] or [1.0] * classes


def weighted_loss(logits: Tensor, truth: Tensor, weights: Sequence[float]) -> Tensor:
    """Logits against the share that each class has of each voxel, both [n, classes, i, j, k].

    The cross-entropy weighs each voxel by its classes' `weights`; Dice leaves out label 0.
    """
    logits = logits.float()
    log_shares = torch.log_softmax(logits, dim=1)
    weight = truth.new_tensor(list(weights)).view(1, -1, 1, 1, 1) * truth
    cross_entropy = -(weight * log_shares).sum() / weight.sum()
    dice_loss = soft_dice_loss(log_shares.exp(), truth)
    return CROSS_ENTROPY_WEIGHT * cross_entropy + DICE_WEIGHT * dice_loss
