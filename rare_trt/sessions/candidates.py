"""The sessions that can run a route on this machine, best first."""

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
from rare_trt.sessions import openvino
from rare_trt.sessions.compatibility import incompatibility
from rare_trt.sessions.machine import Machine, this_machine
from rare_trt.sessions.session import Session
from rare_trt.storage.cache import Cache

if TYPE_CHECKING:
    from rare_trt.sessions.engine_host import EngineHost


@dataclass(frozen=True, eq=False)
class Candidate:
    """A session that can run a route and is not opened yet."""

    name: str
    arithmetic: Arithmetic
    open: Callable[[], Session]


class SessionCandidates:
    """Selects and opens sessions of one package, and closes the GPU that its engines share.

    Engines come before OpenVINO, TensorRT before TensorRT for RTX, dynamic shapes before static
    ones, int8 before fp16 before fp32, and of otherwise equal engines the newest first. With
    `precision` only sessions that compute in it are selected. `threads` bounds OpenVINO's threads.
    """

    def __init__(
        self,
        package: Package,
        backend: Backend,
        cache: Cache,
        memory_limit: int | None = None,
        precision: Arithmetic | None = None,
        threads: int | None = None,
    ) -> None:
        if backend not in BACKENDS:
            raise BackendError(f"no backend {backend!r}; expected one of {', '.join(BACKENDS)}")
        self._package, self._backend, self._cache = package, backend, cache
        self._memory_limit = memory_limit
        self._precision = precision
        # Raises for an invalid number before anything is loaded.
        self._threads = openvino.thread_count(threads)
        self._host: EngineHost | None = None
        self._host_lock = Lock()
        self._warned = False

    def select(self, route: int) -> list[Candidate]:
        """Returns the sessions to try for `route`, best first; raises BackendError without any."""
        if self._precision is not None:
            return self._select_precision(route, self._precision)
        selected = [] if self._backend == "openvino" else self._select_engines(route)
        if self._backend in ("auto", "openvino"):
            plain = self.graph(portable_graph(self._package, route))
            faster = takewhile(lambda one: one.arithmetic != plain.arithmetic, self.variants(route))
            selected += [*faster, plain]
        return selected

    def find_all(self, route: int) -> list[Candidate]:
        """Returns every session of the backend that can run `route` here, in any precision."""
        found = [] if self._backend == "openvino" else self._backend_engines(route)
        if self._backend in ("auto", "openvino"):
            graphs = self._package.manifest.graphs
            # INT8 counts only where calibration found it within the Dice budget.
            plain = [self.graph(g) for g in graphs if g.route == route and g.precision != "int8"]
            found += {one.name: one for one in [*self.variants(route), *plain]}.values()
        return found

    def variants(self, route: int) -> list[Candidate]:
        """Returns OpenVINO's sessions for `route` that calibration found within the Dice budget
        and that this CPU can compute, fastest first."""
        measured = [
            variant
            for entry in self._package.manifest.calibration
            if entry.route == route
            for variant in entry.variants
        ]
        capabilities = openvino.openvino_facts().capabilities if measured else ()
        found = []
        for variant in measured:
            precision, bf16 = GRAPH_PRECISION[variant.arithmetic], variant.arithmetic in NEEDS_BF16
            needs = {"INT8"} if precision == "int8" else set()
            if needs | ({"BF16"} if bf16 else set()) <= set(capabilities):
                found.append(self.graph(self._package.graph(route, precision), bf16=bf16))
        return found

    def engines(self, route: int) -> list[Candidate]:
        """Returns every engine of `route` that this machine can run."""
        return [self._engine(entry) for entry in self._compatible_entries(route)]

    def incompatible_engines(self, route: int) -> list[tuple[EngineEntry, str]]:
        """Returns every engine of `route` that this machine cannot run, with the reason."""
        return [(entry, reason) for entry, reason in self._reasons(route) if reason is not None]

    def graph(self, entry: GraphEntry, *, bf16: bool = False) -> Candidate:
        """Returns the graph `entry` on OpenVINO, its float parts in float32 or in `bf16`."""
        computed = IN_BF16[entry.precision] if bf16 else entry.precision
        return Candidate(f"openvino {computed}", computed, partial(self._open_graph, entry, bf16))

    @property
    def device_bytes(self) -> int:
        """GPU memory that loaded engines and their working memory take."""
        return 0 if self._host is None else self._host.device_bytes

    def close(self) -> None:
        """Unloads all engines and releases the GPU; OpenVINO's memory goes with its sessions."""
        with self._host_lock:
            if self._host is not None:
                self._host.close()
                self._host = None

    def _select_precision(self, route: int, precision: Arithmetic) -> list[Candidate]:
        possible = self.find_all(route)
        selected = [one for one in possible if one.arithmetic == precision]
        if not selected:
            known = ", ".join(dict.fromkeys(one.arithmetic for one in possible)) or "none"
            raise BackendError(
                f"route {route} cannot run in {precision} on this machine (backend "
                f"{self._backend}): choose one of the precisions that can ({known})"
            )
        return selected

    def _select_engines(self, route: int) -> list[Candidate]:
        found = self._backend_engines(route)
        if not found and self._backend != "auto":
            raise BackendError(
                f"{self._backend} cannot run route {route} on this machine "
                f"({self._explain(route)}); `rare-trt doctor` lists the usable backends"
            )
        skipped = [] if found or self._warned else self.incompatible_engines(route)
        if skipped:
            self._warned = True
            warnings.warn(
                "no engine of the package can run on this machine, so OpenVINO is used: "
                f"{skipped[0][1]}",
                EngineWarning,
                stacklevel=2,
            )
        return found

    def _backend_engines(self, route: int) -> list[Candidate]:
        """Returns the engines of the selected backend that this machine can run."""
        entries = self._compatible_entries(route)
        return [self._engine(e) for e in entries if self._backend in ("auto", e.backend)]

    def _compatible_entries(self, route: int) -> list[EngineEntry]:
        found = [entry for entry, reason in self._reasons(route) if reason is None]
        # Later entries were built later, and sorting keeps the order of equals.
        found.reverse()
        return sorted(found, key=_rank)

    def _reasons(self, route: int) -> list[tuple[EngineEntry, str | None]]:
        """Returns every engine of `route`, with the reason where it cannot run on this machine."""
        manifest = self._package.manifest
        entries = [entry for entry in manifest.engines if entry.route == route]
        return [(entry, incompatibility(entry, manifest, self._machine)) for entry in entries]

    def _explain(self, route: int) -> str:
        skipped = self.incompatible_engines(route)
        reasons = [reason for entry, reason in skipped if entry.backend == self._backend]
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
        from rare_trt.sessions.engine_host import EngineHost
        from rare_trt.sessions.engine_session import EngineSession

        with self._host_lock:
            if self._host is None:
                self._host = EngineHost(self._memory_limit)
            host = self._host
        return EngineSession(host, self._package, entry, self._cache)

    def _open_graph(self, entry: GraphEntry, bf16: bool) -> Session:
        return openvino.OpenVinoSession(
            self._package, entry, self._cache, bf16=bf16, threads=self._threads
        )


def _rank(entry: EngineEntry) -> tuple[object, ...]:
    """Returns the sort key of an engine: those that run most scans first, then the fastest."""
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
    """Returns the graph of `route` that every machine can run: fp16, or float32 where the package
    has no fp16 graph or calibration found that fp16 exceeds the Dice budget."""
    manifest = package.manifest
    precisions = {graph.precision for graph in manifest.graphs if graph.route == route}
    holds = "fp16" in precisions and is_fp16_within_budget(manifest, route)
    return package.graph(route, "fp16" if holds else "fp32")
