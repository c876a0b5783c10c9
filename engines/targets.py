"""Machines that engines are built for, and what can be built for them from here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from rare_trt.engines.builder import RTX_CAPABILITIES
from rare_trt.package.manifest import BuilderOptions
from rare_trt.sessions.machine import Machine


@dataclass(frozen=True)
class Target:
    """A kind of machine: its GPU, and the TensorRT that goes with it."""

    name: str
    gpu: str
    compute_capability: str
    platform: str
    tensorrt: str
    jetpack: str | None = None

    @classmethod
    def here(cls, machine: Machine) -> Target | None:
        """`machine` as a target; None where it has no GPU."""
        if machine.gpu is None:
            return None
        return cls(
            name="this machine",
            gpu=machine.gpu.name,
            compute_capability=machine.gpu.compute_capability,
            platform=machine.platform,
            tensorrt=machine.libraries.get("tensorrt", "not installed"),
        )


ARM, X86 = "linux-aarch64", "linux-x86_64"

# docs/measurements/tensorrt.md says where these come from.
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
class Outlook:
    """What can be built here for a target: `backends`, or why none can."""

    target: Target
    backends: tuple[str, ...]
    why_not: str


def outlooks(machine: Machine, options: BuilderOptions) -> Iterator[Outlook]:
    """This machine, where it has a GPU, and every named target."""
    here = Target.here(machine)
    for target in (here, *TARGETS) if here else TARGETS:
        reasons = {
            "tensorrt": _no_tensorrt(target, machine, options),
            "tensorrt-rtx": _no_rtx(target, machine),
        }
        backends = tuple(backend for backend, reason in reasons.items() if reason is None)
        why_not = "; ".join(f"{backend}: {reason}" for backend, reason in reasons.items() if reason)
        yield Outlook(target, backends, "" if backends else why_not)


def _no_tensorrt(target: Target, machine: Machine, options: BuilderOptions) -> str | None:
    if "tensorrt" not in machine.libraries:
        return "TensorRT is not installed here"
    if machine.gpu is None:
        return "builds only on a machine with a GPU"
    if target.platform != machine.platform:
        return f"engines do not cross from {machine.platform} to {target.platform}"
    if target.name == "this machine":
        return None
    if target.jetpack is not None or machine.gpu.integrated:
        return "a Jetson's engines are built on it: build on the target"
    compatibility = options.hardware_compatibility
    both_ampere = min(_number(target), float(machine.gpu.compute_capability)) >= 8.0
    if compatibility == "ampere_plus" and both_ampere:
        return None
    if target.compute_capability != machine.gpu.compute_capability:
        return f"{machine.gpu.name} is another kind of GPU: build on the target"
    if compatibility == "same_compute_capability":
        return None
    return "engines are bound to this very GPU: add --hardware-compatibility"


def _no_rtx(target: Target, machine: Machine) -> str | None:
    if target.compute_capability not in RTX_CAPABILITIES:
        return f"not made for compute capability {target.compute_capability}"
    if "tensorrt-rtx" not in machine.libraries:
        return "TensorRT for RTX is not installed here"
    if target.platform != machine.platform:
        return f"engines do not cross from {machine.platform} to {target.platform}"
    return None


def _number(target: Target) -> float:
    return float(target.compute_capability)
