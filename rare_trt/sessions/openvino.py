"""The OpenVINO session: runs a route on any x86 or Arm CPU."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache as once
from io import BytesIO
from math import ceil, inf
from operator import index
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

# The environment variable with the number of threads.
THREADS: Final = "RARE_TRT_THREADS"


class OpenVinoSession:
    """One route's graph compiled for this CPU, for any shape; with `bf16` its float parts in bf16.

    The compiled model is stored in the cache under the hashes of graph and weights, OpenVINO's
    version and the CPU, so that a second start neither parses nor compiles. `threads` is the number
    of threads as `thread_count` takes it; a compiled model serves any number.
    """

    backend = "openvino"
    golden_runs = 1

    def __init__(
        self,
        package: Package,
        entry: GraphEntry,
        cache: Cache,
        *,
        bf16: bool = False,
        threads: int | None = None,
    ) -> None:
        self.precision = IN_BF16[entry.precision] if bf16 else entry.precision
        network = package.manifest.model.network
        self.bytes_per_voxel = bytes_per_voxel(network, entry.route, self.precision)
        precision = BFLOAT16 if bf16 else FLOAT32
        self._config = _with_threads(precision, threads)
        core = _core()
        files = package.manifest.files
        cpu = core.get_property("CPU", "FULL_DEVICE_NAME")
        features = sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        key = (files[entry.file].sha256, files[entry.weights].sha256)
        version = core.get_versions("CPU")["CPU"].build_number
        key += (version, cpu, *features, *precision.values())
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
        # The network's normalisation adds up its sums per thread, which rounds otherwise.
        computing = model.get_property("INFERENCE_NUM_THREADS")
        self.identity = " ".join(("openvino", *key, f"{computing} threads"))
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
        config = _with_threads(BFLOAT16 if bf16 else FLOAT32)
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
            compiled = _core().compile_model(model, "CPU", _with_threads(FLOAT32))
            self._request = compiled.create_infer_request()

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


def thread_count(threads: int | None = None) -> int | None:
    """The number of threads that OpenVINO is limited to; None where it chooses.

    That is `threads`, else the environment variable RARE_TRT_THREADS, else what the CPU quota of a
    container allows, where that is less than the CPUs that this process may run on. OpenVINO itself
    respects those (taskset) and not the quota. Raises BackendError for anything but a whole number
    from 1 up.
    """
    given: object = threads
    name = "threads"
    if threads is None:
        given, name = os.environ.get(THREADS) or None, THREADS
    if given is None:
        cpus = _cpus()
        allowed = cpu_quota()
        return max(1, ceil(allowed)) if allowed < cpus else None
    try:
        count = int(str(given)) if threads is None else index(threads)
    except (TypeError, ValueError):
        count = 0
    if not 0 < count < 1 << 31:
        raise BackendError(
            f"{name} is {given!r}; expected a whole number of CPU threads from 1 up: correct it or "
            "leave it out"
        )
    return count


def usable_cpus(threads: int | None = None) -> int:
    """How many CPUs a session uses at most: those that this process may run on, or fewer where
    `thread_count` limits it."""
    return min(_cpus(), thread_count(threads) or _cpus())


def cpu_quota(root: Path = Path("/")) -> float:
    """How many CPUs' time this process's control groups allow it, infinity without a limit.

    Groups of version 1 and 2 count, the parents among them; `root` is the file system's.
    """
    quotas = [inf]
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            top = root / "sys/fs/cgroup" / controllers
            group = top / path.lstrip("/")
            # In a container the path can be the host's name for the group that is its top.
            folders = [folder for folder in (group, *group.parents) if folder.is_relative_to(top)]
            quotas += [_quota_of(folder) for folder in folders]
    return min(quotas)


def _quota_of(group: Path) -> float:
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        # Without a limit the quota is "max", or -1 in version 1.
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = " ".join((group / name).read_text() for name in names).split()
            return int(quota) / int(period) if int(quota) > 0 else inf
    return inf


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _with_threads(config: Mapping[str, str], threads: int | None = None) -> dict[str, Any]:
    count = thread_count(threads)
    return dict(config) if count is None else {**config, "INFERENCE_NUM_THREADS": count}


def this_process(first: int | None) -> int:
    """The id of this process; raises BackendError where it was forked from the process `first`,
    which had loaded OpenVINO or an engine already.

    A fork has none of the threads that they compute with, and locks that those held stay locked.
    """
    own = os.getpid()
    if first not in (None, own):
        raise BackendError(
            f"process {own} was forked from process {first}, which had loaded OpenVINO or an "
            "engine; expected a fork before that, because a fork leaves the threads behind that "
            "compute: start processes with multiprocessing's spawn or forkserver, or segment in "
            "the forked ones only"
        )
    return own


_loading = Lock()
_loaded_in: int | None = None


def _core() -> Any:
    """Returns OpenVINO's one Core of this process, created by the first thread that calls."""
    global _loaded_in
    # Before the lock, which in a forked process nobody may be left to release.
    _loaded_in = this_process(_loaded_in)
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
    # Its tables of types are made at their first use, from Python's objects: two threads that use
    # them first at the same time wait for each other, for ever.
    openvino.Tensor(np.zeros(1, np.float32)).element_type.to_dtype()
    if hasattr(os, "register_at_fork"):
        # A forked process that destroyed it at its end would wait for threads that it lacks.
        os.register_at_fork(
            after_in_child=lambda: ctypes.pythonapi.Py_IncRef(ctypes.py_object(core))
        )
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
