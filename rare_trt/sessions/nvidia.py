"""TensorRT's and TensorRT for RTX's runtime: engines from bytes, contexts from engines.

What differs between the two is here and nowhere else.
"""

from __future__ import annotations

import logging
from collections import deque
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, Protocol
from weakref import WeakKeyDictionary

from rare_trt.backends import EngineBackend
from rare_trt.constants import KEPT_ERRORS
from rare_trt.errors import BackendError
from rare_trt.package.manifest import EngineEntry
from rare_trt.sessions.device import Gpu
from rare_trt.sessions.machine import lean_runtimes, library, version_of
from rare_trt.sessions.session import INPUT_NAMES, LABELS
from rare_trt.storage.cache import Cache

if TYPE_CHECKING:
    import tensorrt as trt

LOGGER: Final = logging.getLogger(__name__)


class Contexts(Protocol):
    """Execution contexts of one engine. `capturable` says whether CUDA graphs are ours to make."""

    capturable: bool

    def create(self) -> trt.IExecutionContext:
        """A context whose scratch memory the caller provides."""
        ...

    def save(self) -> None:
        """Keeps what was compiled for this GPU so far."""
        ...

    def release(self) -> None:
        """Drops the engine, also where the frames of an exception still hold this object."""
        ...


class EngineLoadError(BackendError):
    """The library made no engine of a plan, for want of memory or because it does not fit."""


class Library:
    """The runtime of one backend, and what its log said last."""

    def __init__(self, backend: EngineBackend) -> None:
        self.backend = backend
        self.module = library(backend)
        self.version = version_of(self.module)
        self.log = recorder(self.module)
        self._runtime: trt.Runtime = started(self.module.Runtime, backend, self.version, self.log)
        # Host code in an engine would run here with the rights of whoever segments the scan.
        self._runtime.engine_host_code_allowed = False
        self._lean: dict[str, trt.Runtime] = {}

    def contexts(
        self, plan: bytes, entry: EngineEntry, cache: Cache, key: tuple[str, ...]
    ) -> Contexts:
        """Loads the engine in `plan`, found to be what `entry` says.

        `key` names engine, GPU and driver. Raises BackendError where the engine cannot be loaded.
        """
        self.log.errors.clear()
        if self.backend == "tensorrt-rtx":
            self._refuse_invalid(plan, entry)
        engine = self._runtime_of(entry).deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineLoadError(
                f"{entry.file}: {self.backend} {self.version} cannot load it "
                f"({self.last_words()}): run `rare-trt build` on this machine"
            )
        fault = self._fault(engine, entry)
        if fault:
            # Frames of an exception must not keep an engine on the GPU.
            del engine
            raise BackendError(
                f"{entry.file}: is not the engine the manifest describes ({fault}): run `rare-trt "
                "build` again"
            )
        if self.backend == "tensorrt":
            return PlainContexts(self, engine)
        contexts = RtxContexts(self, engine, cache, key)
        del engine
        try:
            contexts.configure()
        except BackendError:
            contexts.release()
            raise
        return contexts

    def _refuse_invalid(self, plan: bytes, entry: EngineEntry) -> None:
        runtime: Any = self._runtime
        validity, diagnostics = runtime.get_engine_validity(plan)
        if validity == self.module.EngineValidity.INVALID:
            said = f"diagnostics {diagnostics}; {self.last_words()}"
            raise BackendError(
                f"{entry.file}: TensorRT for RTX {self.version} cannot run it here ({said}): run "
                "`rare-trt build` on this machine"
            )

    def _runtime_of(self, entry: EngineEntry) -> trt.Runtime:
        """This release's own runtime, or the lean one of the release that built the engine."""
        if entry.library == self.version:
            return self._runtime
        if entry.library not in self._lean:
            path = lean_runtimes().get(entry.library)
            runtime = None if path is None else self._runtime.load_runtime(str(path))
            if runtime is None:
                raise BackendError(
                    f"{entry.file}: the lean runtime of TensorRT {entry.library} cannot be loaded "
                    f"({self.last_words()}): install it, or run `rare-trt build` on this machine"
                )
            runtime.engine_host_code_allowed = False
            self._lean[entry.library] = runtime
        return self._lean[entry.library]

    def last_words(self) -> str:
        """What the library logged as errors since the last call into it."""
        return "; ".join(self.log.errors) or "it did not say why"

    def _fault(self, engine: trt.ICudaEngine, entry: EngineEntry) -> str | None:
        module = self.module
        names = {engine.get_tensor_name(n) for n in range(engine.num_io_tensors)}
        if names != {*INPUT_NAMES, LABELS}:
            return f"its inputs and outputs are {', '.join(sorted(names))}"
        for name in names:
            is_labels = name == LABELS
            mode = module.TensorIOMode.OUTPUT if is_labels else module.TensorIOMode.INPUT
            dtype = module.DataType.UINT8 if is_labels else module.DataType.FLOAT
            if engine.get_tensor_mode(name) != mode:
                return f"{name} is {engine.get_tensor_mode(name)}"
            if engine.get_tensor_dtype(name) != dtype:
                return f"{name} is of type {engine.get_tensor_dtype(name)}"
            if engine.get_tensor_location(name) != module.TensorLocation.DEVICE:
                return f"{name} does not lie on the GPU"
        for name, expected in entry.profile.items():
            found = tuple(shape_of(shape) for shape in engine.get_tensor_profile_shape(name, 0))
            if found != expected:
                return f"its profile for {name} is {found}"
        return None


