"""Machines to build engines for, and the build plan: which library can build for them here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from rare_trt.engines.rtx import RTX_CAPABILITIES
from rare_trt.package.manifest import BuilderOptions
from rare_trt.sessions.machine import Machine

THIS_MACHINE: Final = "this machine"


@dataclass(frozen=True)
class Target:
    """A kind of machine: its GPU, its platform, and the TensorRT releases that it runs."""

    name: str
    gpu: str
    compute_capability: str
    platform: str
    tensorrt: str
    jetpack: str | None = None

    @classmethod
    def from_machine(cls, machine: Machine) -> Target | None:
        """This `machine` as a target; None where it has no GPU."""
        if machine.gpu is None:
            return None
        return cls(
            name=THIS_MACHINE,
            gpu=machine.gpu.name,
            compute_capability=machine.gpu.compute_capability,
            platform=machine.platform,
            tensorrt=machine.libraries.get("tensorrt", "not installed"),
        )


ARM, X86 = "linux-aarch64", "linux-x86_64"

# docs/measurements/tensorrt.md names the sources.
TARGETS: Final = (
    Target("jetson-orin", "Jetson Orin", "8.7", ARM, "10.3", "JetPack 6.1 and 6.2"),
    Target("jetson-orin-7", "Jetson Orin", "8.7", ARM, "10.16", "JetPack 7.2"),
    Target("jetson-thor", "Jetson Thor", "11.0", ARM, "10.13", "JetPack 7.1"),
    Target("jetson-thor-7", "Jetson Thor", "11.0", ARM, "10.16", "JetPack 7.2"),
    Target("a100", "A100", "8.0", X86, "10.3 - 11.x"),
    Target("h100", "H100", "9.0", X86, "10.3 - 11.x"),
    Target("l4", "L4", "8.9", X86, "10.3 - 11.x"),
    Target("rtx-40", "GeForce RTX 40", "8.9", X86, "10.3 - 11.x"),
    Target("rtx-50", "GeForce RTX 50", "12.0", X86, "10.8 - 11.x"),
)


@dataclass(frozen=True)
class BuildPlan:
    """The `backends` that can build engines for `target` here, or the reason why none can."""

    target: Target
    backends: tuple[str, ...]
    reason: str


def plan_builds(machine: Machine, options: BuilderOptions) -> Iterator[BuildPlan]:
    """A plan for `machine`, where it has a GPU, and for every one of TARGETS."""
    this = Target.from_machine(machine)
    for target in (this, *TARGETS) if this else TARGETS:
        reasons = {
            "tensorrt": _refuse_tensorrt(target, machine, options),
            "tensorrt-rtx": _refuse_rtx(target, machine),
        }
        backends = tuple(backend for backend, reason in reasons.items() if reason is None)
        refusals = "; ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason)
        yield BuildPlan(target, backends, "" if backends else refusals)


def _refuse_tensorrt(target: Target, machine: Machine, options: BuilderOptions) -> str | None:
    """The reason why TensorRT cannot build for `target` on `machine`; None where it can."""
    if "tensorrt" not in machine.libraries:
        return "TensorRT is not installed here"
    if machine.gpu is None:
        return "builds only on a machine with a GPU"
    if target.platform != machine.platform:
        return f"engines built on {machine.platform} do not run on {target.platform}"
    if target.name == THIS_MACHINE:
        return None
    if target.jetpack is not None or machine.gpu.integrated:
        return "a Jetson's engines are built on it: build on the target"
    compatibility = options.hardware_compatibility
    capabilities = float(target.compute_capability), float(machine.gpu.compute_capability)
    if compatibility == "ampere_plus" and min(capabilities) >= 8.0:
        return None
    if target.compute_capability != machine.gpu.compute_capability:
        return f"{machine.gpu.name} is another kind of GPU: build on the target"
    if compatibility == "same_compute_capability":
        return None
    return "engines are bound to this model of GPU: add --hardware-compatibility"


def _refuse_rtx(target: Target, machine: Machine) -> str | None:
    """The reason why TensorRT for RTX cannot build for `target` on `machine`; None where it can."""
    if target.compute_capability not in RTX_CAPABILITIES:
        return f"does not support compute capability {target.compute_capability}"
    if "tensorrt-rtx" not in machine.libraries:
        return "TensorRT for RTX is not installed here"
    if target.platform != machine.platform:
        return f"engines built on {machine.platform} do not run on {target.platform}"
    return None
