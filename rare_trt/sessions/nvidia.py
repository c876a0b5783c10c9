"""The runtimes of TensorRT and TensorRT for RTX: engines from bytes, contexts from engines.

All other modules of the sessions treat the two libraries alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from rare_trt.backends import EngineBackend
from rare_trt.errors import BackendError
from rare_trt.package.manifest import EngineEntry
from rare_trt.sessions.device import Gpu
from rare_trt.sessions.machine import import_library, lean_runtimes, version_of
from rare_trt.sessions.nvidia_logger import construct, logger_of
from rare_trt.sessions.session import INPUT_NAMES, LABELS
from rare_trt.storage.cache import Cache

if TYPE_CHECKING:
    import tensorrt as trt


class Contexts(Protocol):
    """Execution contexts of one engine; `capturable` where the caller may capture CUDA graphs."""

    capturable: bool

    def create(self) -> trt.IExecutionContext:
        """Creates a context whose scratch memory the caller provides; BackendError if it fails."""
        ...

    def save(self) -> None:
        """Stores the kernels compiled for this GPU so far in the cache."""
        ...

    def release(self) -> None:
        """Drops the engine, also where the frames of an exception still hold this object."""
        ...


class EngineLoadError(BackendError):
    """The library cannot deserialise an engine: out of memory, or of another GPU or release."""


class Library:
    """The runtime of one backend, with its release and its log."""

    def __init__(self, backend: EngineBackend) -> None:
        self.backend = backend
        self.module = import_library(backend)
        self.version = version_of(self.module)
        self.log = logger_of(self.module)
        self._runtime: trt.Runtime = construct(self.module.Runtime, backend, self.version, self.log)
        # Host code in an engine would run with the rights of the user who segments the scan.
        self._runtime.engine_host_code_allowed = False
        self._lean: dict[str, trt.Runtime] = {}

    def load(
        self, engine_bytes: bytes, entry: EngineEntry, cache: Cache, key: tuple[str, ...]
    ) -> Contexts:
        """Loads the serialised engine `engine_bytes`, verified against `entry`.

        `key` names engine, GPU and driver in the cache. Raises EngineLoadError where the library
        cannot deserialise the engine, BackendError where it does not match `entry`.
        """
        self.log.errors.clear()
        if self.backend == "tensorrt-rtx":
            self._check_validity(engine_bytes, entry)
        engine = self._runtime_for(entry).deserialize_cuda_engine(engine_bytes)
        if engine is None:
            raise EngineLoadError(
                f"{entry.file}: {self.backend} {self.version} cannot load it "
                f"({self.logged_errors()}): run `rare-trt build` on this machine"
            )
        mismatch = self._mismatch(engine, entry)
        if mismatch:
            # The frames of the exception must not keep the engine on the GPU.
            del engine
            raise BackendError(
                f"{entry.file}: is not the engine that the manifest describes ({mismatch}): run "
                "`rare-trt build` again"
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

    def _check_validity(self, engine_bytes: bytes, entry: EngineEntry) -> None:
        runtime: Any = self._runtime
        validity, diagnostics = runtime.get_engine_validity(engine_bytes)
        if validity == self.module.EngineValidity.INVALID:
            reason = f"diagnostics {diagnostics}; {self.logged_errors()}"
            raise BackendError(
                f"{entry.file}: TensorRT for RTX {self.version} cannot run it here ({reason}): "
                "run `rare-trt build` on this machine"
            )

    def _runtime_for(self, entry: EngineEntry) -> trt.Runtime:
        """Returns this release's runtime, or the lean one of the release that built the engine."""
        if entry.library == self.version:
            return self._runtime
        if entry.library not in self._lean:
            path = lean_runtimes().get(entry.library)
            runtime = None if path is None else self._runtime.load_runtime(str(path))
            if runtime is None:
                raise BackendError(
                    f"{entry.file}: the lean runtime of TensorRT {entry.library} cannot be loaded "
                    f"({self.logged_errors()}): install it, or run `rare-trt build` on this machine"
                )
            runtime.engine_host_code_allowed = False
            self._lean[entry.library] = runtime
        return self._lean[entry.library]

    def logged_errors(self) -> str:
        """Returns the errors that the library logged since an engine was last loaded."""
        return "; ".join(self.log.errors) or "it logged no error"

    def _mismatch(self, engine: trt.ICudaEngine, entry: EngineEntry) -> str | None:
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
    """TensorRT's contexts, whose runs may be captured as CUDA graphs."""

    def __init__(self, library: Library, engine: trt.ICudaEngine) -> None:
        self.capturable = True
        self._library = library
        self._engine: trt.ICudaEngine | None = engine

    def create(self) -> trt.IExecutionContext:
        """Creates a context; see `Contexts`."""
        assert self._engine is not None
        strategy = self._library.module.ExecutionContextAllocationStrategy.USER_MANAGED
        return _check_context(self._library, self._engine.create_execution_context(strategy))

    def save(self) -> None:
        """Does nothing: TensorRT compiles nothing at run time."""

    def release(self) -> None:
        """Drops the engine."""
        self._engine = None


