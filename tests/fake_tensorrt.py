"""A fake of the `tensorrt` module over the fake CUDA driver, as strict as the real one.

What a plan holds is the typed ONNX graph itself. Contexts compute labels with OpenVINO from that
graph, in stream order, on the addresses they were given. Whatever the real library refuses is
refused here with False or None and a line in the log; whatever it leaves undefined is undefined
here too: labels become noise and the fault is noted in `violations`, which tests hold empty.

`FakeTensorRT()` makes one such module; `sys.modules["tensorrt"] = FakeTensorRT()` installs it.
"""

from __future__ import annotations

import ctypes
import json
import struct
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from functools import lru_cache
from itertools import pairwise
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from rare_trt.sessions.openvino import FLOAT32, _core

MAGIC = b"fake TensorRT plan\0"
INPUTS = ("image", "in_i", "in_j", "in_k", "out_i", "out_j", "out_k")
ALIGNMENT = 256
SCRATCH_PER_VOXEL = 64

# Kernel timings of another GPU or release: they can be read, and are no use.
FOREIGN_TIMINGS = b"foreign timings"

HostFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    INTERNAL_ERROR = Severity.INTERNAL_ERROR
    ERROR = Severity.ERROR
    WARNING = Severity.WARNING
    INFO = Severity.INFO
    VERBOSE = Severity.VERBOSE

    def __init__(self) -> None:
        self.made = True

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


