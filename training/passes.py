"""One scan through one route in torch, with the matrices of the runtime's own plan.

The loss, the validation and the proof of an export all start from `route_inputs`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rare_trt.plan.resampling import ResamplingPlan, plan_resampling
from rare_trt.scan.geometry import Grid
from rare_trt.scan.intensity import normalise
from rare_trt.training.recipe import Recipe


@dataclass(frozen=True, eq=False)
class RouteInputs:
    """The graph's seven inputs as tensors: image [1, c, i, j, k] and the six matrices."""

    image: Tensor
    in_i: Tensor
    in_j: Tensor
    in_k: Tensor
    out_i: Tensor
    out_j: Tensor
    out_k: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(vars(self).values())

    def working(self) -> Tensor:
        """The image on the working grid, [1, c, I, J, K]."""
        return resampled(self.image, self.in_i, self.in_j, self.in_k)

    def answered(self, logits: Tensor) -> Tensor:
        """Logits [1, classes, I, J, K] on the output grid, [1, classes, oi, oj, ok]."""
        return resampled(logits, self.out_i, self.out_j, self.out_k)


def resampled(volume: Tensor, along_i: Tensor, along_j: Tensor, along_k: Tensor) -> Tensor:
    """[n, c, i, j, k] by one matrix per axis -> [n, c, I, J, K]."""
    volume = torch.matmul(along_j, torch.matmul(volume, along_k.transpose(0, 1)))
    n, c, i, j, k = volume.shape
    flat = torch.matmul(along_i, volume.reshape(n, c, i, j * k))
    return flat.reshape(n, c, along_i.shape[0], j, k)


def route_inputs(
    voxels: NDArray[np.float32],
    grid: Grid,
    route: int,
    output_grid: Grid,
    recipe: Recipe,
    device: torch.device,
) -> RouteInputs:
    """Stored voxels [c, i, j, k] on `grid` -> what the graph of `route` takes."""
    image = normalise(np.moveaxis(voxels, 0, 3), recipe.intensity)
    steps: ResamplingPlan = plan_resampling(grid, recipe.route(route), output_grid)
    arrays = (image[None], *steps.in_matrices, *steps.out_matrices)
    return RouteInputs(*(torch.from_numpy(array).to(device) for array in arrays))
