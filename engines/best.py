"""The fastest precision per route on this GPU, of those that hold the package's bounds."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final

from rare_trt.cache import Cache
from rare_trt.engines.add import Built, build_engines
from rare_trt.errors import BackendError
from rare_trt.machine import Machine
from rare_trt.manifest import PRECISIONS, BuilderOptions, EngineBackend, EngineEntry
from rare_trt.package import Package, store_engines
from rare_trt.planning import tiles
from rare_trt.proof import golden_runs, prove
from rare_trt.running import graph_inputs
from rare_trt.sessions import Session
from rare_trt.sessions.tensorrt import EngineHost, EngineSession

WARM_UP: Final = 5
RUNS: Final = 50


def build_best(
    package: Package,
    backend: EngineBackend,
    options: BuilderOptions,
    machine: Machine,
    *,
    out: Path | None = None,
    overwrite: bool = False,
) -> tuple[Package, list[Built]]:
    """Engines in every precision; kept per route is the fastest that passes the golden vectors.

    Raises BackendError without a GPU, and where no engine of a route passes; nothing is then kept
    of what was built for the comparison.
    """
    if machine.gpu is None:
        raise BackendError(
            f"--precision best measures on the GPU, and none can be used here ({machine.no_gpu}): "
            "name a precision"
        )
    before = package.manifest.engines
    built: list[Built] = []
    for precision in PRECISIONS:
        target = out if out is not None else None
        package, more = build_engines(
            package, backend, precision, options, machine, out=target, overwrite=overwrite
        )
        built += more
        # The first build made the copy; the others add to it.
        out, overwrite = None, False
    try:
        fastest = _fastest(package, [item.entry for item in built])
    except BackendError:
        store_engines(package, before, {})
        raise
    losers = [item.entry for item in built if item.entry not in fastest]
    kept = [engine for engine in package.manifest.engines if engine not in losers]
    package = store_engines(package, kept, {})
    return package, [item for item in built if item.entry in fastest]


def _fastest(package: Package, engines: list[EngineEntry]) -> list[EngineEntry]:
    host = EngineHost()
    cache = Cache()
    try:
        return [
            _fastest_of(host, package, [e for e in engines if e.route == route.index], cache)
            for route in package.manifest.routes
        ]
    finally:
        host.close()


def _fastest_of(
    host: EngineHost, package: Package, engines: list[EngineEntry], cache: Cache
) -> EngineEntry:
    took: dict[float, EngineEntry] = {}
    faults = []
    for entry in engines:
        try:
            session = EngineSession(host, package, entry, cache)
            prove(session, package, entry.route)
        except BackendError as error:
            faults.append(str(error))
            continue
        took[milliseconds(session, package, entry.route)] = entry
        session.close()
    if not took:
        raise BackendError("; ".join(faults))
    return took[min(took)]


def milliseconds(session: Session, package: Package, route: int) -> float:
    """The median time of a run on the typical golden vector, copies included."""
    (run,) = (run for run in golden_runs(package, route) if run.entry.kind == "typical")
    inputs = [graph_inputs(run.image, tile) for tile in tiles(run.steps, run.max_shape)]
    times = []
    for index in range(WARM_UP + RUNS):
        start = perf_counter()
        for one in inputs:
            session.run(one)
        if index >= WARM_UP:
            times.append((perf_counter() - start) * 1e3)
    return median(times)
