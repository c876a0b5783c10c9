"""An engine from a typed graph: parse, profile, build. One way for both TensorRT libraries.

The precision is in the graph, never in builder flags: TensorRT 11 has none, and typed graphs work
from 10 on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tqdm import tqdm

from rare_trt.backends import EngineBackend
from rare_trt.errors import BackendError
from rare_trt.package.manifest import BuilderOptions, Shapes
from rare_trt.package.reading import graph_on_disk
from rare_trt.sessions.machine import Machine, import_library, version_of
from rare_trt.sessions.nvidia_logger import construct, logger_of

if TYPE_CHECKING:
    import tensorrt as trt

# What TensorRT for RTX compiles for when nothing else is said, named so that it is on record.
RTX_CAPABILITIES: Final = ("8.0", "8.6", "8.9", "12.0", "12.1")

# A Jetson's GPU shares its memory with everything else that runs there.
INTEGRATED_WORKSPACE: Final = 4


@dataclass(frozen=True, eq=False)
class TypedGraph:
    """One route's graph with its weights; `weights_name` is what the graph calls them."""

    route: int
    graph: bytes
    weights_name: str
    weights: bytes


class EngineBuilder:
    """Builds engines with one library, one after the other, and remembers kernel timings.

    Raises BackendError where the library is absent, or cannot build on this machine with
    `options`.
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
        fault = self._fault(machine)
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
        """The GPUs that engines of this builder are for."""
        if self.backend == "tensorrt-rtx":
            return _known_capabilities(self._module)
        assert self._machine.gpu is not None
        return (self._machine.gpu.compute_capability,)

    @property
    def gpu(self) -> str | None:
        """The GPU that engines of this builder are bound to."""
        if self.backend == "tensorrt-rtx" or self._machine.gpu is None:
            return None
        return self._machine.gpu.name

    def build(self, source: TypedGraph, shapes: Mapping[str, Shapes]) -> bytes:
        """The serialized engine of `source` for the profile `shapes`.

        Raises BackendError that names the route, what the library said and what to do.
        """
        self._log.errors.clear()
        network = self.network(source)
        config = self._config()
        profile = self._builder.create_optimization_profile()
        dims = self._module.Dims
        for name, (low, typical, high) in shapes.items():
            profile.set_shape(name, dims(low), dims(typical), dims(high))
        if config.add_optimization_profile(profile) < 0:
            raise self._failed(source, f"the optimisation profile {dict(shapes)} was refused")
        timings = self._timing_cache(config)
        self._log.interrupts.clear()
        with _progress(self._module, config, source.route) as interrupts:
            plan = self._builder.build_serialized_network(network, config)
        for interrupt in (*interrupts, *self._log.interrupts):
            raise interrupt
        if plan is None:
            raise self._failed(source, "no engine was built")
        serialized = None if timings is None else timings.serialize()
        if serialized is not None:
            self.timing_cache = bytes(serialized)
        return bytes(plan)

    def network(self, source: TypedGraph) -> trt.INetworkDefinition:
        """The parsed network of `source`, strongly typed."""
        module = self._module
        flag = 1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = self._builder.create_network(flag)
        parser: trt.OnnxParser = module.OnnxParser(network, self._log)
        with graph_on_disk(source.graph, source.weights, source.weights_name) as path:
            parsed = parser.parse_from_file(str(path))
        if not parsed:
            errors = (parser.get_error(index) for index in range(parser.num_errors))
            said = "; ".join(error.desc() for error in errors)
            raise self._failed(source, f"the graph cannot be parsed: {said}")
        return network

    def _config(self) -> trt.IBuilderConfig:
        module, options = self._module, self.options
        config = self._builder.create_builder_config()
        flags = module.BuilderFlag
        # On by default, and not wanted: the image's resampling is float32 for its digits.
        if not options.tf32:
            config.clear_flag(flags.TF32)
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level
        workspace = self._workspace_bytes()
        if workspace is not None:
            config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, workspace)
        if options.version_compatible:
            config.set_flag(flags.VERSION_COMPATIBLE)
            # The lean runtime inside an engine would be host code that runs with it.
            config.set_flag(flags.EXCLUDE_LEAN_RUNTIME)
        if options.hardware_compatibility != "none":
            level = options.hardware_compatibility.upper()
            config.hardware_compatibility_level = getattr(module.HardwareCompatibilityLevel, level)
        if self.backend == "tensorrt-rtx":
            _set_capabilities(module, config)
        return config

    def _workspace_bytes(self) -> int | None:
        if self.options.workspace_mib is not None:
            return self.options.workspace_mib << 20
        gpu = self._machine.gpu
        if gpu is not None and gpu.integrated:
            return gpu.memory_bytes // INTEGRATED_WORKSPACE
        return None

    def _timing_cache(self, config: trt.IBuilderConfig) -> trt.ITimingCache | None:
        # TensorRT for RTX times nothing: its kernels are compiled on the GPU that runs them.
        if self.backend == "tensorrt-rtx":
            return None
        # Timings of another release or GPU are refused: then start afresh.
        for kept in (self.timing_cache, b""):
            timings: trt.ITimingCache | None = config.create_timing_cache(kept)
            if timings is not None and config.set_timing_cache(timings, False):
                return timings
        return None

    def _fault(self, machine: Machine) -> str | None:
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
                f"TensorRT {self.version} does not know hardware compatibility {level}: install "
                "10.9 or later, or leave it out"
            )
        return None

    def _failed(self, source: TypedGraph, what: str) -> BackendError:
        said = "; ".join(self._log.errors) or "it did not say why"
        return BackendError(
            f"route {source.route}: {what} by {self.backend} {self.version} ({said}): free memory "
            "or set --workspace, and report this with the library's version if it stays"
        )


def _known_capabilities(module: Any) -> tuple[str, ...]:
    """Those of RTX_CAPABILITIES that this release can compile for."""
    kinds = module.ComputeCapability
    return tuple(one for one in RTX_CAPABILITIES if hasattr(kinds, _member(one)))


def _member(capability: str) -> str:
    return f"SM{capability.replace('.', '')}"


def _set_capabilities(module: Any, config: Any) -> None:
    known = _known_capabilities(module)
    config.num_compute_capabilities = len(known)
    for index, capability in enumerate(known):
        member = getattr(module.ComputeCapability, _member(capability))
        if not config.set_compute_capability(member, index):
            raise BackendError(
                f"TensorRT for RTX refused compute capability {capability}: install a later release"
            )


@contextmanager
def _progress(module: Any, config: Any, route: int) -> Iterator[list[BaseException]]:
    """Shows the library's progress on one engine as a bar.

    Exceptions do not cross the library: an interrupt from the keyboard stops the build and is kept
    in the list that is given.
    """
    interrupts: list[BaseException] = []
    with tqdm(desc=f"route {route}", unit="step", total=0, leave=False) as bar:
        # Which library it is, is known at run time only.
        class Monitor(module.IProgressMonitor):  # type: ignore[misc]
            def __init__(self) -> None:
                module.IProgressMonitor.__init__(self)

            def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
                try:
                    bar.total = (bar.total or 0) + steps
                    bar.refresh()
                except BaseException as interrupt:
                    interrupts.append(interrupt)

            def step_complete(self, phase: str, step: int) -> bool:
                try:
                    bar.update()
                except BaseException as interrupt:
                    interrupts.append(interrupt)
                return not interrupts

            def phase_finish(self, phase: str) -> None:
                try:
                    bar.refresh()
                except BaseException as interrupt:
                    interrupts.append(interrupt)

        monitor = Monitor()
        config.progress_monitor = monitor
        yield interrupts
        config.progress_monitor = None
