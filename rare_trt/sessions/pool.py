"""The sessions of one package: opened when a route first needs them, verified once, and replaced
by the next best where one fails."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from typing import TypeVar

from rare_trt.backends import Arithmetic, Backend
from rare_trt.errors import BackendError, EngineWarning, ShapeError
from rare_trt.package.reading import Package
from rare_trt.sessions.candidates import Candidate, SessionCandidates
from rare_trt.sessions.golden import check_golden_vectors_once
from rare_trt.sessions.openvino import this_process
from rare_trt.sessions.session import Session
from rare_trt.stopwatch import Stopwatch
from rare_trt.storage.cache import Cache

Output = TypeVar("Output")


class SessionPool:
    """Sessions by route, best first.

    Safe to use from several threads. A process that is forked after the first run gets an error.
    """

    def __init__(
        self,
        package: Package,
        backend: Backend,
        gpu_memory_limit: int | None,
        precision: Arithmetic | None,
        threads: int | None,
    ) -> None:
        self._package = package
        self._cache = Cache()
        self._choice = SessionCandidates(
            package, backend, self._cache, gpu_memory_limit, precision, threads
        )
        self._candidates: dict[int, list[Candidate]] = {}
        self._sessions: dict[Candidate, Session] = {}
        self._lock = Lock()
        self._closed = False
        self._used_in: int | None = None

    def run(
        self, route: int, work: Callable[[Session], Output], clock: Stopwatch | None = None
    ) -> tuple[Session, Output]:
        """The best session of `route`, and what `work` returns for it; loading is timed by `clock`.

        A session that raises BackendError is replaced by the next one: for good, unless only the
        shapes of this scan did not fit. Raises BackendError where the last one fails too.
        """
        self._used_in = this_process(self._used_in)
        clock = clock or Stopwatch()
        self.check_open()
        with clock("load"):
            *better, last = self._candidates_of(route)
        for place, candidate in enumerate(better):
            try:
                with clock("load"):
                    session = self._open(route, candidate)
                return session, work(session)
            except BackendError as error:
                # Closed by another thread in the meantime: no other session opens either.
                self.check_open()
                self._pass_over(route, candidate, error, [*better, last][place + 1])
        with clock("load"):
            session = self._open(route, last)
        return session, work(session)

    @property
    def device_bytes(self) -> int:
        """What loaded engines and their working memory take of the GPU's memory."""
        return self._choice.device_bytes

    def check_open(self) -> None:
        """Raises BackendError after `close`."""
        if self._closed:
            raise BackendError("the segmenter was closed; expected an open one: load it again")

    def close(self) -> None:
        """Releases all loaded graphs and engines; safe to call twice."""
        if self._used_in not in (None, os.getpid()):
            # They are the other process's.
            return
        with self._lock:
            self._closed = True
            self._sessions.clear()
            self._choice.close()

    def _candidates_of(self, route: int) -> list[Candidate]:
        with self._lock:
            if route not in self._candidates:
                self._candidates[route] = self._choice.select(route)
            return list(self._candidates[route])

    def _open(self, route: int, candidate: Candidate) -> Session:
        with self._lock:
            self.check_open()
            if candidate not in self._sessions:
                session = candidate.open()
                try:
                    check_golden_vectors_once(session, self._package, route, self._cache)
                except BaseException:
                    _close_quietly(session)
                    raise
                self._sessions[candidate] = session
            return self._sessions[candidate]

    def _pass_over(
        self, route: int, candidate: Candidate, error: BackendError, following: Candidate
    ) -> None:
        if isinstance(error, ShapeError):
            what = f"{candidate.name} cannot run this scan"
        else:
            what = f"{candidate.name} is not used for route {route} any more"
            with self._lock:
                self._candidates[route] = [c for c in self._candidates[route] if c is not candidate]
                session = self._sessions.pop(candidate, None)
            if session is not None:
                _close_quietly(session)
        warnings.warn(f"{what}; {following.name} runs: {error}", EngineWarning, stacklevel=4)


def _close_quietly(session: Session) -> None:
    """Closes a failed session, suppressing errors so that the original one propagates."""
    with suppress(BackendError):
        session.close()
