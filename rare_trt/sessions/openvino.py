"""The OpenVINO session: runs a route on any x86 or Arm CPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache as once
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rare_trt.backends import IN_BF16
from rare_trt.errors import BackendError
from rare_trt.package.manifest import GraphEntry
from rare_trt.package.reading import Package, graph_on_disk
from rare_trt.plan.memory import bytes_per_voxel
from rare_trt.sessions.session import LOGITS, Inputs
from rare_trt.stopwatch import Stopwatch
from rare_trt.storage.cache import Cache

# The precision is stated: OpenVINO's own default is bf16 where the CPU has it.
FLOAT32: Final = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
BFLOAT16: Final = {**FLOAT32, "INFERENCE_PRECISION_HINT": "bf16"}


class OpenVinoSession:
    """One route's graph compiled for this CPU, for any shape; with `bf16` its float parts in bf16.

    The compiled model is stored in the cache under the hashes of graph and weights, OpenVINO's
    version and the CPU, so that a second start neither parses nor compiles.
    """

    backend = "openvino"
    golden_runs = 1

    def __init__(
        self, package: Package, entry: GraphEntry, cache: Cache, *, bf16: bool = False
    ) -> None:
        self.precision = IN_BF16[entry.precision] if bf16 else entry.precision
        network = package.manifest.model.network
        self.bytes_per_voxel = bytes_per_voxel(network, entry.route, self.precision)
        self._config = BFLOAT16 if bf16 else FLOAT32
        core = _core()
        files = package.manifest.files
        cpu = core.get_property("CPU", "FULL_DEVICE_NAME")
        features = sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        key = (files[entry.file].sha256, files[entry.weights].sha256)
        version = core.get_versions("CPU")["CPU"].build_number
        key += (version, cpu, *features, *self._config.values())
        self.identity = "openvino " + " ".join(key)
        # Read, and so verified by their hashes, on every start: a tampered package is refused even
        # where its compiled model is cached.
        graph, weights = package.read(entry.file), package.read(entry.weights)
        blob = cache.load("openvino", *key)
        model = self._import(blob) if blob is not None else None
        if model is None:
            on_disk = graph_on_disk(graph, weights, Path(entry.weights).name)
            with on_disk as path, _compile_errors(entry.file):
                model = _core().compile_model(_core().read_model(path), "CPU", self._config)
            exported = BytesIO()
            model.export_model(exported)
            cache.store(exported.getvalue(), "openvino", *key)
        self._request = model.create_infer_request()
        self._lock = Lock()

    def run(self, inputs: Inputs, clock: Stopwatch | None = None) -> NDArray[np.uint8]:
        """Returns labels [oi, oj, ok]; see `Session`. Raises BackendError where OpenVINO fails."""
        clock = clock or Stopwatch()
        with self._lock:
            with clock("graph"):
                result = _infer(self._request, inputs, share_outputs=True)
            with clock("labels"):
                # The next run overwrites OpenVINO's output.
                labels: NDArray[np.uint8] = result[0][0].copy()
        return labels

    def close(self) -> None:
        """Does nothing: OpenVINO frees its memory with this object."""

    def _import(self, blob: bytes) -> Any | None:
        try:
            return _core().import_model(BytesIO(blob), "CPU", self._config)
        except RuntimeError:
            return None


class OpenVinoRun:
    """A graph with its weights inside, compiled without the cache, for measurements."""

    def __init__(self, graph: bytes, *, bf16: bool = False) -> None:
        config = BFLOAT16 if bf16 else FLOAT32
        with _compile_errors("a graph"):
            model = _core().compile_model(_core().read_model(graph), "CPU", config)
        self._request = model.create_infer_request()

    def run(self, inputs: Inputs, clock: Stopwatch | None = None) -> NDArray[np.uint8]:
        """Returns labels [oi, oj, ok]; BackendError where OpenVINO fails."""
        with (clock or Stopwatch())("graph"):
            labels: NDArray[np.uint8] = _infer(self._request, inputs)[0][0]
        return labels


class OpenVinoProbe:
    """A graph that returns its logits beside its labels, for checks."""

    def __init__(self, package: Package, entry: GraphEntry) -> None:
        graph, weights = package.read(entry.file), package.read(entry.weights)
        on_disk = graph_on_disk(graph, weights, Path(entry.weights).name)
        with on_disk as path, _compile_errors(entry.file):
            model = _core().read_model(path)
            try:
                model.add_outputs(LOGITS)
                self.has_logits = True
            except RuntimeError:
                # Packages of format 1 do not name the logits.
                self.has_logits = False
            self._request = _core().compile_model(model, "CPU", FLOAT32).create_infer_request()

    def run(self, inputs: Inputs, clock: Stopwatch | None = None) -> NDArray[np.uint8]:
        """Returns labels [oi, oj, ok]."""
        with (clock or Stopwatch())("graph"):
            labels: NDArray[np.uint8] = _infer(self._request, inputs)[0][0]
        return labels

    def logits(self, inputs: Inputs) -> NDArray[np.float32]:
        """Returns logits [class, oi, oj, ok]; only where `has_logits`."""
        result = _infer(self._request, inputs)
        logits: NDArray[np.float32] = result[1][0].astype(np.float32)
        return logits


@dataclass(frozen=True)
class OpenVinoFacts:
    """OpenVINO's version, its name of the CPU, and the CPU's capabilities, as BF16 or INT8."""

    version: str
    cpu: str
    capabilities: tuple[str, ...]


def openvino_facts() -> OpenVinoFacts:
    """Describes OpenVINO and the CPU; raises BackendError where OpenVINO cannot be loaded."""
    core = _core()
    return OpenVinoFacts(
        version=core.get_versions("CPU")["CPU"].build_number,
        cpu=core.get_property("CPU", "FULL_DEVICE_NAME"),
        capabilities=tuple(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
    )


_loading = Lock()


def _core() -> Any:
    """Returns OpenVINO's one Core of this process, created by the first thread that calls."""
    with _loading:
        return _create_core()


