"""The inputs of one route as torch tensors, with the matrices of the runtime's own plan.

Training, validation, golden vectors and the check of an export all start from `route_inputs`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rare_trt.plan.resampling import plan_resampling
from rare_trt.scan.geometry import Grid, Triple
from rare_trt.scan.intensity import normalise
from rare_trt.training.downsampling import average_blocks, block_grid
from rare_trt.training.network import RareUNet
from rare_trt.training.recipe import Recipe


@dataclass(frozen=True, eq=False)
class RouteInputs:
    """The graph's seven inputs as tensors: image [1, c, i, j, k] and the six matrices.

    in_i [I, i], in_j [J, j], in_k [K, k] lead to the working grid; out_i [oi, I], out_j [oj, J],
    out_k [ok, K] lead from there to the output grid.
    """

    image: Tensor
    in_i: Tensor
    in_j: Tensor
    in_k: Tensor
    out_i: Tensor
    out_j: Tensor
    out_k: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """Returns the seven tensors in the graph's order."""
        return tuple(vars(self).values())

    def resample_image(self) -> Tensor:
        """Returns the image on the working grid, [1, c, I, J, K]."""
        return resample(self.image, self.in_i, self.in_j, self.in_k)

    def resample_logits(self, logits: Tensor) -> Tensor:
        """Returns logits [1, classes, I, J, K] on the output grid, [1, classes, oi, oj, ok]."""
        return resample(logits, self.out_i, self.out_j, self.out_k)

    def predict(self, network: RareUNet, route: int) -> Tensor:
        """Returns the logits of `network` along `route` on the output grid,
        [1, classes, oi, oj, ok]."""
        return self.resample_logits(network(self.resample_image(), route))


def resample(volume: Tensor, along_i: Tensor, along_j: Tensor, along_k: Tensor) -> Tensor:
    """Multiplies a volume [n, c, i, j, k] by one matrix per axis, [I, i], [J, j] and [K, k];
    returns [n, c, I, J, K]."""
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
    """Returns the inputs of `route` for stored voxels [c, i, j, k] on `grid`, with the labels to
    be computed on `output_grid`. Raises ValueError where the grids' axes are not parallel."""
    image = normalise(np.moveaxis(voxels, 0, 3), recipe.intensity)
    plan = plan_resampling(grid, recipe.route(route), output_grid)
    arrays = (image[None], *plan.in_matrices, *plan.out_matrices)
    return RouteInputs(*(torch.from_numpy(array).to(device) for array in arrays))


def downsampled_inputs(
    voxels: NDArray[np.float32],
    spacing_mm: Triple,
    factor: int,
    route: int,
    recipe: Recipe,
    device: torch.device,
) -> RouteInputs:
    """Returns the inputs of `route` for voxels [c, i, j, k] averaged in blocks of `factor`³, with
    the voxels' own grid as the output grid. The axes must be multiples of `factor`."""
    i, j, k = voxels.shape[1:]
    full = Grid((i, j, k), np.diag([*spacing_mm, 1.0]))
    low = block_grid(full, factor)
    return route_inputs(average_blocks(voxels, factor), low, route, full, recipe, device)
