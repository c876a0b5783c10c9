"""The interface of a session: one route's graph on one backend, seven arrays in, labels out."""

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


class Runner(Protocol):
    """Anything that runs one route's graph."""

    def run(self, inputs: Inputs, clock: Stopwatch | None = None) -> NDArray[np.uint8]:
        """Returns labels [oi, oj, ok] for `inputs`: image [1, c, i, j, k] and six matrices.

        `clock` records the milliseconds spent on copying in (`inputs`), on the graph (`graph`) and
        on copying out (`labels`).
        """
        ...


class Session(Runner, Protocol):
    """One route, ready to run, safe to use from several threads.

    `identity` names everything that its labels depend on. `golden_runs` is the number of times that
    each golden vector is run: after so many runs of one shape the session no longer changes how it
    runs. `bytes_per_voxel` is the host memory that a run takes per working voxel, None where the
    route's largest shape bounds a run.
    """

    backend: str
    precision: Arithmetic
    identity: str
    golden_runs: int
    bytes_per_voxel: float | None

    def close(self) -> None:
        """Releases the memory that the session holds."""
        ...
