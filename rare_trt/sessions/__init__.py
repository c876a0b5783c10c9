"""Sessions run one route's graph on one backend: seven arrays in, labels out."""

from __future__ import annotations

from typing import Final, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rare_trt.manifest import Precision

Backend: TypeAlias = Literal["auto", "tensorrt", "tensorrt-rtx", "openvino"]
BACKENDS: Final[tuple[Backend, ...]] = ("auto", "tensorrt", "tensorrt-rtx", "openvino")

INPUT_NAMES: Final = ("image", "in_i", "in_j", "in_k", "out_i", "out_j", "out_k")
LABELS: Final = "labels"

# Not an output; the name of a tensor inside every graph.
LOGITS: Final = "logits"

Inputs: TypeAlias = dict[str, NDArray[np.float32]]


class Runs(Protocol):
    """Anything that runs one route's graph."""

    def run(self, inputs: Inputs) -> NDArray[np.uint8]:
        """Labels [oi, oj, ok] from image [1, c, i, j, k] and six matrices."""
        ...


class Session(Runs, Protocol):
    """One route, ready to run, safe from threads.

    `identity` names all that its answers depend on. `proof_runs` is after how many runs of one
    shape nothing about the way it runs changes any more.
    """

    backend: str
    precision: Precision
    identity: str
    proof_runs: int

    def close(self) -> None:
        """Gives back what the session holds."""
        ...
