"""Sessions run one route's graph on one backend: seven arrays in, labels out."""

from __future__ import annotations

from typing import Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rare_trt.backends import Arithmetic
from rare_trt.stopwatch import Stopwatch

INPUT_NAMES: Final = ("image", "in_i", "in_j", "in_k", "out_i", "out_j", "out_k")
LABELS: Final = "labels"

# Not an output; the name of a tensor inside every graph.
LOGITS: Final = "logits"

Inputs: TypeAlias = dict[str, NDArray[np.float32]]


class Runs(Protocol):
    """Anything that runs one route's graph."""

    def run(self, inputs: Inputs, clock: Stopwatch | None = None) -> NDArray[np.uint8]:
        """Labels [oi, oj, ok] from image [1, c, i, j, k] and six matrices.

        `clock` is told how long copying in (`inputs`), the graph and copying out (`labels`) took.
        """
        ...


class Session(Runs, Protocol):
    """One route, ready to run, safe from threads.

    `identity` names all that its answers depend on. `proof_runs` is after how many runs of one
    shape nothing about the way it runs changes any more. `bytes_per_voxel` is what a run takes of
    the host's memory per working voxel, None where the route's largest shape bounds a run.
    """

    backend: str
    precision: Arithmetic
    identity: str
    proof_runs: int
    bytes_per_voxel: float | None

    def close(self) -> None:
        """Gives back what the session holds."""
        ...
