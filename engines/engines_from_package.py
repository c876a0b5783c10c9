"""Engines into a package: those that are missing are built, in one library, one after the other."""

from __future__ import annotations

import os
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
from rare_trt.engines.fastest import fastest
from rare_trt.engines.profiles import profile_shapes
from rare_trt.errors import BackendError, OutputError
from rare_trt.package.manifest import BuilderOptions, EngineEntry, GraphEntry
from rare_trt.package.reading import Package, open_package
from rare_trt.package.writing import (
    is_package,
    refuse_folder,
    store_engines,
    with_engines,
    write_package,
)
from rare_trt.sessions.candidates import portable_graph
from rare_trt.sessions.machine import Machine
from rare_trt.storage.files import sha256, write_files

SHORT_HASH: Final = 12


@dataclass(frozen=True)
class Built:
    """An engine of the package and how long it took to build; 0 where it was there already."""

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
) -> tuple[Package, list[Built]]:
    """One engine per route, in the package itself or in a copy of it at `out`.

    An engine of the same graph, target, options and library version is not built again. With the
    precision "best" every one is built and measured on this machine's GPU, and per route the
    fastest that holds the package's bounds is kept; slower ones of the same options go. Raises
    BackendError or OutputError, with the package as it was.
    """
    if precision == "best" and machine.gpu is None:
        raise BackendError(
            f"--precision best measures on the GPU ({machine.no_gpu}): name a precision"
        )
    package = _start(package, out, overwrite=overwrite)
    timings = _timing_file(out or package.folder, backend, machine)
    builder = EngineBuilder(backend, options, machine, _read(timings))
    there = {graph.precision for graph in package.manifest.graphs}
    precisions = [p for p in PRECISIONS if p in there] if precision == "best" else [precision]
    built, contents = _built(package, precisions, builder, machine)
    if precision == "best":
        built = _fastest(package, built, contents)
    kept = [item.entry for item in built]
    new = {entry.file: contents[entry.file] for entry in kept if entry.file in contents}
    engines = _merged(package.manifest.engines, kept, any_precision=precision == "best")
    package = _stored(package, out, engines, new, overwrite=overwrite)
    if builder.timing_cache:
        # They only save time, and the package's own folder may be all that can be written to.
        with suppress(OutputError):
            write_files({timings: builder.timing_cache}, overwrite=True)
    return package, built


def _built(
    package: Package, precisions: Sequence[Precision], builder: EngineBuilder, machine: Machine
) -> tuple[list[Built], dict[str, bytes]]:
    """The engines of every route in `precisions`, and the files of those that were missing."""
    built, contents = [], {}
    graphs = list(
        dict.fromkeys(graph for precision in precisions for graph in _graphs(package, precision))
    )
    for graph in tqdm(graphs, "building", unit="engine", leave=False):
        entry = _entry(package, graph, builder, machine)
        known = _known(package.manifest.engines, entry)
        if known is not None:
            built.append(Built(known, 0.0))
            continue
        start = perf_counter()
        plan = builder.build(typed_graph(package, graph), entry.profile)
        stem = f"{graph.precision}_route{graph.route}_{sha256(plan)[:SHORT_HASH]}"
        name = f"engines/{entry.backend}/{stem}.engine"
        contents[name] = plan
        built.append(Built(replace(entry, file=name), perf_counter() - start))
    return built, contents


def _fastest(
    package: Package, built: Sequence[Built], contents: Mapping[str, bytes]
) -> list[Built]:
    """Of `built` the fastest per route, measured in a copy that is thrown away."""
    with tempfile.TemporaryDirectory(prefix="rare-trt-") as folder:
        manifest = with_engines(package.manifest, [item.entry for item in built], contents)
        kept = {name: package.read(name) for name in manifest.files if name not in contents}
        trial = Path(folder) / "trial.rare"
        copy = write_package(trial, manifest, {**kept, **contents}, overwrite=False)
        winners = fastest(copy)
    return [item for item in built if item.entry in winners]


