"""Engines from a package: one per route, built in turn, stored where package_update.py says."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Final, Literal

from tqdm import tqdm

from rare_trt.backends import PRECISIONS, EngineBackend, Precision
from rare_trt.engines.builder import EngineBuilder, TypedGraph
from rare_trt.engines.fastest import select_fastest
from rare_trt.engines.package_update import (
    copy_with_engines,
    merge_engines,
    open_target,
    write_target,
)
from rare_trt.engines.profiles import profile_from_route
from rare_trt.errors import BackendError, OutputError
from rare_trt.package.manifest import BuilderOptions, EngineEntry, GraphEntry
from rare_trt.package.reading import Package
from rare_trt.package.writing import own_engines_folder
from rare_trt.sessions.candidates import portable_graph
from rare_trt.sessions.machine import Machine
from rare_trt.storage.files import sha256, write_files

SHORT_HASH: Final = 12


@dataclass(frozen=True)
class BuiltEngine:
    """An engine of the package, and how long its build took; 0 where it existed already."""

    entry: EngineEntry
    seconds: float


def build_engines(
    package: Package,
    backend: EngineBackend,
    precision: Precision | Literal["best"],
    options: BuilderOptions,
    machine: Machine,
    *,
    out: Path | None = None,
    overwrite: bool = False,
) -> tuple[Package, list[BuiltEngine]]:
    """Builds one engine per route, into the package itself or into a copy of it at `out`; for a
    package that ships with rare-trt, into the user's own folder.

    An engine of the same graph, target, options and library version is not built again. With the
    precision "best" engines of every precision are built and timed on this machine's GPU; per route
    the fastest that passes its golden vectors is stored, and slower ones of the same options are
    removed. Raises BackendError or OutputError, with the package unchanged.
    """
    best = precision == "best"
    if best and machine.gpu is None:
        raise BackendError(
            f"--precision best measures on the GPU ({machine.no_gpu}): name a precision"
        )
    package = open_target(package, out, overwrite=overwrite)
    folder = own_engines_folder(package) if package.is_shipped else package.folder
    timings = _timing_file(out or folder, backend, machine)
    builder = EngineBuilder(backend, options, machine, _read_if_present(timings))
    available = {graph.precision for graph in package.manifest.graphs}
    precisions = [p for p in PRECISIONS if p in available] if precision == "best" else [precision]
    built, contents = _build_missing(package, precisions, builder, machine)
    if best:
        built = _select_fastest(package, built, contents)
    entries = [item.entry for item in built]
    new = {entry.file: contents[entry.file] for entry in entries if entry.file in contents}
    engines = merge_engines(package.manifest.engines, entries, any_precision=best)
    package = write_target(package, out, engines, new, overwrite=overwrite)
    if builder.timing_cache:
        # Timings only save time, and perhaps nothing but the package's own folder is writable.
        with suppress(OutputError):
            write_files({timings: builder.timing_cache}, overwrite=True)
    return package, built


def typed_graph_from_package(package: Package, graph: GraphEntry) -> TypedGraph:
    """`graph` and its weights, read from the package and verified against their hashes."""
    weights_name = Path(graph.weights).name
    return TypedGraph(
        graph.route, package.read(graph.file), weights_name, package.read(graph.weights)
    )


def _build_missing(
    package: Package, precisions: Sequence[Precision], builder: EngineBuilder, machine: Machine
) -> tuple[list[BuiltEngine], dict[str, bytes]]:
    """The engines of every route in `precisions`, and the files of those that were built now."""
    built, contents = [], {}
    graphs = dict.fromkeys(graph for one in precisions for graph in _select_graphs(package, one))
    for graph in tqdm(list(graphs), "building", unit="engine", leave=False):
        entry = _make_entry(package, graph, builder, machine)
        existing = _find_existing(package.manifest.engines, entry)
        if existing is not None:
            built.append(BuiltEngine(existing, 0.0))
            continue
        start = perf_counter()
        engine = builder.build(typed_graph_from_package(package, graph), entry.profile)
        stem = f"{graph.precision}_route{graph.route}_{sha256(engine)[:SHORT_HASH]}"
        name = f"engines/{entry.backend}/{stem}.engine"
        contents[name] = engine
        built.append(BuiltEngine(replace(entry, file=name), perf_counter() - start))
    return built, contents


def _select_fastest(
    package: Package, built: Sequence[BuiltEngine], contents: Mapping[str, bytes]
) -> list[BuiltEngine]:
    """The fastest of `built` per route, measured in a temporary copy of the package."""
    with tempfile.TemporaryDirectory(prefix="rare-trt-") as folder:
        entries = [item.entry for item in built]
        copy = copy_with_engines(
            package, Path(folder) / "trial.rare", entries, contents, overwrite=False
        )
        fastest = select_fastest(copy)
    return [item for item in built if item.entry in fastest]


def _select_graphs(package: Package, precision: Precision) -> list[GraphEntry]:
    """Every route's graph in `precision`; the portable one where calibration left a route without
    INT8, or measured that fp16 exceeds the Dice budget."""
    routes = [route.index for route in package.manifest.routes]
    if precision == "fp16" and package.manifest.calibration:
        return [portable_graph(package, route) for route in routes]
    if precision != "int8":
        return [package.graph(route, precision) for route in routes]
    if not package.manifest.calibration:
        raise BackendError(
            f"{package.folder}: has no INT8 graphs: run `rare-trt calibrate` on it first, or name "
            "another precision"
        )
    without = {entry.route for entry in package.manifest.calibration if entry.reason is not None}
    return [
        portable_graph(package, route) if route in without else package.graph(route, "int8")
        for route in routes
    ]


def _make_entry(
    package: Package, graph: GraphEntry, builder: EngineBuilder, machine: Machine
) -> EngineEntry:
    """The manifest's entry for the engine of `graph`, without its file."""
    manifest = package.manifest
    (route,) = (entry for entry in manifest.routes if entry.index == graph.route)
    return EngineEntry(
        backend=builder.backend,
        precision=graph.precision,
        route=graph.route,
        file="",
        graph_sha256=manifest.graph_sha256(graph),
        library=builder.version,
        platform=machine.platform,
        gpu=builder.gpu,
        compute_capabilities=builder.compute_capabilities,
        options=builder.options,
        profile=profile_from_route(route, manifest.model, static=builder.options.static_shapes),
    )


def _find_existing(engines: Sequence[EngineEntry], wanted: EngineEntry) -> EngineEntry | None:
    return next((one for one in engines if replace(one, file="") == wanted), None)


def _timing_file(folder: Path, backend: EngineBackend, machine: Machine) -> Path:
    """The file of kernel timings: beside the engines' `folder`, per library release and kind of
    GPU."""
    gpu = "none" if machine.gpu is None else f"sm{machine.gpu.compute_capability.replace('.', '')}"
    version = machine.libraries.get(backend, "none")
    folder = folder.resolve()
    return folder.with_name(f"{folder.stem}.{backend}-{version}-{gpu}.timings")


def _read_if_present(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
