"""Overlap of labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def dice(found: NDArray[np.uint8], truth: NDArray[np.uint8], classes: int) -> list[float]:
    """Returns the Dice coefficient of each label from 1 to `classes` - 1 between two arrays of one
    shape; it is 1 where neither has the label."""
    scores = []
    for label in range(1, classes):
        size = int((found == label).sum() + (truth == label).sum())
        both = int(((found == label) & (truth == label)).sum())
        scores.append(2.0 * both / size if size else 1.0)
    return scores