def typed_graph(package: Package, graph: GraphEntry) -> TypedGraph:
    """`graph` and its weights, read from the package and held to their hashes."""
    weights_name = Path(graph.weights).name
    return TypedGraph(
        graph.route, package.read(graph.file), weights_name, package.read(graph.weights)
    )


def _start(package: Package, out: Path | None, *, overwrite: bool) -> Package:
    """The package to build on: itself, or the copy at `out` where that is there already.

    Raises OutputError at once where the engines could not be written in the end.
    """
    if out is None:
        if not os.access(package.folder, os.W_OK):
            raise OutputError(
                f"{package.folder}: cannot be written to: name a copy of the package with -o"
            )
        return package
    refuse_folder(out, overwrite=overwrite or is_package(out))
    if not out.exists() or overwrite:
        return package
    copy = open_package(out)
    # Engines aside all must be equal, the hashes of graphs and weights too: the engines are built
    # from the copy's.
    if with_engines(copy.manifest, (), {}) != with_engines(package.manifest, (), {}):
        raise OutputError(
            f"{out}: exists and is no copy of the package: name another output or pass --overwrite"
        )
    return copy


def _stored(
    package: Package,
    out: Path | None,
    engines: Sequence[EngineEntry],
    contents: Mapping[str, bytes],
    *,
    overwrite: bool,
) -> Package:
    """`package`, or a copy of it at `out`, with `engines`; `contents` are the new ones' files."""
    if out is None or (package.folder == out and not overwrite):
        if tuple(engines) == package.manifest.engines:
            return package
        return store_engines(package, engines, contents)
    manifest = with_engines(package.manifest, engines, contents)
    kept = {name: package.read(name) for name in manifest.files if name not in contents}
    return write_package(out, manifest, {**kept, **contents}, overwrite=overwrite)


def _merged(
    old: Sequence[EngineEntry], new: Sequence[EngineEntry], *, any_precision: bool
) -> list[EngineEntry]:
    """`old` without those that one of `new` takes the place of, and `new`; what is in both keeps
    its place, so that a package to which nothing is added stays as it is."""
    uses = [_use(engine, any_precision=any_precision) for engine in new]
    kept = [engine for engine in old if _use(engine, any_precision=any_precision) not in uses]
    return sorted([*kept, *new], key=lambda one: old.index(one) if one in old else len(old))


def _use(engine: EngineEntry, *, any_precision: bool) -> EngineEntry:
    """What an engine is for, without what it was made from: equal for one that replaces another."""
    use = replace(engine, file="", graph_sha256="", library="", profile={})
    return replace(use, precision="fp32") if any_precision else use


def _graphs(package: Package, precision: Precision) -> list[GraphEntry]:
    """Every route's graph in `precision`; the portable one where calibration left a route without
    INT8, or found that fp16 exceeds the Dice budget."""
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


def _entry(
    package: Package, graph: GraphEntry, builder: EngineBuilder, machine: Machine
) -> EngineEntry:
    """What the manifest will say of the engine of `graph`, but for its file."""
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
        profile=profile_shapes(route, manifest.model, static=builder.options.static_shapes),
    )


def _known(engines: Sequence[EngineEntry], wanted: EngineEntry) -> EngineEntry | None:
    for engine in engines:
        if replace(engine, file="") == wanted:
            return engine
    return None


def _timing_file(folder: Path, backend: EngineBackend, machine: Machine) -> Path:
    """Where kernel timings are kept: beside the package, per library release and kind of GPU."""
    gpu = "none" if machine.gpu is None else f"sm{machine.gpu.compute_capability.replace('.', '')}"
    version = machine.libraries.get(backend, "none")
    folder = folder.resolve()
    return folder.with_name(f"{folder.stem}.{backend}-{version}-{gpu}.timings")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
