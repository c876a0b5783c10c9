"""The fastest engine per route on this GPU, of those that pass the package's golden vectors."""

from __future__ import annotations

from statistics import median
from time import perf_counter
from typing import Final

from rare_trt.errors import BackendError
from rare_trt.package.manifest import EngineEntry
from rare_trt.package.reading import Package
from rare_trt.sessions.engine_host import EngineHost
from rare_trt.sessions.engine_session import EngineSession
from rare_trt.sessions.golden import check_golden_vectors, read_golden_vectors
from rare_trt.sessions.session import Session
from rare_trt.storage.cache import Cache

WARM_UP: Final = 5
RUNS: Final = 50


def select_fastest(package: Package) -> list[EngineEntry]:
    """The fastest engine per route of `package` that passes its golden vectors on this GPU.

    Raises BackendError where no engine of a route passes.
    """
    host, cache = EngineHost(), Cache()
    try:
        return [_select(host, package, route.index, cache) for route in package.manifest.routes]
    finally:
        host.close()


def _select(host: EngineHost, package: Package, route: int, cache: Cache) -> EngineEntry:
    passed: list[tuple[float, EngineEntry]] = []
    faults = []
    for entry in (engine for engine in package.manifest.engines if engine.route == route):
        try:
            session = EngineSession(host, package, entry, cache)
            try:
                check_golden_vectors(session, package, route)
                passed.append((measure_milliseconds(session, package, route), entry))
            finally:
                session.close()
        except BackendError as error:
            faults.append(str(error))
    if not passed:
        raise BackendError("; ".join(faults))
    return min(passed, key=lambda pair: pair[0])[1]


def measure_milliseconds(session: Session, package: Package, route: int) -> float:
    """The median time in ms of a run on the typical golden vector, copies included."""
    vectors = read_golden_vectors(package, route)
    typical = next((one.scan for one in vectors if one.entry.kind == "typical"), None)
    if typical is None:
        raise BackendError(f"route {route} has no typical golden vector: build the package again")
    inputs = list(typical.inputs())
    times = []
    for index in range(WARM_UP + RUNS):
        start = perf_counter()
        for one in inputs:
            session.run(one)
        if index >= WARM_UP:
            times.append((perf_counter() - start) * 1e3)
    return median(times)
