"""`rare-trt doctor`: what this machine has, what it can run, and what to do about the rest."""

from __future__ import annotations

import argparse
import ctypes
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Final, TypeVar

from rare_trt.backends import ENGINE_BACKENDS, EngineBackend
from rare_trt.commands import add_signature_option
from rare_trt.commands.info import table
from rare_trt.errors import PackageError, RareTrtError
from rare_trt.package.manifest import EngineEntry, GraphEntry
from rare_trt.package.reading import Package, open_package
from rare_trt.sessions.advisories import LOOKED_AT, Advisory, State, advisories
from rare_trt.sessions.compatibility import incompatibility
from rare_trt.sessions.device import driver_release
from rare_trt.sessions.machine import (
    INSTALL,
    Machine,
    library,
    this_machine,
    this_platform,
    version_of,
)

if TYPE_CHECKING:
    from rare_trt.commands import Parsers
    from rare_trt.sessions.openvino import OpenVinoFacts

Found = TypeVar("Found")

NAMES: Final[Mapping[EngineBackend, str]] = {
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT for RTX",
}

# In the order in which rare-trt takes them.
BINDINGS: Final = {"cuda-bindings": "cuda.bindings.driver", "PyCUDA": "pycuda.driver"}

RUNS: Final = "runs"


@dataclass(frozen=True)
class Surroundings:
    """What a machine has beside its GPU and the libraries for it.

    `driver` is the release of NVIDIA's driver, empty where none was found. `absent` says why a
    library cannot be used, `openvino` the same of OpenVINO where it is a text.
    """

    python: str
    driver: str
    bindings: str
    openvino: OpenVinoFacts | str
    absent: Mapping[EngineBackend, str]


def add_parser(commands: Parsers) -> None:
    parser = commands.add_parser(
        "doctor",
        help="what this machine can run, and what to do about the rest",
        description="Looks at this machine and says what of the package it can run, what each "
        "backend that cannot be used needs, and which vulnerabilities its TensorRT is known to "
        "have. Changes nothing; exits 0 whatever it finds.",
    )
    parser.add_argument("package", nargs="?", default="hippocampus", metavar="NAME|DIR")
    add_signature_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    machine, around = looked()
    package = _tried(
        partial(open_package, options.package, require_signature=options.require_signature)
    )
    sections: dict[str, Callable[[], list[str]]] = {
        "This machine": partial(machine_lines, machine, around),
        f"Package {options.package}": partial(package_lines, package, machine, around),
        "Backends": partial(backend_lines, options.package, package, machine, around),
        "Known vulnerabilities": partial(advisory_lines, machine),
    }
    for heading, section in sections.items():
        lines = _tried(section)
        print(heading)
        for line in [lines] if isinstance(lines, str) else lines:
            print(f"  {line}")
        print()
    return 0


def looked() -> tuple[Machine, Surroundings]:
    """This machine, as far as it can be looked at."""
    from rare_trt.sessions.openvino import openvino_facts

    modules = {backend: _tried(partial(library, backend)) for backend in ENGINE_BACKENDS}
    machine = _tried(this_machine)
    if isinstance(machine, str):
        there = {b: version_of(m) for b, m in modules.items() if not isinstance(m, str)}
        machine = Machine(this_platform(), None, machine, there)
    around = Surroundings(
        python=f"{platform.python_version()} ({platform.python_implementation()})",
        driver=_driver(),
        bindings=_bindings(),
        openvino=_tried(openvino_facts),
        absent={b: found for b, found in modules.items() if isinstance(found, str)},
    )
    return machine, around


def machine_lines(machine: Machine, around: Surroundings) -> list[str]:
    """What the machine has, one line each."""
    gpu = machine.gpu
    rows = [
        ("platform", machine.platform),
        ("Python", around.python),
        ("GPU", machine.no_gpu),
        ("driver", around.driver or "none found"),
        ("CUDA bindings", around.bindings),
    ]
    if gpu is not None:
        shared = ", shared with the CPU" if gpu.integrated else ""
        memory = f"{gpu.memory_bytes / 2**30:.1f} GiB{shared}"
        rows[2] = ("GPU", f"{gpu.name}, compute capability {gpu.compute_capability}, {memory}")
        rows[3] = ("driver", gpu.driver)
    for backend, name in NAMES.items():
        absent = around.absent.get(backend, "not installed")
        rows.append((name, machine.libraries.get(backend, absent)))
    return table([*rows, *_openvino_rows(around.openvino)])


def package_lines(package: Package | str, machine: Machine, around: Surroundings) -> list[str]:
    """Every graph and engine of the package, and whether it runs; equal answers share a line."""
    if isinstance(package, str):
        return [package]
    routes: dict[tuple[str, str], set[int]] = {}
    for what, route, state in _states(package, machine, around):
        routes.setdefault((what, state), set()).add(route)
    rows = [(f"route {', '.join(map(str, sorted(found)))}", *key) for key, found in routes.items()]
    return [*table(rows), "`rare-trt verify` proves the answers of what runs"]


def backend_lines(
    name: str, package: Package | str, machine: Machine, around: Surroundings
) -> list[str]:
    """Every backend: usable, or the one thing to do."""
    rows = [("openvino", around.openvino if isinstance(around.openvino, str) else "usable")]
    for backend in ENGINE_BACKENDS:
        to_do = _missing(backend, machine, around) or _unbuilt(backend, name, package, machine)
        rows.append((backend, to_do or "usable"))
    return table(rows)


