"""The learning rate over a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

WARM_UP_SHARE: Final = 0.1


def learning_rate(step: int, batches: int, cycles: Sequence[int], peak: float) -> float:
    """Returns the learning rate of optimiser step `step`, counted from 0 over the whole run.

    Each of `cycles` lasts so many epochs of `batches` steps: over its first tenth the rate rises
    linearly to `peak`, then falls to zero along half a cosine. Raises ValueError for a step after
    the last cycle. Source: Loshchilov, Hutter, "SGDR: Stochastic Gradient Descent with Warm
    Restarts", ICLR (2017).
    """
    for epochs in cycles:
        total = epochs * batches
        if step < total:
            warm = max(1.0, WARM_UP_SHARE * total)
            if step < warm:
                return peak * (step + 1) / warm
            progress = (step - warm) / max(1.0, total - warm)
            return peak * 0.5 * (1.0 + math.cos(math.pi * progress))
        step -= total
    raise ValueError(f"the run has ended {step} steps before this one")
