"""Tiled inference: runs a prepared scan through a session, tile by tile, padded to buckets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rare_trt.constants import BUCKET
from rare_trt.plan.resampling import ResamplingPlan, Tile, tiles
from rare_trt.scan.geometry import Shape
from rare_trt.sessions.session import Inputs, Runner
from rare_trt.stopwatch import Stopwatch


@dataclass(frozen=True, eq=False)
class PreparedScan:
    """A scan ready for one route: `image` [c, i, j, k], normalised, and its resampling plan.

    Working shapes beyond `max_shape` are run in tiles. `truth` holds the labels [oi, oj, ok] to
    compare with, uint8 on the plan's output grid, or None.
    """

    image: NDArray[np.float32]
    plan: ResamplingPlan
    max_shape: Shape
    truth: NDArray[np.uint8] | None = None

    def inputs(self) -> Iterator[Inputs]:
        """Yields the graph's inputs tile by tile."""
        return (graph_inputs(self.image, tile) for tile in tiles(self.plan, self.max_shape))


def run_tiles(
    session: Runner, scan: PreparedScan, clock: Stopwatch | None = None
) -> NDArray[np.uint8]:
    """Returns labels [oi, oj, ok] of `scan` on its plan's output grid."""
    clock = clock or Stopwatch()
    whole = np.zeros(scan.plan.output_shape, np.uint8)
    for tile in tiles(scan.plan, scan.max_shape):
        with clock("inputs"):
            inputs = graph_inputs(scan.image, tile)
        labels = session.run(inputs, clock)
        i, j, k = (len(matrix) for matrix in tile.out_matrices)
        with clock("labels"):
            whole[tile.output] = labels[:i, :j, :k]
    return whole


def graph_inputs(image: NDArray[np.float32], tile: Tile) -> Inputs:
    """Returns the graph's inputs for one tile of `image` [c, i, j, k], axes padded to buckets."""
    slab = image[(slice(None), *tile.image)]
    i, j, k = tile.in_matrices
    oi, oj, ok = tile.out_matrices
    inputs: Inputs = {"image": _pad(slab, (1, 2, 3))[None]}
    inputs |= {"in_i": _pad(i, (1,)), "in_j": _pad(j, (1,)), "in_k": _pad(k, (1,))}
    return inputs | {"out_i": _pad(oi, (0,)), "out_j": _pad(oj, (0,)), "out_k": _pad(ok, (0,))}


def _pad(array: NDArray[np.float32], axes: Sequence[int]) -> NDArray[np.float32]:
    shape = list(array.shape)
    for axis in axes:
        shape[axis] += -shape[axis] % BUCKET
    padded = np.zeros(shape, np.float32)
    padded[tuple(slice(0, n) for n in array.shape)] = array
    return padded
