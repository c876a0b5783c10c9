"""`rare-trt doctor`: what this machine has and can run, and a remedy for all else."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from rare_trt.backends import ENGINE_BACKENDS, EngineBackend
from rare_trt.commands import add_package_arguments
from rare_trt.commands.tables import text_table
from rare_trt.errors import PackageError
from rare_trt.package.manifest import EngineEntry, GraphEntry
from rare_trt.package.reading import Package, open_package
from rare_trt.sessions.advisories import REVIEWED, Advisory, State, advisories
from rare_trt.sessions.compatibility import incompatibility
from rare_trt.sessions.environment import Environment, attempt, inspect_machine
from rare_trt.sessions.machine import INSTALL, Machine

if TYPE_CHECKING:
    from rare_trt.commands import Parsers
    from rare_trt.sessions.openvino import OpenVinoFacts

NAMES: Final[tuple[tuple[EngineBackend, str], ...]] = (
    ("tensorrt", "TensorRT"),
    ("tensorrt-rtx", "TensorRT for RTX"),
)

RUNS: Final = "runs"


@dataclass(frozen=True)
class Section:
    """A part of the report: a table, and notes below it."""

    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def lines(self) -> list[str]:
        """The section as lines without indentation."""
        return [*text_table(self.rows).splitlines(), *self.notes]


def add_parser(commands: Parsers) -> None:
    """Adds `doctor` to the command line."""
    parser = commands.add_parser(
        "doctor",
        help="what this machine can run, and what to do about the rest",
        description="Reports which graphs and engines of the package this machine can run, what "
        "each backend that cannot be used needs, and the known vulnerabilities of its TensorRT. "
        "Changes nothing; exits 0 whatever it finds.",
    )
    add_package_arguments(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the report on this machine; a part that fails is one line of it."""
    machine, environment = inspect_machine()
    package = attempt(
        partial(open_package, options.package, require_signature=options.require_signature)
    )
    sections: dict[str, Callable[[], Section]] = {
        "This machine": partial(report_machine, machine, environment),
        f"Package {options.package}": partial(report_package, package, machine, environment),
        "Backends": partial(report_backends, options.package, package, machine, environment),
        "Known vulnerabilities": partial(report_advisories, machine),
    }
    for heading, report in sections.items():
        section = attempt(report)
        lines = [section] if isinstance(section, str) else section.lines()
        print("\n".join([heading, *(f"  {line}" for line in lines), ""]))
    return 0


def report_machine(machine: Machine, environment: Environment) -> Section:
    """The hardware and software of the machine, one row each."""
    gpu = machine.gpu
    described = machine.no_gpu
    if gpu is not None:
        shared = ", shared with the CPU" if gpu.integrated else ""
        memory = f"{gpu.memory_bytes / 2**30:.1f} GiB{shared}"
        described = f"{gpu.name}, compute capability {gpu.compute_capability}, {memory}"
    rows = [
        ("platform", machine.platform),
        ("Python", environment.python),
        ("GPU", described),
        ("driver", gpu.driver if gpu is not None else environment.driver or "none found"),
        ("CUDA bindings", environment.bindings),
    ]
    for backend, name in NAMES:
        absent = environment.absent.get(backend, "not installed")
        rows.append((name, machine.libraries.get(backend, absent)))
    return Section([*rows, *_openvino_rows(environment.openvino)])


def report_package(package: Package | str, machine: Machine, environment: Environment) -> Section:
    """Every graph and engine of the package, and whether it runs; equal states share a row."""
    if isinstance(package, str):
        return Section((), [package])
    routes: dict[tuple[str, str], set[int]] = {}
    for name, route, state in _find_states(package, machine, environment):
        routes.setdefault((name, state), set()).add(route)
    rows = [(f"route {', '.join(map(str, sorted(found)))}", *key) for key, found in routes.items()]
    return Section(rows, ["`rare-trt verify` compares the labels of those that run with float32"])


def report_backends(
    name: str, package: Package | str, machine: Machine, environment: Environment
) -> Section:
    """Every backend: usable, or the first thing to do; `name` is how the user names the package."""
    openvino = environment.openvino
    rows = [("openvino", openvino if isinstance(openvino, str) else "usable")]
    for backend in ENGINE_BACKENDS:
        fault = _find_missing(backend, machine, environment)
        fault = fault or _find_unbuilt(backend, name, package, machine)
        rows.append((backend, fault or "usable"))
    return Section(rows)


