"""The learning rate over a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

WARM_UP_SHARE: Final = 0.1


def place_in_cycle(step: int, batches: int, cycles: Sequence[int]) -> tuple[int, int, int]:
    """Returns the cycle (0, 1, ...) of optimiser step `step`, counted from 0 over the whole run,
    the step counted from the cycle's first, and how many steps the cycle has.

    Each of `cycles` lasts so many epochs of `batches` steps. Raises ValueError for a step after the
    last cycle.
    """
    for cycle, epochs in enumerate(cycles):
        total = epochs * batches
        if step < total:
            return cycle, step, total
        step -= total
    raise ValueError(f"the run has ended {step} steps before this one")


def learning_rate(step: int, batches: int, cycles: Sequence[int], peak: float) -> float:
    """Returns the learning rate of optimiser step `step`, as `place_in_cycle` takes it.

    Over the first tenth of each cycle the rate rises linearly to `peak`, then falls to zero along
    half a cosine. Source: Loshchilov, Hutter, "SGDR: Stochastic Gradient Descent with Warm
    Restarts", ICLR (2017).
    """
    _, step, total = place_in_cycle(step, batches, cycles)
    warm = max(1.0, WARM_UP_SHARE * total)
    if step < warm:
        return peak * (step + 1) / warm
    progress = (step - warm) / max(1.0, total - warm)
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))
