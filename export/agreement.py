"""Check of an export: labels of the exported graph against those of the torch network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from rare_trt.export.graph import RouteGraph, argmax_labels
from rare_trt.sessions.session import INPUT_NAMES, Inputs, Session
from rare_trt.training.network import RareUNet

# A voxel may differ only where the two best logits are this close: rounding, not a fault.
MAX_MARGIN: Final = 1e-2
MAX_SHARE: Final = 1e-5


@dataclass(frozen=True)
class Agreement:
    """How far the graph of `route` is from the network over `voxels` voxels of real scans.

    `different` voxels get another label; `largest_margin` is the largest gap between the two best
    logits at one of them.
    """

    route: int
    voxels: int
    different: int
    largest_margin: float

    @property
    def within_bounds(self) -> bool:
        """Whether few enough voxels differ, and none where one logit is clearly the largest."""
        return self.different <= MAX_SHARE * self.voxels and self.largest_margin < MAX_MARGIN

    def __str__(self) -> str:
        return (
            f"route {self.route}: {self.different} of {self.voxels} voxels differ from torch "
            f"(largest logit margin {self.largest_margin:.2g})"
        )


@torch.no_grad()
def compare_with_network(
    network: RareUNet, route: int, session: Session, scans: Sequence[Inputs]
) -> Agreement:
    """Runs `scans` (the graph's seven inputs) through `session` and through torch in float32."""
    graph = RouteGraph(network, route).eval()
    voxels = different = 0
    margin = 0.0
    for inputs in scans:
        logits = graph.logits(*(torch.from_numpy(inputs[name]) for name in INPUT_NAMES))
        expected = argmax_labels(logits)[0].numpy()
        differs = session.run(inputs) != expected
        voxels += expected.size
        different += int(differs.sum())
        if differs.any():
            margin = max(margin, float(_logit_margins(logits)[differs].max()))
    return Agreement(route, voxels, different, margin)


def _logit_margins(logits: torch.Tensor) -> NDArray[np.float32]:
    """Largest minus second largest logit per voxel [oi, oj, ok] of `logits` [1, classes, ...]."""
    best = logits[0].topk(2, dim=0).values
    margins: NDArray[np.float32] = (best[0] - best[1]).numpy()
    return margins