def advisory_lines(machine: Machine) -> list[str]:
    """What NVIDIA's bulletins say of the libraries that were found."""
    lines = []
    tensorrt = machine.libraries.get("tensorrt")
    if tensorrt is None:
        lines.append("TensorRT: none could be loaded")
    elif found := advisories(tensorrt):
        lines += [f"TensorRT {tensorrt}:", *table([_advisory_row(*pair) for pair in found])]
        if "unknown" in {state for _, state in found}:
            lines.append("unknown: the bulletins say nothing of this release")
        safe = ".".join(map(str, max(advisory.fixed_in for advisory, _ in found)))
        lines.append(f"use TensorRT {safe} or later where this machine has it, and until then only")
        lines.append("packages that come from whom you trust: docs/measurements/tensorrt.md")
    else:
        lines.append(f"TensorRT {tensorrt}: none known")
    if rtx := machine.libraries.get("tensorrt-rtx"):
        lines.append(f"TensorRT for RTX {rtx}: unknown, the bulletins do not name it")
    return [*lines, f"as of NVIDIA's bulletins of {LOOKED_AT}"]


def _openvino_rows(facts: OpenVinoFacts | str) -> list[tuple[str, str]]:
    if isinstance(facts, str):
        return [("OpenVINO", facts)]
    has = {name: "yes" if name in facts.capabilities else "no" for name in ("BF16", "INT8")}
    cpu = f"{facts.cpu} (bf16: {has['BF16']}, int8: {has['INT8']})"
    return [("OpenVINO", facts.version), ("CPU", cpu)]


def _states(
    package: Package, machine: Machine, around: Surroundings
) -> Iterator[tuple[str, int, str]]:
    """What each graph and engine is called, its route, and whether it runs."""
    manifest = package.manifest
    no_openvino = around.openvino if isinstance(around.openvino, str) else None
    for graph in manifest.graphs:
        state = no_openvino or _damage(package, graph) or RUNS
        yield f"openvino {graph.precision}", graph.route, state
    for engine in manifest.engines:
        state = _obstacle(package, engine, machine) or _damage(package, engine) or RUNS
        yield f"{engine.backend} {engine.precision}", engine.route, state


def _obstacle(package: Package, entry: EngineEntry, machine: Machine) -> str | None:
    return _tried(partial(incompatibility, entry, package.manifest, machine))


def _damage(package: Package, entry: GraphEntry | EngineEntry) -> str | None:
    """What is wrong with the files of `entry`, None where they are what the manifest says."""
    names = [entry.file, entry.weights] if isinstance(entry, GraphEntry) else [entry.file]
    try:
        for name in names:
            package.read(name)
    except PackageError as error:
        return str(error)
    return None


def _missing(backend: EngineBackend, machine: Machine, around: Surroundings) -> str | None:
    """What the machine lacks for `backend`, the first thing first."""
    from rare_trt.engines.builder import RTX_CAPABILITIES

    gpu = machine.gpu
    if gpu is None and not around.driver:
        return "no NVIDIA driver was found: install it where there is an NVIDIA GPU"
    # Before the library: nothing that is installed would help.
    if backend == "tensorrt-rtx" and gpu and gpu.compute_capability not in RTX_CAPABILITIES:
        known = ", ".join(RTX_CAPABILITIES)
        return (
            f"made for compute capability {known}; {gpu.name} has {gpu.compute_capability}: use "
            "tensorrt"
        )
    if backend not in machine.libraries:
        return around.absent.get(backend, INSTALL[backend])
    return machine.no_gpu if gpu is None else None


def _unbuilt(
    backend: EngineBackend, name: str, package: Package | str, machine: Machine
) -> str | None:
    """What the package lacks for `backend` on a machine that has all it needs."""
    if isinstance(package, str):
        return package
    engines = [engine for engine in package.manifest.engines if engine.backend == backend]
    reasons = [_obstacle(package, engine, machine) for engine in engines]
    if None in reasons:
        return None
    build = f"`rare-trt build --package {name} --backend {backend}`"
    return reasons[0] if reasons else f"the package has no engine for it: {build}"


def _advisory_row(advisory: Advisory, state: State) -> Sequence[str]:
    below, fixed = (".".join(map(str, v)) for v in (advisory.affected_below, advisory.fixed_in))
    return (
        f"  {advisory.cve}",
        state,
        f"affects all before {below}",
        f"fixed in {fixed}",
        advisory.what,
        advisory.published,
    )


def _driver() -> str:
    """NVIDIA's driver in a word, empty where there is none."""
    release = driver_release()
    if release:
        return release
    # A Jetson writes its release nowhere, and has the library all the same.
    name = "nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1"
    try:
        ctypes.CDLL(name)
    except OSError:
        return ""
    return "installed, of unknown release"


def _bindings() -> str:
    """The first CUDA bindings that can be loaded, and what is wrong with those before them."""
    found = []
    for name, module in BINDINGS.items():
        try:
            import_module(module)
        except ModuleNotFoundError:
            continue
        except Exception as error:
            found.append(f"{name} {_said(error)}")
            continue
        found.append(f"{name} {_tried(partial(version, name))}")
        break
    return "; ".join(found) or "none"


def _tried(probe: Callable[[], Found]) -> Found | str:
    """What `probe` finds, or what went wrong: a broken machine is what doctor is for."""
    try:
        return probe()
    except RareTrtError as error:
        return str(error)
    except Exception as error:
        return f"{_said(error)}: install it again"


def _said(error: Exception) -> str:
    line = next(iter(str(error).splitlines()), "")
    return f"cannot be used ({type(error).__name__}: {line})"
