"""A planned run through a session: tile by tile, inputs padded to buckets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rare_trt.plan.resampling import BUCKET, Plan, Tile, tiles
from rare_trt.scan.geometry import Shape
from rare_trt.sessions.session import Inputs, Runs
from rare_trt.stopwatch import Stopwatch


def answered(
    session: Runs,
    image: NDArray[np.float32],
    steps: Plan,
    max_shape: Shape,
    clock: Stopwatch | None = None,
) -> NDArray[np.uint8]:
    """Labels of `image` [c, i, j, k], normalised, on the plan's output grid.

    Working shapes beyond `max_shape` are run in tiles.
    """
    clock = clock or Stopwatch()
    answer = np.zeros(steps.output_shape, np.uint8)
    for tile in tiles(steps, max_shape):
        with clock("inputs"):
            inputs = graph_inputs(image, tile)
        labels = session.run(inputs, clock)
        i, j, k = (len(matrix) for matrix in tile.out_matrices)
        with clock("labels"):
            answer[tile.output] = labels[:i, :j, :k]
    return answer


def graph_inputs(image: NDArray[np.float32], tile: Tile) -> Inputs:
    """What the graph takes for one tile of `image` [c, i, j, k]; axes are padded to buckets."""
    slab = image[(slice(None), *tile.image)]
    i, j, k = tile.in_matrices
    oi, oj, ok = tile.out_matrices
    inputs: Inputs = {"image": _padded(slab, (1, 2, 3))[None]}
    inputs |= {"in_i": _padded(i, (1,)), "in_j": _padded(j, (1,)), "in_k": _padded(k, (1,))}
    return inputs | {
        "out_i": _padded(oi, (0,)),
        "out_j": _padded(oj, (0,)),
        "out_k": _padded(ok, (0,)),
    }


def _padded(array: NDArray[np.float32], axes: Sequence[int]) -> NDArray[np.float32]:
    shape = list(array.shape)
    for axis in axes:
        shape[axis] += -shape[axis] % BUCKET
    padded = np.zeros(shape, np.float32)
    padded[tuple(slice(0, n) for n in array.shape)] = array
    return padded
