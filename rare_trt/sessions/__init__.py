"""Sessions run one route's graph on one backend: seven arrays in, labels out."""

from __future__ import annotations

from typing import Final, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rare_trt.cache import Cache
from rare_trt.errors import BackendError
from rare_trt.package import Package

Backend: TypeAlias = Literal["auto", "openvino"]
BACKENDS: Final[tuple[Backend, ...]] = ("auto", "openvino")

INPUT_NAMES: Final = ("image", "in_i", "in_j", "in_k", "out_i", "out_j", "out_k")
Inputs: TypeAlias = dict[str, NDArray[np.float32]]


class Session(Protocol):
    """One route, ready to run. `identity` names all that its answers depend on."""

    backend: str
    precision: str
    identity: str

    def run(self, inputs: Inputs) -> NDArray[np.uint8]:
        """Labels [oi, oj, ok] from image [1, c, i, j, k] and six matrices; safe from threads."""
        ...


def open_session(package: Package, route: int, backend: Backend, cache: Cache) -> Session:
    """The best session for `route` that `backend` allows on this machine.

    OpenVINO answers everywhere; other backends will stand before it in "auto".
    """
    if backend not in BACKENDS:
        raise BackendError(f"no backend {backend!r}; expected one of {', '.join(BACKENDS)}")
    # Heavy, so loaded with the first session.
    from rare_trt.sessions.openvino import OpenVinoSession

    return OpenVinoSession(package, package.graph(route, "fp32"), cache)