@once
def _create_core() -> Any:
    # OpenVINO's telemetry module opens a connection and writes a file at import. A None entry
    # makes that import fail, which OpenVINO handles; the previous entry is restored afterwards.
    name = "openvino_telemetry"
    before = sys.modules.get(name)
    # Python's import system accepts None there, the type of sys.modules does not.
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError as error:
        raise BackendError(
            f"OpenVINO cannot be loaded ({error}): install it again with `pip install openvino`"
        ) from error
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
    core = openvino.Core()
    try:
        # Loads the CPU plugin now instead of at its first use.
        core.get_versions("CPU")
    except RuntimeError as error:
        raise BackendError(
            f"OpenVINO's CPU plugin cannot be loaded ({_last_line(error)}): free memory, or "
            "install it again with `pip install openvino`"
        ) from error
    return core


@contextmanager
def _compile_errors(name: str) -> Iterator[None]:
    """Turns OpenVINO's failure to read or compile the graph `name` into BackendError."""
    try:
        yield
    except RuntimeError as error:
        raise BackendError(
            f"OpenVINO cannot compile {name} ({_last_line(error)}): free memory, or install the "
            "OpenVINO version that pyproject.toml names"
        ) from error


def _infer(request: Any, inputs: Inputs, *, share_outputs: bool = False) -> Any:
    """Runs a compiled graph; verifies that its labels have the shape that the inputs ask for."""
    try:
        result = request.infer(inputs, share_inputs=True, share_outputs=share_outputs)
    except RuntimeError as error:
        shapes = {name: array.shape for name, array in inputs.items()}
        raise BackendError(
            f"OpenVINO failed on shapes {shapes} ({_last_line(error)}): free memory, or report "
            "this with the scan's size"
        ) from error
    expected = tuple(inputs[f"out_{axis}"].shape[0] for axis in "ijk")
    found = result[0].shape[1:]
    if found != expected:
        # Happened where memory ran out: OpenVINO reported no error and returned no labels.
        raise BackendError(
            f"OpenVINO returned labels of shape {found}; expected {expected}: free memory, or "
            "report this with the scan's size"
        )
    return result


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
