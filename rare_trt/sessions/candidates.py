"""Which sessions can answer a route on this machine, best first."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import takewhile
from threading import Lock
from typing import TYPE_CHECKING

from rare_trt.backends import (
    BACKENDS,
    GRAPH_PRECISION,
    IN_BF16,
    NEEDS_BF16,
    PRECISIONS,
    Arithmetic,
    Backend,
)
from rare_trt.errors import BackendError, EngineWarning
from rare_trt.package.manifest import EngineEntry, GraphEntry
from rare_trt.package.reading import Package, is_fp16_within_budget
from rare_trt.sessions.compatibility import incompatibility
from rare_trt.sessions.machine import Machine, this_machine
from rare_trt.sessions.session import Session
from rare_trt.storage.cache import Cache

if TYPE_CHECKING:
    from rare_trt.sessions.tensorrt import EngineHost


@dataclass(frozen=True, eq=False)
class Candidate:
    """A session that could answer, not opened yet."""

    name: str
    arithmetic: Arithmetic
    open: Callable[[], Session]


class SessionCandidates:
    """Opens sessions of one package; closes what they share.

    Engines come before OpenVINO, TensorRT before TensorRT for RTX, dynamic shapes before static
    ones, int8 before fp16 before fp32, and of engines alike the one built last. With `precision`
    only sessions that compute in it are chosen.
    """

    def __init__(
        self,
        package: Package,
        backend: Backend,
        cache: Cache,
        memory_limit: int | None = None,
        precision: Arithmetic | None = None,
    ) -> None:
        if backend not in BACKENDS:
            raise BackendError(f"no backend {backend!r}; expected one of {', '.join(BACKENDS)}")
        self._package, self._backend, self._cache = package, backend, cache
        self._memory_limit = memory_limit
        self._precision = precision
        self._host: EngineHost | None = None
        self._starting = Lock()
        self._warned = False

    def candidates(self, route: int) -> list[Candidate]:
        """What can answer `route`, best first; raises BackendError where nothing can."""
        if self._precision is not None:
            return self._in_precision(route, self._precision)
        found = [] if self._backend == "openvino" else self._asked_engines(route)
        if self._backend in ("auto", "openvino"):
            plain = self.graph(portable_graph(self._package, route))
            faster = takewhile(lambda one: one.arithmetic != plain.arithmetic, self.variants(route))
            found += [*faster, plain]
        return found

    def offered(self, route: int) -> list[Candidate]:
        """Everything with which the backend can answer `route` here, in any precision."""
        found = [] if self._backend == "openvino" else self._fitting_engines(route)
        if self._backend in ("auto", "openvino"):
            graphs = self._package.manifest.graphs
            # INT8 counts only where it was measured to hold the budget.
            plain = [self.graph(g) for g in graphs if g.route == route and g.precision != "int8"]
            found += {one.name: one for one in [*self.variants(route), *plain]}.values()
        return found

    def variants(self, route: int) -> list[Candidate]:
        """What was measured to hold the package's budget on `route`, as far as this CPU can compute
        it; fastest first."""
        from rare_trt.sessions.openvino import openvino_facts

        measured = [
            variant
            for entry in self._package.manifest.calibration
            if entry.route == route
            for variant in entry.variants
        ]
        can = openvino_facts().capabilities if measured else ()
        found = []
        for variant in measured:
            precision, bf16 = GRAPH_PRECISION[variant.arithmetic], variant.arithmetic in NEEDS_BF16
            needs = {"INT8"} if precision == "int8" else set()
            if needs | ({"BF16"} if bf16 else set()) <= set(can):
                found.append(self.graph(self._package.graph(route, precision), bf16=bf16))
        return found

    def engines(self, route: int) -> list[Candidate]:
        """Every engine of `route` that this machine can run."""
        return [self._engine(entry) for entry in self._runnable(route)]

    def skipped(self, route: int) -> list[tuple[EngineEntry, str]]:
        """Every engine of `route` that this machine cannot run, and why."""
        return [(entry, reason) for entry, reason in self._obstacles(route) if reason is not None]

    def graph(self, entry: GraphEntry, *, bf16: bool = False) -> Candidate:
        """The graph `entry` on OpenVINO, its float parts in float32 or in `bf16`."""
        computed = IN_BF16[entry.precision] if bf16 else entry.precision
        return Candidate(f"openvino {computed}", computed, partial(self._open_graph, entry, bf16))

    @property
    def device_bytes(self) -> int:
        """What loaded engines and their working memory take of the GPU's memory."""
        return 0 if self._host is None else self._host.device_bytes

    def close(self) -> None:
        """Closes every session opened so far."""
        with self._starting:
            if self._host is not None:
                self._host.close()
                self._host = None

    def _in_precision(self, route: int, precision: Arithmetic) -> list[Candidate]:
        offered = self.offered(route)
        found = [one for one in offered if one.arithmetic == precision]
        if not found:
            known = ", ".join(dict.fromkeys(one.arithmetic for one in offered)) or "none"
            raise BackendError(
                f"route {route} cannot be computed in {precision} here (backend {self._backend}); "
                f"expected one of the precisions that the package offers ({known}): choose one"
            )
        return found

    def _asked_engines(self, route: int) -> list[Candidate]:
        found = self._fitting_engines(route)
        if not found and self._backend != "auto":
            raise BackendError(
                f"{self._backend} cannot answer route {route} here ({self._why_not(route)}); "
                "`rare-trt doctor` shows what can"
            )
        skipped = [] if found or self._warned else self.skipped(route)
        if skipped:
            self._warned = True
            warnings.warn(
                f"none of the package's engines can run here, OpenVINO answers: {skipped[0][1]}",
                EngineWarning,
                stacklevel=2,
            )
        return found

    def _fitting_engines(self, route: int) -> list[Candidate]:
        """The engines of the backend asked for that this machine can run."""
        runnable = self._runnable(route)
        return [self._engine(e) for e in runnable if self._backend in ("auto", e.backend)]

    def _runnable(self, route: int) -> list[EngineEntry]:
        fitting = [entry for entry, reason in self._obstacles(route) if reason is None]
        # Later entries were built later, and sorting keeps the order of equals.
        fitting.reverse()
        return sorted(fitting, key=_rank)

    def _obstacles(self, route: int) -> list[tuple[EngineEntry, str | None]]:
        """Every engine of `route`, and what keeps it from running here."""
        manifest = self._package.manifest
        entries = [entry for entry in manifest.engines if entry.route == route]
        return [(entry, incompatibility(entry, manifest, self._machine)) for entry in entries]

    def _why_not(self, route: int) -> str:
        reasons = [
            reason for entry, reason in self.skipped(route) if entry.backend == self._backend
        ]
        return (
            "; ".join(dict.fromkeys(reasons))
            or "the package has no engine for it: run `rare-trt build`"
        )

    @cached_property
    def _machine(self) -> Machine:
        return this_machine()

    def _engine(self, entry: EngineEntry) -> Candidate:
        name = f"{entry.backend} {entry.precision}"
        return Candidate(name, entry.precision, partial(self._open_engine, entry))

    def _open_engine(self, entry: EngineEntry) -> Session:
        from rare_trt.sessions.tensorrt import EngineHost, EngineSession

        with self._starting:
            if self._host is None:
                self._host = EngineHost(self._memory_limit)
            host = self._host
        return EngineSession(host, self._package, entry, self._cache)

    def _open_graph(self, entry: GraphEntry, bf16: bool) -> Session:
        # Heavy, so loaded with the first session.
        from rare_trt.sessions.openvino import OpenVinoSession

        return OpenVinoSession(self._package, entry, self._cache, bf16=bf16)


def _rank(entry: EngineEntry) -> tuple[object, ...]:
    """The order in which engines are tried: those that answer most scans, fastest first."""
    options = entry.options
    return (
        entry.backend,
        options.static_shapes,
        PRECISIONS[::-1].index(entry.precision),
        options.hardware_compatibility != "none",
        options.version_compatible,
        options.tf32,
    )


def portable_graph(package: Package, route: int) -> GraphEntry:
    """The graph of `route` that runs anywhere: fp16; float32 in packages from before it, and where
    calibration found that fp16 does not hold the Dice budget."""
    manifest = package.manifest
    precisions = {graph.precision for graph in manifest.graphs if graph.route == route}
    holds = "fp16" in precisions and is_fp16_within_budget(manifest, route)
    return package.graph(route, "fp16" if holds else "fp32")