class PlainContexts:
    """TensorRT's contexts. They may be captured into CUDA graphs."""

    def __init__(self, library: Library, engine: trt.ICudaEngine) -> None:
        self.capturable = True
        self._library = library
        self._engine: trt.ICudaEngine | None = engine

    def create(self) -> trt.IExecutionContext:
        assert self._engine is not None
        strategy = self._library.module.ExecutionContextAllocationStrategy.USER_MANAGED
        return _created(self._library, self._engine.create_execution_context(strategy))

    def save(self) -> None:
        """TensorRT compiles nothing at run time."""

    def release(self) -> None:
        self._engine = None


class RtxContexts:
    """TensorRT for RTX's contexts: kernels are compiled on this GPU and kept in the cache.

    The library captures and replays CUDA graphs itself. Kernels are compiled when a shape is first
    met, not replaced in the background later: what the golden vectors proved is what runs.
    """

    def __init__(
        self, library: Library, engine: trt.ICudaEngine, cache: Cache, key: tuple[str, ...]
    ) -> None:
        self.capturable = False
        self._library, self._cache = library, cache
        self._key = ("tensorrt-rtx kernels", *key)
        # None of its own calls are in the stubs of TensorRT.
        self._engine: Any = engine
        self._config: Any = None
        self._compiled: Any = None
        self._stored_bytes = 0

    def configure(self) -> None:
        """Chooses how contexts run; raises BackendError where the library refuses."""
        module: Any = self._library.module
        self._config = self._engine.create_runtime_config()
        if self._config is None:
            raise self._refused("gave no runtime configuration")
        self._config.set_execution_context_allocation_strategy(
            module.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        self._config.cuda_graph_strategy = module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._config.dynamic_shapes_kernel_specialization_strategy = (
            module.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        self._compiled = self._config.create_runtime_cache()
        if self._compiled is None:
            raise self._refused("gave no runtime cache")
        stored = self._cache.load(*self._key)
        if stored is not None and self._compiled.deserialize(stored):
            self._stored_bytes = len(stored)
        if not self._config.set_runtime_cache(self._compiled):
            raise self._refused("refused its runtime cache")

    def create(self) -> trt.IExecutionContext:
        return _created(self._library, self._engine.create_execution_context(self._config))

    def save(self) -> None:
        serialized = self._compiled.serialize()
        if serialized is None:
            # It only saves time: the kernels are compiled again at the next start.
            return
        compiled = bytes(serialized)
        if len(compiled) != self._stored_bytes:
            self._cache.store(compiled, *self._key)
            self._stored_bytes = len(compiled)

    def release(self) -> None:
        self._compiled = self._config = self._engine = None

    def _refused(self, what: str) -> BackendError:
        said = self._library.last_words()
        return BackendError(f"TensorRT for RTX {what} ({said}): report its version")


def shape_of(dims: trt.Dims) -> tuple[int, ...]:
    """TensorRT's dimensions as plain numbers."""
    return tuple(dims[axis] for axis in range(len(dims)))


def identity(entry: EngineEntry, sha256: str, library: Library, gpu: Gpu) -> tuple[str, ...]:
    """All that an engine's answers depend on."""
    return (
        entry.backend,
        library.version,
        sha256,
        gpu.name,
        gpu.compute_capability,
        gpu.driver,
    )


def started(kind: Any, backend: EngineBackend, version: str, log: Any) -> Any:
    """The runtime or builder that the class `kind` makes.

    Raises BackendError where the library cannot use the GPU, most often because the driver is older
    than the CUDA that the library was built for: it says so in a warning and gives nothing, which
    its bindings turn into a TypeError.
    """
    log.errors.clear()
    log.warnings.clear()
    try:
        return kind(log)
    except TypeError as error:
        said = "; ".join((*log.errors, *log.warnings)) or str(error)
        raise BackendError(
            f"{backend} {version} cannot use this GPU ({said}): install the driver that "
            "docs/TENSORRT.md names for its CUDA release, or use --backend openvino"
        ) from error


def recorder(module: Any) -> Any:
    """The one logger that a library gets: TensorRT keeps the first one of a process for good.

    Errors and warnings are kept, the last few of each; warnings go to `logging` too. An interrupt
    that comes while TensorRT logs would be lost in its bindings: it is kept in `interrupts`.
    """
    with _RECORDING:
        if module not in _RECORDERS:
            _RECORDERS[module] = _new_recorder(module)
        return _RECORDERS[module]


_RECORDING = Lock()
_RECORDERS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def _new_recorder(module: Any) -> Any:
    # Which library it is, is known at run time only.
    class Recorder(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=KEPT_ERRORS)
            self.warnings: deque[str] = deque(maxlen=KEPT_ERRORS)
            self.interrupts: deque[BaseException] = deque()

        def log(self, severity: Any, message: str) -> None:
            try:
                if severity in (module.ILogger.INTERNAL_ERROR, module.ILogger.ERROR):
                    self.errors.append(message.strip())
                elif severity == module.ILogger.WARNING:
                    self.warnings.append(message.strip())
                    LOGGER.info("%s", message)
            except BaseException as interrupt:
                self.interrupts.append(interrupt)

    return Recorder()


def _created(library: Library, context: trt.IExecutionContext | None) -> trt.IExecutionContext:
    if context is None:
        raise BackendError(
            f"{library.backend} {library.version} made no execution context "
            f"({library.last_words()}): free GPU memory, or build the engine on this machine"
        )
    return context