def report_advisories(machine: Machine) -> Section:
    """The vulnerabilities in NVIDIA's bulletins that the installed libraries have or may have."""
    tensorrt = machine.libraries.get("tensorrt")
    rows: list[Sequence[str]] = []
    notes = []
    if tensorrt is None:
        notes.append("TensorRT: none could be loaded")
    elif found := advisories(tensorrt):
        rows += [(f"TensorRT {tensorrt}", *_advisory_row(*pair)) for pair in found]
        if "unknown" in {state for _, state in found}:
            notes.append("unknown: the bulletins do not cover this release")
        safe = ".".join(map(str, max(advisory.fixed_in for advisory, _ in found)))
        notes.append(f"use TensorRT {safe} or later where this machine supports it; until then")
        notes.append("open only packages from sources that you trust: docs/how-to/engines.md")
    else:
        notes.append(f"TensorRT {tensorrt}: none known")
    if rtx := machine.libraries.get("tensorrt-rtx"):
        notes.append(f"TensorRT for RTX {rtx}: unknown, the bulletins do not name it")
    return Section(rows, [*notes, f"as of NVIDIA's bulletins of {REVIEWED}"])


def _openvino_rows(facts: OpenVinoFacts | str) -> list[tuple[str, str]]:
    if isinstance(facts, str):
        return [("OpenVINO", facts)]
    has = {name: "yes" if name in facts.capabilities else "no" for name in ("BF16", "INT8")}
    cpu = f"{facts.cpu} (bf16: {has['BF16']}, int8: {has['INT8']})"
    return [("OpenVINO", facts.version), ("CPU", cpu)]


def _find_states(
    package: Package, machine: Machine, environment: Environment
) -> Iterator[tuple[str, int, str]]:
    """Backend and precision, route, and state of every graph and engine."""
    no_openvino = environment.openvino if isinstance(environment.openvino, str) else None
    for graph in package.manifest.graphs:
        state = no_openvino or _find_damage(package, graph) or RUNS
        yield f"openvino {graph.precision}", graph.route, state
    for engine in package.manifest.engines:
        state = _find_obstacle(package, engine, machine) or _find_damage(package, engine) or RUNS
        yield f"{engine.backend} {engine.precision}", engine.route, state


def _find_obstacle(package: Package, entry: EngineEntry, machine: Machine) -> str | None:
    return attempt(partial(incompatibility, entry, package.manifest, machine))


def _find_damage(package: Package, entry: GraphEntry | EngineEntry) -> str | None:
    """The fault in the files of `entry`; None where they match the manifest."""
    names = [entry.file, entry.weights] if isinstance(entry, GraphEntry) else [entry.file]
    try:
        for name in names:
            package.read(name)
    except PackageError as error:
        return str(error)
    return None


def _find_missing(backend: EngineBackend, machine: Machine, environment: Environment) -> str | None:
    """The first thing that the machine lacks for `backend`; None where it has all."""
    from rare_trt.engines.rtx import RTX_CAPABILITIES

    gpu = machine.gpu
    if gpu is None and not environment.driver:
        return "no NVIDIA driver was found: install it where there is an NVIDIA GPU"
    # Before the library, because installing one would not help.
    if backend == "tensorrt-rtx" and gpu and gpu.compute_capability not in RTX_CAPABILITIES:
        known = ", ".join(RTX_CAPABILITIES)
        return (
            f"made for compute capability {known}; {gpu.name} has {gpu.compute_capability}: use "
            "tensorrt"
        )
    if backend not in machine.libraries:
        return environment.absent.get(backend, INSTALL[backend])
    return machine.no_gpu if gpu is None else None


def _find_unbuilt(
    backend: EngineBackend, name: str, package: Package | str, machine: Machine
) -> str | None:
    """What the package lacks for `backend` on a machine that can run it; None where it has all."""
    if isinstance(package, str):
        return package
    engines = [engine for engine in package.manifest.engines if engine.backend == backend]
    reasons = [_find_obstacle(package, engine, machine) for engine in engines]
    if None in reasons:
        return None
    build = f"`rare-trt build --package {name} --backend {backend}`"
    return reasons[0] if reasons else f"the package has no engine for it: {build}"


def _advisory_row(advisory: Advisory, state: State) -> tuple[str, ...]:
    below, fixed = (".".join(map(str, v)) for v in (advisory.affected_below, advisory.fixed_in))
    return (
        advisory.cve,
        state,
        f"affects all before {below}",
        f"fixed in {fixed}",
        advisory.impact,
        advisory.published,
    )
