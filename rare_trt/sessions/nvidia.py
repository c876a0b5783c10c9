"""TensorRT's and TensorRT for RTX's runtime: engines from bytes, contexts from engines.

What differs between the two is here and nowhere else.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol

from rare_trt.cache import Cache
from rare_trt.errors import BackendError
from rare_trt.machine import Gpu, library
from rare_trt.manifest import EngineBackend, EngineEntry
from rare_trt.sessions import INPUT_NAMES, LABELS

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


class Library:
    """The runtime of one backend, and what its log said last."""

    def __init__(self, backend: EngineBackend) -> None:
        self.backend = backend
        self.module = library(backend)
        self.version = str(self.module.__version__)
        self.errors: deque[str] = deque(maxlen=4)
        # The runtime holds no reference to its logger, and calls it until it is gone itself.
        self._log = recording_logger(self.module, self.errors)
        self._runtime: trt.Runtime = self.module.Runtime(self._log)
        # Host code in an engine would run here with the rights of whoever segments the scan.
        self._runtime.engine_host_code_allowed = False

    def engine(self, plan: bytes, entry: EngineEntry) -> trt.ICudaEngine:
        """The engine in `plan`, found to be what `entry` says; raises BackendError otherwise."""
        self.errors.clear()
        if self.backend == "tensorrt-rtx":
            validity, diagnostics = self.module.Runtime.get_engine_validity(self._runtime, plan)
            if validity == self.module.EngineValidity.INVALID:
                raise BackendError(
                    f"{entry.file}: TensorRT for RTX cannot run it here ({diagnostics}): run "
                    "`rare-trt build` on this machine"
                )
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendError(
                f"{entry.file}: {self.backend} {self.version} cannot load it "
                f"({self.last_words()}): run `rare-trt build` on this machine"
            )
        fault = self._fault(engine, entry)
        if fault:
            raise BackendError(
                f"{entry.file}: is not the engine the manifest describes ({fault}): run `rare-trt "
                "build` again"
            )
        return engine

    def contexts(self, engine: trt.ICudaEngine, cache: Cache, key: tuple[str, ...]) -> Contexts:
        """How contexts of `engine` are made; `key` names engine, GPU and driver."""
        if self.backend == "tensorrt-rtx":
            return RtxContexts(self, engine, cache, key)
        return PlainContexts(self, engine)

    def last_words(self) -> str:
        """What the library logged as errors since the last call into it."""
        return "; ".join(self.errors) or "it did not say why"

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

    capturable = True

    def __init__(self, library: Library, engine: trt.ICudaEngine) -> None:
        self._library, self._engine = library, engine

    def create(self) -> trt.IExecutionContext:
        strategy = self._library.module.ExecutionContextAllocationStrategy.USER_MANAGED
        return _created(self._library, self._engine.create_execution_context(strategy))

    def save(self) -> None:
        """TensorRT compiles nothing at run time."""


class RtxContexts:
    """TensorRT for RTX's contexts: kernels are compiled on this GPU and kept in the cache.

    The library captures and replays CUDA graphs itself. Kernels are compiled when a shape is first
    met, not replaced in the background later: what the golden vectors proved is what runs.
    """

    capturable = False

    def __init__(
        self, library: Library, engine: trt.ICudaEngine, cache: Cache, key: tuple[str, ...]
    ) -> None:
        self._library, self._engine = library, engine
        self._cache, self._key = cache, ("tensorrt-rtx kernels", *key)
        module: Any = library.module
        config: Any = engine.create_runtime_config()
        if config is None:
            raise BackendError(
                f"TensorRT for RTX gave no runtime configuration ({library.last_words()}): report "
                "its version"
            )
        config.set_execution_context_allocation_strategy(
            module.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        config.cuda_graph_strategy = module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        config.dynamic_shapes_kernel_specialization_strategy = (
            module.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        self._compiled: Any = config.create_runtime_cache()
        stored = cache.load(*self._key)
        self._stored_bytes = len(stored or b"")
        if stored is not None and not self._compiled.deserialize(stored):
            LOGGER.info("the kept kernels of TensorRT for RTX are of another driver or GPU")
            self._stored_bytes = 0
        if not config.set_runtime_cache(self._compiled):
            raise BackendError(
                f"TensorRT for RTX refused its runtime cache ({library.last_words()}): report its "
                "version"
            )
        self._config = config

    def create(self) -> trt.IExecutionContext:
        return _created(self._library, self._engine.create_execution_context(self._config))

    def save(self) -> None:
        compiled = bytes(self._compiled.serialize())
        if len(compiled) != self._stored_bytes:
            self._cache.store(compiled, *self._key)
            self._stored_bytes = len(compiled)


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


def recording_logger(module: Any, errors: deque[str]) -> Any:
    """A logger for `module` that keeps errors in `errors` and hands the rest to `logging`."""

    class Recorder(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.INTERNAL_ERROR, module.ILogger.ERROR):
                errors.append(message.strip())
            elif severity == module.ILogger.WARNING:
                LOGGER.info("%s", message)

    return Recorder()


def _created(library: Library, context: trt.IExecutionContext | None) -> trt.IExecutionContext:
    if context is None:
        raise BackendError(
            f"{library.backend} {library.version} made no execution context "
            f"({library.last_words()}): free GPU memory, or build the engine on this machine"
        )
    return context