class RtxContexts:
    """TensorRT for RTX's contexts: kernels are compiled on this GPU and stored in the cache.

    The library captures and replays CUDA graphs itself. Kernels are compiled at the first run of a
    shape and not replaced in the background later, so that the golden-vector check covers the
    kernels that run.
    """

    def __init__(
        self, library: Library, engine: trt.ICudaEngine, cache: Cache, key: tuple[str, ...]
    ) -> None:
        self.capturable = False
        self._library, self._cache = library, cache
        self._key = ("tensorrt-rtx kernels", *key)
        # The stubs of TensorRT lack the calls of TensorRT for RTX.
        self._engine: Any = engine
        self._config: Any = None
        self._compiled: Any = None
        self._stored_bytes = 0

    def configure(self) -> None:
        """Sets how contexts run and loads cached kernels; BackendError where the library fails."""
        module: Any = self._library.module
        self._config = self._engine.create_runtime_config()
        if self._config is None:
            raise self._failure("gave no runtime configuration")
        self._config.set_execution_context_allocation_strategy(
            module.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        self._config.cuda_graph_strategy = module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._config.dynamic_shapes_kernel_specialization_strategy = (
            module.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        self._compiled = self._config.create_runtime_cache()
        if self._compiled is None:
            raise self._failure("gave no runtime cache")
        stored = self._cache.load(*self._key)
        if stored is not None and self._compiled.deserialize(stored):
            self._stored_bytes = len(stored)
        if not self._config.set_runtime_cache(self._compiled):
            raise self._failure("refused its runtime cache")

    def create(self) -> trt.IExecutionContext:
        """Creates a context; see `Contexts`."""
        return _check_context(self._library, self._engine.create_execution_context(self._config))

    def save(self) -> None:
        """Stores the compiled kernels in the cache, unless their size is that stored before."""
        serialized = self._compiled.serialize()
        if serialized is None:
            # Only a loss of time: the kernels are compiled again at the next start.
            return
        compiled = bytes(serialized)
        if len(compiled) != self._stored_bytes:
            self._cache.store(compiled, *self._key)
            self._stored_bytes = len(compiled)

    def release(self) -> None:
        """Drops the engine with its configuration and kernels."""
        self._compiled = self._config = self._engine = None

    def _failure(self, what: str) -> BackendError:
        reason = self._library.logged_errors()
        return BackendError(
            f"TensorRT for RTX {self._library.version} {what} ({reason}): report this"
        )


def shape_of(dims: trt.Dims) -> tuple[int, ...]:
    """Returns TensorRT's dimensions as a tuple."""
    return tuple(dims[axis] for axis in range(len(dims)))


def identity(entry: EngineEntry, sha256: str, library: Library, gpu: Gpu) -> tuple[str, ...]:
    """Returns the names of everything that an engine's labels depend on."""
    return (
        entry.backend,
        library.version,
        sha256,
        gpu.name,
        gpu.compute_capability,
        gpu.driver,
    )


def _check_context(
    library: Library, context: trt.IExecutionContext | None
) -> trt.IExecutionContext:
    if context is None:
        raise BackendError(
            f"{library.backend} {library.version} made no execution context "
            f"({library.logged_errors()}): free GPU memory, or build the engine on this machine"
        )
    return context