class TensorIOMode(IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class DataType(IntEnum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5


class TensorLocation(IntEnum):
    DEVICE = 0
    HOST = 1


class ExecutionContextAllocationStrategy(IntEnum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class NetworkDefinitionCreationFlag(IntEnum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class BuilderFlag(IntEnum):
    TF32 = 7
    VERSION_COMPATIBLE = 13
    EXCLUDE_LEAN_RUNTIME = 14


class HardwareCompatibilityLevel(IntEnum):
    NONE = 0
    AMPERE_PLUS = 1
    SAME_COMPUTE_CAPABILITY = 2


class MemoryPoolType(IntEnum):
    WORKSPACE = 0


class EngineValidity(IntEnum):
    VALID = 0
    SUBOPTIMAL = 1
    INVALID = 2


class OnnxParserFlag(IntEnum):
    NATIVE_INSTANCENORM = 0


class CudaGraphStrategy(IntEnum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class DynamicShapesKernelSpecializationStrategy(IntEnum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class ComputeCapability(IntEnum):
    SM75 = 75
    SM80 = 80
    SM86 = 86
    SM89 = 89
    SM120 = 120
    SM121 = 121


class Dims:
    """Sizes, or -1 where they are not known yet. Equal to sequences of the same numbers."""

    def __init__(self, shape: Any = ()) -> None:
        self._sizes = tuple(int(size) for size in shape)

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: Any) -> Any:
        return self._sizes[index]

    def __eq__(self, other: object) -> bool:
        return self._sizes == tuple(other)

    def __hash__(self) -> int:
        return hash(self._sizes)


class FakeTensorRT(types.ModuleType):
    """One installation of the fake: a version, faults to inject, and what went wrong.

    `fail(name)` makes the next call of that method fail in the way the real one fails. `spoil` is
    one of "", "nothing" (labels stay unwritten though the enqueue reported success), "zeros",
    "noise" and "replays" (a graph is right the first time only): what an engine does that runs and
    answers wrongly.
    """

    def __init__(self, name: str = "tensorrt") -> None:
        super().__init__(name)
        self.__version__ = {"tensorrt": "10.13.0.35", "tensorrt_rtx": "1.7.1.116"}[name]
        self.is_rtx = name == "tensorrt_rtx"
        self.violations: list[str] = []
        self.spoil = ""
        self.host_code = False
        self.enqueued = 0
        self.computed = 0
        self.compiled_blobs: list[bytes] = []
        self.configs: list[IBuilderConfig] = []
        self.kept: list[Any] = []
        self.cleared: list[OnnxParserFlag] = []
        self._faults: dict[str, int] = {}
        self.live_engines: weakref.WeakSet[ICudaEngine] = weakref.WeakSet()
        for part in PARTS:
            bound = type(part.__name__, (part,), {"module": self})
            setattr(self, part.__name__, bound)
        for kind in ENUMS:
            setattr(self, kind.__name__, kind)
        self.ILogger = ILogger
        self.IProgressMonitor = IProgressMonitor
        self.Dims = Dims
        self.driver = ctypes.CDLL("libcuda.so.1")
        self.driver.fake_room.restype = ctypes.c_size_t
        self.driver.fake_room.argtypes = [ctypes.c_void_p]

    def init_libnvinfer_plugins(self, logger: Any, namespace: str) -> bool:
        return True

    def fail(self, name: str, times: int = 1) -> None:
        """Lets the next `times` calls of method `name` fail."""
        self._faults[name] = times

    def failing(self, name: str) -> bool:
        """Whether this call of `name` is to fail."""
        left = self._faults.get(name, 0)
        self._faults[name] = max(0, left - 1)
        return left > 0

    def call(self, name: str, *arguments: Any) -> int:
        """The status of a driver call."""
        status: int = getattr(self.driver, name)(*arguments)
        return status

    def compute_capability(self) -> str:
        """Of the GPU; empty where there is none."""
        numbers = (ctypes.c_int(), ctypes.c_int())
        for number, attribute in zip(numbers, (75, 76), strict=True):
            if self.call("cuDeviceGetAttribute", ctypes.byref(number), attribute, 0):
                return ""
        return f"{numbers[0].value}.{numbers[1].value}"

    def has_context(self) -> bool:
        context = ctypes.c_void_p()
        return self.call("cuCtxGetCurrent", ctypes.byref(context)) == 0 and bool(context.value)


class Part:
    """A class of the fake module; `module` is the installation it belongs to."""

    module: FakeTensorRT

    @contextmanager
    def _alone(self, what: str) -> Iterator[None]:
        """Notes a violation where two threads are in one object at once."""
        lock: Lock = self.__dict__.setdefault("_using", Lock())
        if not lock.acquire(blocking=False):
            self.module.violations.append(f"two threads in {what}")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


def start(part: Part, logger: Any) -> None:
    """What the real library does before it gives a runtime or a builder.

    Where CUDA does not start, with a driver too old for instance, it warns and gives none.
    """
    assert getattr(logger, "made", False), "ILogger.__init__ was not called"
    if part.module.failing(type(part).__name__):
        logger.log(Severity.WARNING, "CUDA initialization failure with error: 35.")
        raise TypeError("pybind11::init(): factory function returned nullptr")


class Runtime(Part):
    def __init__(self, logger: Any) -> None:
        start(self, logger)
        self.engine_host_code_allowed = False
        self.release = self.module.__version__
        # As in the real one, a weak tie: who made the logger must keep it.
        self._logger = weakref.ref(logger)

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        with self._alone("the runtime"):
            return self._deserialized(serialized_engine)

    def load_runtime(self, path: str) -> Runtime | None:
        if self.module.failing("load_runtime"):
            self._say("could not open the lean runtime")
            return None
        runtime: Runtime = self.module.Runtime(self._logger())
        runtime.release = Path(path).read_text()
        return runtime

    def get_engine_validity(self, buffer: bytes) -> tuple[EngineValidity, int]:
        fault = self._fault(buffer)
        return (EngineValidity.INVALID, 32) if fault else (EngineValidity.VALID, 0)

    def _deserialized(self, plan: bytes) -> ICudaEngine | None:
        fault = self._fault(plan)
        if fault is None and self.module.failing("deserialize_cuda_engine"):
            fault = "out of memory"
        if fault is not None:
            self._say(fault)
            return None
        header, graph = _opened(plan)
        weights = ctypes.c_uint64()
        size = max(1, len(graph))
        if self.module.call("cuMemAlloc_v2", ctypes.byref(weights), ctypes.c_size_t(size)):
            self._say("Requested amount of GPU memory could not be allocated (OutOfMemory)")
            return None
        engine: ICudaEngine = self.module.ICudaEngine(header, graph, weights.value, self._say)
        self.module.live_engines.add(engine)
        return engine

    def _fault(self, plan: bytes) -> str | None:
        if not self.module.has_context():
            return "no current CUDA context"
        if not bytes(plan).startswith(MAGIC):
            return "Magic tag does not match"
        header, _ = _opened(plan)
        if header["version"] != self.release:
            return f"Version tag does not match: {header['version']}"
        if self.module.compute_capability() not in header["compute_capabilities"]:
            return "Target GPU SM does not match"
        if header["host_code"] and not self.engine_host_code_allowed:
            return "Engine has host code and engine_host_code_allowed is false"
        return None

    def _say(self, message: str) -> None:
        logger = self._logger()
        assert logger is not None, "the logger is gone while its runtime is used"
        logger.log(Severity.ERROR, message)


class ICudaEngine(Part):
    num_optimization_profiles = 1

    def __init__(
        self, header: dict[str, Any], graph: bytes, weights: int, say: Callable[[str], None]
    ) -> None:
        self.header, self.say = header, say
        self._weights = weights
        self.request = compiled(graph).create_infer_request()
        self.profile = {
            name: tuple(tuple(shape) for shape in shapes)
            for name, shapes in header["profile"].items()
        }
        self._names = (*INPUTS, *header.get("outputs", ["labels"]))

    def __del__(self) -> None:
        if self.module.call("cuMemFree_v2", ctypes.c_uint64(self._weights)):
            self.module.violations.append("an engine was dropped without a current context")

    @property
    def num_io_tensors(self) -> int:
        return len(self._names)

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in INPUTS else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        dtypes: dict[str, str] = self.header.get("dtypes", {})
        return DataType[dtypes.get(name, "FLOAT" if name in INPUTS else "UINT8")]

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation[self.header.get("locations", {}).get(name, "DEVICE")]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        assert profile_index == 0
        return [Dims(shape) for shape in self.profile[name]]

    def create_execution_context(self, strategy: Any = 0) -> IExecutionContext | None:
        if self.module.is_rtx:
            assert isinstance(strategy, self.module.IRuntimeConfig)
            strategy = strategy.strategy
        assert strategy == ExecutionContextAllocationStrategy.USER_MANAGED
        if not self.module.has_context() or self.module.failing("create_execution_context"):
            self.say("the context could not be created")
            return None
        context: IExecutionContext = self.module.IExecutionContext(self)
        return context

    def create_runtime_config(self) -> IRuntimeConfig | None:
        if self.module.failing("create_runtime_config"):
            return None
        config: IRuntimeConfig = self.module.IRuntimeConfig()
        return config


class IRuntimeConfig(Part):
    """TensorRT for RTX alone uses it."""

    def __init__(self) -> None:
        self.strategy = ExecutionContextAllocationStrategy.STATIC
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.dynamic_shapes_kernel_specialization_strategy = (
            DynamicShapesKernelSpecializationStrategy.LAZY
        )

    def set_execution_context_allocation_strategy(
        self, strategy: ExecutionContextAllocationStrategy
    ) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        cache: IRuntimeCache = self.module.IRuntimeCache()
        return cache

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        return not self.module.failing("set_runtime_cache")


class IRuntimeCache(Part):
    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, blob: bytes) -> bool:
        if not self.module.has_context() or not bytes(blob).startswith(b"kernels"):
            return False
        self.content = bytes(blob)
        self.module.compiled_blobs.append(self.content)
        return True

    def serialize(self) -> bytes:
        assert self.module.has_context()
        return self.content or b"kernels"


class IExecutionContext(Part):
    """`state` grows whenever shapes, addresses or memory change: a graph made before is spoilt."""

    def __init__(self, engine: ICudaEngine) -> None:
        self.engine = engine
        self.state = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory = (0, 0)
        self._settled = -1

    def set_input_shape(self, name: str, shape: Any) -> bool:
        with self._alone("an execution context"):
            sizes = tuple(int(size) for size in shape)
            if self.module.failing("set_input_shape"):
                return self._refuse("set_input_shape failed")
            if name not in INPUTS:
                return self._refuse(f"{name} is no input")
            low, _, high = self.engine.profile[name]
            if len(sizes) != len(low) or not all(
                a <= n <= b for a, n, b in zip(low, sizes, high, strict=True)
            ):
                return self._refuse(f"shape {sizes} of {name} is outside {low} to {high}")
            self._shapes[name] = sizes
            self.state += 1
            return True

    def infer_shapes(self) -> list[str]:
        if self.module.failing("infer_shapes"):
            # So the bindings put every fault but a missing shape.
            raise RuntimeError("infer_shapes error code: -1")
        return [name for name in INPUTS if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> Dims:
        if name in INPUTS:
            return Dims(self._shapes.get(name, (-1,)))
        if self.infer_shapes():
            return Dims((1, -1, -1, -1))
        if self.module.failing("get_tensor_shape"):
            return Dims((1, 1, 1, 1))
        return Dims((1, *(self._shapes[f"out_{axis}"][0] for axis in "ijk")))

    def update_device_memory_size_for_shapes(self) -> int:
        if self.infer_shapes() or self.module.failing("update_device_memory_size_for_shapes"):
            return 0
        return SCRATCH_PER_VOXEL * prod(self._shapes[f"in_{axis}"][0] for axis in "ijk")

    def set_device_memory(self, memory: int, size: int) -> None:
        with self._alone("an execution context"):
            if memory % ALIGNMENT or size < self.update_device_memory_size_for_shapes():
                self._refuse(f"device memory of {size} bytes at {memory:#x} does not do")
                return
            self._memory = (int(memory), int(size))
            self.state += 1

    def set_tensor_address(self, name: str, memory: int) -> bool:
        with self._alone("an execution context"):
            if name not in (*INPUTS, "labels") or self.module.failing("set_tensor_address"):
                return self._refuse(f"no address can be set for {name}")
            if memory % ALIGNMENT:
                return self._refuse(f"address {memory:#x} of {name} is not aligned")
            self._addresses[name] = int(memory)
            self.state += 1
            return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        with self._alone("an execution context"):
            fault = self._fault(stream_handle)
            if fault:
                return self._refuse(fault)
            run = Run(self, dict(self._shapes), dict(self._addresses), self._memory)
            function = HostFunction(run)
            # A graph may call it for as long as it lives.
            self.module.kept.append(function)
            self.module.enqueued += 1
            status = self.module.call(
                "cuLaunchHostFunc", ctypes.c_void_p(stream_handle), function, None
            )
            if status:
                return self._refuse(f"enqueue: CUDA error {status}")
            self._settled = self.state
            return True

    def is_stream_capturable(self, stream: int) -> bool:
        return True

    def _fault(self, stream: int) -> str | None:
        if self.module.failing("execute_async_v3"):
            return "enqueue failed"
        if not self.module.has_context():
            return "no current CUDA context"
        if not stream:
            return "the default stream"
        if self.infer_shapes():
            return "not all shapes are set"
        shapes = self._shapes
        for axis, letter in enumerate("ijk"):
            into, out = shapes[f"in_{letter}"], shapes[f"out_{letter}"]
            if into[1] != shapes["image"][2 + axis] or out[1] != into[0]:
                return f"the matrices of axis {letter} do not fit: {shapes}"
        if self._memory[1] < self.update_device_memory_size_for_shapes():
            return "too little device memory"
        missing = [name for name in (*INPUTS, "labels") if not self._addresses.get(name)]
        if missing:
            return f"no address for {missing}"
        return self._memory_fault() or self._capture_fault(stream)

    def _memory_fault(self) -> str | None:
        spans = [("scratch", *self._memory)]
        for name, shape in {**self._shapes, "labels": self.get_tensor_shape("labels")}.items():
            size = prod(shape) * (1 if name == "labels" else 4)
            spans.append((name, self._addresses[name], size))
        for name, address, size in spans:
            if self.module.driver.fake_room(address) < size:
                return f"{name} needs {size} bytes at {address:#x}, which are not there"
        spans.sort(key=lambda span: span[1])
        for (one, start, size), (other, following, _) in pairwise(spans):
            if start + size > following:
                return f"{one} and {other} overlap"
        return None

    def _capture_fault(self, stream: int) -> str | None:
        capturing = ctypes.c_int()
        self.module.call("cuStreamIsCapturing", ctypes.c_void_p(stream), ctypes.byref(capturing))
        if not capturing.value:
            return None
        if self.module.failing("capture"):
            return "this engine cannot be captured"
        if self.module.is_rtx:
            return "captured by hand beside the library's own strategy"
        if self._settled != self.state:
            return "captured before a run settled the new shapes and addresses"
        return None

    def _refuse(self, message: str) -> bool:
        self.engine.say(message)
        return False


class Run:
    """One queued run: computed when the stream gets there, on the state it was queued with."""

    def __init__(
        self,
        context: IExecutionContext,
        shapes: dict[str, tuple[int, ...]],
        addresses: dict[str, int],
        memory: tuple[int, int],
    ) -> None:
        self._module, self._shapes, self._addresses = context.module, shapes, addresses
        self._context, self._memory, self._state = weakref.ref(context), memory, context.state
        self._times = 0

    def __call__(self, _: int | None) -> None:
        module, shapes, context = self._module, self._shapes, self._context()
        if context is None:
            module.violations.append("a graph ran after its context was gone")
            return
        try:
            scratch = _view(*self._memory)
            scratch.fill(0xAB)
            answer = tuple(shapes[f"out_{axis}"][0] for axis in "ijk")
            labels = _view(self._addresses["labels"], prod(answer)).reshape(answer)
            if context.state != self._state:
                module.violations.append("a graph ran after its context had changed")
                labels[...] = np.random.default_rng(0).integers(0, 3, answer)
                return
            inputs = {
                name: _view(self._addresses[name], 4 * prod(shapes[name]))
                .view(np.float32)
                .reshape(shapes[name])
                for name in INPUTS
            }
            module.computed += 1
            self._times += 1
            if module.spoil == "replays" and self._times > 1:
                labels.fill(1)
                return
            if module.spoil == "nothing":
                return
            if module.spoil == "zeros":
                labels.fill(0)
            elif module.spoil == "noise":
                labels[...] = np.random.default_rng(0).integers(0, 3, answer)
            else:
                labels[...] = context.engine.request.infer(inputs)[0][0]
        except Exception as error:  # what escapes here would be lost in C
            module.violations.append(f"a run raised {error!r}")


def _view(address: int, size: int) -> NDArray[np.uint8]:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def _opened(plan: bytes) -> tuple[dict[str, Any], bytes]:
    start = len(MAGIC)
    (size,) = struct.unpack_from("<I", plan, start)
    header: dict[str, Any] = json.loads(bytes(plan[start + 4 : start + 4 + size]))
    return header, bytes(plan[start + 4 + size :])


@lru_cache(maxsize=32)
def compiled(graph: bytes) -> Any:
    """`graph` compiled by OpenVINO, once for all engines of it: each has a request of its own."""
    return _core().compile_model(_core().read_model(graph), "CPU", FLOAT32)


def plan_of(header: dict[str, Any], graph: bytes) -> bytes:
    """What a build gives: the header and the graph with its weights inside."""
    text = json.dumps(header).encode()
    return MAGIC + struct.pack("<I", len(text)) + text + graph


class Builder(Part):
    def __init__(self, logger: Any) -> None:
        start(self, logger)
        self.logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        assert flags & (1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        network: INetworkDefinition = self.module.INetworkDefinition()
        return network

    def create_builder_config(self) -> IBuilderConfig:
        config: IBuilderConfig = self.module.IBuilderConfig()
        return config

    def create_optimization_profile(self) -> IOptimizationProfile:
        profile: IOptimizationProfile = self.module.IOptimizationProfile()
        return profile

    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> bytes | None:
        monitor = config.progress_monitor
        if monitor is not None:
            monitor.phase_start("Building Engine", None, 2)
            if not all(monitor.step_complete("Building Engine", step) for step in range(2)):
                return None
            monitor.phase_finish("Building Engine")
        if self.module.failing("build_serialized_network") or not self.module.compute_capability():
            self.logger.log(Severity.ERROR, "Could not find any implementation for node conv")
            return None
        assert config.profiles and network.graph
        if config.timing_cache is not None:
            config.timing_cache.content = b"timings"
        header = {
            "version": self.module.__version__,
            "compute_capabilities": config.capabilities or [self.module.compute_capability()],
            "host_code": BuilderFlag.VERSION_COMPATIBLE in config.flags_set
            and BuilderFlag.EXCLUDE_LEAN_RUNTIME not in config.flags_set,
            "profile": config.profiles[0].shapes,
        }
        return plan_of(header, network.graph)


class INetworkDefinition(Part):
    graph = b""


class IOptimizationProfile(Part):
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    # Arguments are named as the real ones are.
    def set_shape(self, input: str, min: Dims, opt: Dims, max: Dims) -> None:  # noqa: A002
        self.shapes[input] = [list(shape[:]) for shape in (min, opt, max)]


class ITimingCache(Part):
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content


class IBuilderConfig(Part):
    def __init__(self) -> None:
        self.flags_set = {BuilderFlag.TF32}
        self.profiles: list[IOptimizationProfile] = []
        self.builder_optimization_level = 3
        self.num_compute_capabilities = 0
        self.capabilities: list[str] = []
        self.hardware_compatibility_level = HardwareCompatibilityLevel.NONE
        self.progress_monitor: Any = None
        self.pools: dict[MemoryPoolType, int] = {}
        self.timing_cache: ITimingCache | None = None
        self.module.configs.append(self)

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags_set.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags_set.discard(flag)

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self.pools[pool] = pool_size

    def set_compute_capability(self, compute_capability: ComputeCapability, index: int) -> bool:
        assert index == len(self.capabilities) < self.num_compute_capabilities
        number = compute_capability.name.removeprefix("SM")
        self.capabilities.append(f"{number[:-1]}.{number[-1]}")
        return True

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        for shapes in profile.shapes.values():
            if any(not low <= best <= high for low, best, high in zip(*shapes, strict=True)):
                return -1
        self.profiles.append(profile)
        return 0

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        if serialized_timing_cache not in (b"", b"timings", FOREIGN_TIMINGS):
            return None
        cache: ITimingCache = self.module.ITimingCache(serialized_timing_cache)
        return cache

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.serialize() == FOREIGN_TIMINGS:
            return False
        self.timing_cache = cache
        return True


class IProgressMonitor:
    def __init__(self) -> None:
        self.made = True


class ParserError:
    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text


class OnnxParser(Part):
    def __init__(self, network: INetworkDefinition, logger: Any) -> None:
        self._network = network
        self._errors: list[ParserError] = []

    def clear_flag(self, flag: OnnxParserFlag) -> None:
        self.module.cleared.append(flag)

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def parse_from_file(self, model: str) -> bool:
        if self.module.failing("parse_from_file"):
            self._errors.append(ParserError("No importer registered for op: Strange"))
            return False
        try:
            # With its external weights, as the real one reads it.
            self._network.graph = onnx.load(Path(model)).SerializeToString()
        except (OSError, ValueError, onnx.checker.ValidationError) as error:
            self._errors.append(ParserError(str(error)))
            return False
        return True


PARTS: tuple[type[Part], ...] = (
    *(Runtime, ICudaEngine, IExecutionContext, IRuntimeConfig, IRuntimeCache, Builder),
    *(INetworkDefinition, IOptimizationProfile, ITimingCache, IBuilderConfig, OnnxParser),
)
ENUMS: tuple[type[IntEnum], ...] = (
    *(TensorIOMode, DataType, TensorLocation, ExecutionContextAllocationStrategy),
    *(NetworkDefinitionCreationFlag, BuilderFlag, HardwareCompatibilityLevel, MemoryPoolType),
    *(EngineValidity, OnnxParserFlag, CudaGraphStrategy, DynamicShapesKernelSpecializationStrategy),
    ComputeCapability,
)
