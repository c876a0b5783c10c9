"""The one graph of a route as a torch module: voxels in, labels out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rare_trt.training.inputs import resample
from rare_trt.training.network import RareUNet


class RouteGraph(nn.Module):
    """Resampling, network, resampling and arg-max of one route.

    Takes image float32 [1, c, i, j, k] and six matrices, in_* [I, i] and out_* [oi, I]; returns
    labels uint8 [1, oi, oj, ok].
    """

    def __init__(self, network: RareUNet, route: int) -> None:
        super().__init__()
        self.network = network
        self.route = route

    def logits(self, image: Tensor, *matrices: Tensor) -> Tensor:
        """Logits [1, classes, oi, oj, ok] on the output grid; `matrices` are in_* and out_*."""
        in_i, in_j, in_k, out_i, out_j, out_k = matrices
        working = resample(image, in_i, in_j, in_k)
        return resample(self.network(working, self.route), out_i, out_j, out_k)

    def forward(
        self,
        image: Tensor,
        in_i: Tensor,
        in_j: Tensor,
        in_k: Tensor,
        out_i: Tensor,
        out_j: Tensor,
        out_k: Tensor,
    ) -> Tensor:
        """Labels uint8 [1, oi, oj, ok] on the output grid."""
        return argmax_labels(self.logits(image, in_i, in_j, in_k, out_i, out_j, out_k))


def argmax_labels(logits: Tensor) -> Tensor:
    """Labels uint8 [n, ...], the arg-max of `logits` [n, classes, ...]; ties go to the lower label.

    A chain of comparisons, because TensorRT turns ArgMax into a slow TopK, and casts to uint8 only
    from float.
    """
    best, label = logits[:, 0], torch.zeros_like(logits[:, 0])
    for value in range(1, logits.shape[1]):
        score = logits[:, value]
        better = score > best
        best = torch.where(better, score, best)
        label = torch.where(better, float(value), label)
    return label.to(torch.uint8)
