"""The TensorRT session: one route's engine on the GPU, its inputs checked before each run."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from rare_trt.backends import Arithmetic
from rare_trt.constants import ENGINE_GOLDEN_RUNS
from rare_trt.errors import BackendError, ShapeError
from rare_trt.package.manifest import EngineEntry
from rare_trt.package.reading import Package
from rare_trt.sessions.bucket import Sizes
from rare_trt.sessions.device import DeviceError
from rare_trt.sessions.engine import Engine
from rare_trt.sessions.engine_host import EngineHost
from rare_trt.sessions.nvidia import EngineLoadError, identity
from rare_trt.sessions.session import INPUT_NAMES, Inputs
from rare_trt.stopwatch import Stopwatch
from rare_trt.storage.cache import Cache


class EngineSession:
    """One route's engine; see `Session`. Safe to use from several threads."""

    golden_runs = ENGINE_GOLDEN_RUNS
    bytes_per_voxel: float | None = None

    def __init__(
        self, host: EngineHost, package: Package, entry: EngineEntry, cache: Cache
    ) -> None:
        self.entry = entry
        self.backend: str = entry.backend
        self.precision: Arithmetic = entry.precision
        self._host, self._package, self._cache = host, package, cache
        self._labels = len(package.manifest.model.labels)
        with host.acquire():
            sha256 = package.manifest.files[entry.file].sha256
            library = host.library(entry.backend)
            self._key = identity(entry, sha256, library, host.device.gpu)
            self.identity = " ".join(self._key)
            self._engine: Engine | None = None
            self._load()

    def run(self, inputs: Inputs, clock: Stopwatch | None = None) -> NDArray[np.uint8]:
        """Returns labels [oi, oj, ok]; see `Session`.

        Raises ShapeError, before anything is queued, where the engine was not built for the
        inputs' shapes, and BackendError where the run failed; the next run then loads the engine
        again.
        """
        sizes = check_inputs(inputs, self.entry)
        with self._host.acquire():
            try:
                engine = self._engine or self._load()
                self._host.mark_used(self, engine.size)
                labels = engine.bucket(sizes).run(inputs, clock or Stopwatch())
            except DeviceError as error:
                self._discard_engine()
                raise BackendError(
                    f"{self._name()} failed ({error}): free GPU memory or restart the program; "
                    "`rare-trt doctor` lists the usable backends"
                ) from error
            except BaseException:
                # An interrupt, too, leaves queued work on the GPU.
                self._discard_engine()
                raise
            highest = int(labels.max(initial=0))
            if highest >= self._labels:
                self.unload()
                raise BackendError(
                    f"{self._name()} returned label {highest}; expected 0 to {self._labels - 1}: "
                    "run `rare-trt verify`, then build the engine again"
                )
        return labels

    def _discard_engine(self) -> None:
        """Unloads the engine after a failed run; suppresses errors so that the first propagates."""
        self._host.synchronize()
        with suppress(DeviceError):
            self.unload()

    def unload(self) -> None:
        """Releases the engine's memory; the next run loads it again."""
        engine, self._engine = self._engine, None
        self._host.forget(self)
        if engine is not None:
            engine.release()

    def close(self) -> None:
        """Releases the engine's memory, from any thread."""
        with self._host.acquire():
            self.unload()

    def _load(self) -> Engine:
        entry, host = self.entry, self._host
        engine_bytes = self._package.read(entry.file)
        host.make_room(self, len(engine_bytes))
        library = host.library(entry.backend)
        while True:
            try:
                contexts = library.load(engine_bytes, entry, self._cache, self._key)
                break
            except EngineLoadError:
                # Perhaps the GPU is out of memory: TensorRT does not report the reason.
                if not host.unload_oldest(keep=self):
                    raise
        self._engine = Engine(host, self, contexts, len(engine_bytes))
        host.mark_used(self, len(engine_bytes))
        return self._engine

    def _name(self) -> str:
        return f"{self.backend} {self.precision} on route {self.entry.route}"


def check_inputs(inputs: Inputs, entry: EngineEntry) -> Sizes:
    """Returns the shapes of `inputs` in the graph's order, checked against the engine's profile.

    Raises ShapeError where the engine was not built for them, where an array is not float32, or
    where the matrices do not fit each other or the image.
    """
    sizes = []
    for name in INPUT_NAMES:
        array = inputs[name]
        low, _, high = entry.profile[name]
        if array.dtype != np.float32 or not (
            len(array.shape) == len(low)
            and all(a <= n <= b for a, n, b in zip(low, array.shape, high, strict=True))
        ):
            raise ShapeError(
                f"the scan needs {name} of shape {array.shape} ({array.dtype}); the "
                f"{entry.backend} engine of route {entry.route} takes float32 from {low} to "
                f"{high}: build it again, or use --backend openvino"
            )
        sizes.append(array.shape)
    axes = dict(zip(INPUT_NAMES, sizes, strict=True))
    for axis, (name, into, out) in enumerate((f"{a}", f"in_{a}", f"out_{a}") for a in "ijk"):
        if axes[into][1] != axes["image"][2 + axis] or axes[out][1] != axes[into][0]:
            raise ShapeError(
                f"the matrices of axis {name} do not fit each other or the image: {axes}; report "
                "this with the scan's size"
            )
    return tuple(sizes)
