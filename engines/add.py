"""Engines into a package: those that are missing are built, in one library, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Final

from tqdm import tqdm

from rare_trt.engines.builder import EngineBuilder, TypedGraph
from rare_trt.engines.profiles import profile_shapes
from rare_trt.errors import OutputError, RareTrtError
from rare_trt.files import sha256, write_files
from rare_trt.machine import Machine
from rare_trt.manifest import (
    BuilderOptions,
    EngineBackend,
    EngineEntry,
    GraphEntry,
    Precision,
)
from rare_trt.package import (
    Package,
    open_package,
    refuse_folder,
    store_engines,
    with_engines,
    write_package,
)

SHORT_HASH: Final = 12


@dataclass(frozen=True)
class Built:
    """An engine of the package and how long it took to build; 0 where it was there already."""

    entry: EngineEntry
    seconds: float


def build_engines(
    package: Package,
    backend: EngineBackend,
    precision: Precision,
    options: BuilderOptions,
    machine: Machine,
    *,
    out: Path | None = None,
    overwrite: bool = False,
) -> tuple[Package, list[Built]]:
    """One engine per route in `precision`, in the package itself or in a copy of it at `out`.

    An engine of the same graph, target, options and library version is not built again. Raises
    BackendError or OutputError, with nothing written.
    """
    if out is not None:
        package = _continued(package, out, overwrite=overwrite)
    timings = _timing_file(out or package.folder, backend, machine)
    builder = EngineBuilder(backend, options, machine, _read(timings))
    manifest = package.manifest
    built, contents = [], {}
    for graph in tqdm(_graphs(package, precision), "building", unit="route", leave=False):
        entry = _entry(package, graph, builder, machine)
        known = _known(manifest.engines, entry)
        if known is not None:
            built.append(Built(known, 0.0))
            continue
        start = perf_counter()
        plan = builder.build(typed_graph(package, graph), entry.profile)
        name = (
            f"engines/{backend}/{precision}_route{graph.route}_{sha256(plan)[:SHORT_HASH]}.engine"
        )
        contents[name] = plan
        built.append(Built(replace(entry, file=name), perf_counter() - start))
    if builder.timing_cache:
        write_files({timings: builder.timing_cache}, overwrite=True)
    new = [item.entry for item in built if item.seconds]
    engines = _merged(manifest.engines, new)
    return stored(package, out, engines, contents, overwrite=overwrite), built


def typed_graph(package: Package, graph: GraphEntry) -> TypedGraph:
    """`graph` and its weights, read from the package and held to their hashes."""
    weights_name = Path(graph.weights).name
    return TypedGraph(
        graph.route, package.read(graph.file), weights_name, package.read(graph.weights)
    )


def _continued(package: Package, out: Path, *, overwrite: bool) -> Package:
    """The package to build on for a copy at `out`: the copy itself where it is there already."""
    refuse_folder(out, overwrite=True)
    if not out.exists() or overwrite:
        return package
    try:
        copy = open_package(out)
    except RareTrtError:
        copy = None
    if copy is None or replace(copy.manifest, engines=(), files={}) != replace(
        package.manifest, engines=(), files={}
    ):
        raise OutputError(
            f"{out}: exists and is no copy of the package: name another output or pass --overwrite"
        )
    return copy


def stored(
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


def _merged(old: Sequence[EngineEntry], new: Sequence[EngineEntry]) -> list[EngineEntry]:
    """`old` without those that one of `new` takes the place of, and `new`."""
    uses = [_use(engine) for engine in new]
    return [*(engine for engine in old if _use(engine) not in uses), *new]


def _use(engine: EngineEntry) -> EngineEntry:
    """What an engine is for, without what it was made from: equal for one that replaces another."""
    return replace(engine, file="", graph_sha256="", library="", profile={})


def _graphs(package: Package, precision: Precision) -> list[GraphEntry]:
    return [package.graph(route.index, precision) for route in package.manifest.routes]


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
    return folder.with_name(f"{folder.stem}.{backend}-{version}-{gpu}.timings")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
