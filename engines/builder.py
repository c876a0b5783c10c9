"""An engine from a typed graph: parse, set the profile, build, with either TensorRT library.

The precision is in the graph, never in builder flags: TensorRT 11 has none, and typed graphs work
from release 10 on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rare_trt.backends import EngineBackend
from rare_trt.engines.progress import show_progress
from rare_trt.engines.rtx import find_capabilities, set_capabilities
from rare_trt.errors import BackendError
from rare_trt.package.manifest import BuilderOptions, Shapes
from rare_trt.package.reading import graph_on_disk
from rare_trt.sessions.machine import Machine, import_library, version_of
from rare_trt.sessions.nvidia_logger import construct, logger_of

if TYPE_CHECKING:
    import tensorrt as trt

# One part in so many of a Jetson's memory, which its GPU shares with all other programs.
INTEGRATED_WORKSPACE: Final = 4


@dataclass(frozen=True, eq=False)
class TypedGraph:
    """One route's graph with its weights; `weights_name` is the file name that the graph refers
    to."""

    route: int
    graph: bytes
    weights_name: str
    weights: bytes


class EngineBuilder:
    """Builds engines with one library, one after the other, and keeps kernel timings.

    `timing_cache` holds the timings of earlier builds, and after a build those of that one too.
    Raises BackendError where the library is absent, or cannot build on `machine` with `options`.
    """

    def __init__(
        self,
        backend: EngineBackend,
        options: BuilderOptions,
        machine: Machine,
        timing_cache: bytes = b"",
    ) -> None:
        self.backend, self.options = backend, options
        self._module = import_library(backend)
        self.version = version_of(self._module)
        fault = self._find_fault(machine)
        if fault:
            raise BackendError(fault)
        self._machine = machine
        self._log = logger_of(self._module)
        self._builder: trt.Builder = construct(
            self._module.Builder, backend, self.version, self._log
        )
        self.timing_cache = timing_cache

    @property
    def compute_capabilities(self) -> tuple[str, ...]:
        """Compute capabilities of the GPUs that engines of this builder run on."""
        if self.backend == "tensorrt-rtx":
            return find_capabilities(self._module)
        assert self._machine.gpu is not None
        return (self._machine.gpu.compute_capability,)

    @property
    def gpu(self) -> str | None:
        """The GPU that engines of this builder are bound to; None for TensorRT for RTX."""
        if self.backend == "tensorrt-rtx" or self._machine.gpu is None:
            return None
        return self._machine.gpu.name

    def build(self, source: TypedGraph, shapes: Mapping[str, Shapes]) -> bytes:
        """The serialized engine of `source` for the optimisation profile `shapes`.

        Raises BackendError, which names the route, the library's messages and a remedy.
        """
        self._log.errors.clear()
        network = self.parse(source)
        config = self._make_config()
        profile = self._builder.create_optimization_profile()
        dims = self._module.Dims
        for name, (low, typical, high) in shapes.items():
            profile.set_shape(name, dims(low), dims(typical), dims(high))
        if config.add_optimization_profile(profile) < 0:
            raise self._error(source, f"the optimisation profile {dict(shapes)} was refused")
        timings = self._attach_timings(config)
        self._log.interrupts.clear()
        with show_progress(self._module, config, source.route) as interrupts:
            engine = self._builder.build_serialized_network(network, config)
        for interrupt in (*interrupts, *self._log.interrupts):
            raise interrupt
        if engine is None:
            raise self._error(source, "no engine was built")
        serialized = None if timings is None else timings.serialize()
        if serialized is not None:
            self.timing_cache = bytes(serialized)
        return bytes(engine)

    def parse(self, source: TypedGraph) -> trt.INetworkDefinition:
        """The parsed network of `source`, strongly typed; raises BackendError like `build`."""
        module = self._module
        flag = 1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = self._builder.create_network(flag)
        parser: trt.OnnxParser = module.OnnxParser(network, self._log)
        with graph_on_disk(source.graph, source.weights, source.weights_name) as path:
            parsed = parser.parse_from_file(str(path))
        if not parsed:
            errors = (parser.get_error(index) for index in range(parser.num_errors))
            messages = "; ".join(error.desc() for error in errors)
            raise self._error(source, f"the graph cannot be parsed: {messages}")
        return network

    def _make_config(self) -> trt.IBuilderConfig:
        module, options = self._module, self.options
        config = self._builder.create_builder_config()
        flags = module.BuilderFlag
        # TF32 is on by default, and would round the image's resampling, which is float32.
        if not options.tf32:
            config.clear_flag(flags.TF32)
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level
        workspace = self._workspace_bytes()
        if workspace is not None:
            config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, workspace)
        if options.version_compatible:
            config.set_flag(flags.VERSION_COMPATIBLE)
            # A lean runtime inside the engine would be host code that is loaded with it.
            config.set_flag(flags.EXCLUDE_LEAN_RUNTIME)
        if options.hardware_compatibility != "none":
            level = options.hardware_compatibility.upper()
            config.hardware_compatibility_level = getattr(module.HardwareCompatibilityLevel, level)
        if self.backend == "tensorrt-rtx":
            set_capabilities(module, config)
        return config

    def _workspace_bytes(self) -> int | None:
        if self.options.workspace_mib is not None:
            return self.options.workspace_mib << 20
        gpu = self._machine.gpu
        if gpu is not None and gpu.integrated:
            return gpu.memory_bytes // INTEGRATED_WORKSPACE
        return None

    def _attach_timings(self, config: trt.IBuilderConfig) -> trt.ITimingCache | None:
        # TensorRT for RTX measures no kernels: they are compiled on the GPU that runs them.
        if self.backend == "tensorrt-rtx":
            return None
        # Timings of another release or GPU are refused: start with none then.
        for earlier in (self.timing_cache, b""):
            timings: trt.ITimingCache | None = config.create_timing_cache(earlier)
            if timings is not None and config.set_timing_cache(timings, False):
                return timings
        return None

    def _find_fault(self, machine: Machine) -> str | None:
        options = self.options
        if self.backend == "tensorrt" and machine.gpu is None:
            return (
                f"TensorRT builds engines only on a machine with an NVIDIA GPU ({machine.no_gpu}): "
                "build on the GPU they are to run on, or with --backend tensorrt-rtx for RTX GPUs"
            )
        if self.backend == "tensorrt-rtx":
            if options.version_compatible or options.hardware_compatibility != "none":
                return (
                    "TensorRT for RTX engines run on every RTX GPU and with their own release "
                    "alone: leave out --version-compatible and --hardware-compatibility"
                )
            return None
        level = options.hardware_compatibility
        if level != "none" and not hasattr(self._module.HardwareCompatibilityLevel, level.upper()):
            return (
                f"TensorRT {self.version} does not support hardware compatibility {level}: install "
                "10.9 or later, or leave it out"
            )
        return None

    def _error(self, source: TypedGraph, fault: str) -> BackendError:
        messages = "; ".join(self._log.errors) or "it gave no reason"
        return BackendError(
            f"route {source.route}: {fault} by {self.backend} {self.version} ({messages}): free "
            "memory or set --workspace, and report this with the library's version if it stays"
        )
