"""Compatibility of a package's engines with a machine."""

from __future__ import annotations

from rare_trt.package.manifest import EngineEntry, Manifest
from rare_trt.package.reading import is_fp16_within_budget
from rare_trt.sessions.machine import INSTALL, MODULES, Machine, version_numbers


def incompatibility(entry: EngineEntry, manifest: Manifest, machine: Machine) -> str | None:
    """Returns why the engine `entry` cannot run on `machine`, None where it can."""
    graphs = [
        g for g in manifest.graphs if (g.route, g.precision) == (entry.route, entry.precision)
    ]
    if entry.graph_sha256 not in [manifest.graph_sha256(graph) for graph in graphs]:
        return "built from another graph than the package holds: build it again"
    if entry.precision == "fp16" and not is_fp16_within_budget(manifest, entry.route):
        return "calibration found that fp16 exceeds the Dice budget: build it with --precision fp32"
    if entry.platform != machine.platform:
        return f"built for {entry.platform}; this is {machine.platform}: build it here"
    if entry.backend not in machine.libraries:
        return f"{MODULES[entry.backend]} is not installed: {INSTALL[entry.backend]}"
    return _library_mismatch(entry, machine) or _gpu_mismatch(entry, machine)


def _library_mismatch(entry: EngineEntry, machine: Machine) -> str | None:
    here = machine.libraries[entry.backend]
    if here == entry.library:
        return None
    built, found = version_numbers(entry.library), version_numbers(here)
    if entry.options.version_compatible and built[0] == found[0] and built <= found:
        if entry.library in machine.lean_runtimes:
            return None
        return (
            f"built with {entry.backend} {entry.library}, whose lean runtime it needs on {here}: "
            f"pip install tensorrt-lean=={entry.library}, or build it again"
        )
    return f"built with {entry.backend} {entry.library}; this machine has {here}: build it again"


def _gpu_mismatch(entry: EngineEntry, machine: Machine) -> str | None:
    gpu = machine.gpu
    if gpu is None:
        return machine.no_gpu
    compatibility = entry.options.hardware_compatibility
    if compatibility == "ampere_plus" and version_numbers(gpu.compute_capability) >= (8, 0):
        return None
    if gpu.compute_capability not in entry.compute_capabilities:
        known = ", ".join(entry.compute_capabilities)
        return (
            f"built for compute capability {known}; {gpu.name} has {gpu.compute_capability}: build "
            "it here"
        )
    if entry.backend == "tensorrt" and compatibility == "none" and gpu.name != entry.gpu:
        return f"built on {entry.gpu}; this is {gpu.name}: build it here"
    return None
