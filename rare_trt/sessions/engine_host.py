"""The GPU that the engines of a package share: stream, arena, lock, memory limit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import RLock
from typing import Protocol

from rare_trt.backends import EngineBackend
from rare_trt.errors import BackendError
from rare_trt.package.manifest import EngineEntry
from rare_trt.sessions.arena import Arena
from rare_trt.sessions.device import DeviceError, Handle
from rare_trt.sessions.device_factory import open_device
from rare_trt.sessions.nvidia import Library


class EngineOwner(Protocol):
    """A session that owns an engine in the GPU's memory, which the host may ask it to unload."""

    entry: EngineEntry

    def unload(self) -> None:
        """Releases the engine's memory; the session loads it again when it is needed."""
        ...


class EngineHost:
    """A GPU with what the engines of a package share: stream, arena, one run at a time.

    Engines beyond `memory_limit` bytes, or beyond what the GPU has, make room for the one that is
    needed: those used longest ago are unloaded, and loaded again when their turn comes.
    """

    def __init__(self, memory_limit: int | None = None) -> None:
        self.device = open_device()
        self.arena = Arena(self.device)
        self._memory_limit = memory_limit
        self._lock = RLock()
        self._engines: OrderedDict[EngineOwner, int] = OrderedDict()
        self._libraries: dict[EngineBackend, Library] = {}
        self._resources = ExitStack()
        self._open, self._lost = True, False
        try:
            with self.device.current():
                self.stream: Handle = self.device.stream()
                self._resources.callback(self.device.destroy_stream, self.stream)
                self.finished: Handle = self.device.event()
                self._resources.callback(self.device.destroy_event, self.finished)
        except DeviceError as error:
            self.close()
            raise BackendError(
                f"the GPU cannot be used ({error}): close other programs on it, or use --backend "
                "openvino"
            ) from error

    @contextmanager
    def running(self) -> Iterator[None]:
        """The GPU for one thread at a time, its context current."""
        with self._lock:
            if not self._open:
                raise BackendError("the segmenter was closed; expected an open one: load it again")
            with self._on_device():
                yield

    def settle(self) -> None:
        """Waits for what a failed run has queued: it uses memory that is about to be freed."""
        try:
            self.device.synchronize(self.stream)
        except DeviceError:
            # As after an illegal address: nothing works in this process any more.
            self._lost = True

    def library(self, backend: EngineBackend) -> Library:
        """The library of `backend`, loaded once."""
        if backend not in self._libraries:
            self._libraries[backend] = Library(backend)
        return self._libraries[backend]

    def make_room(self, session: EngineOwner, size: int) -> None:
        """Unloads other engines until `size` more bytes for `session` keep the memory limit.

        To load an engine the arena makes room, too; not for its own growth, which `size` then is.
        """
        if self._memory_limit is None:
            return
        while self.device_bytes + size > self._memory_limit:
            if self.unload_oldest(but=session):
                continue
            if session in self._engines or not self.arena.device_bytes:
                raise BackendError(
                    f"route {session.entry.route} needs {_mib(size)} on top of "
                    f"{_mib(self.device_bytes)}; the memory limit is {_mib(self._memory_limit)}: "
                    "raise it"
                )
            # As large as the largest scan so far; the next run takes what it needs.
            self.arena.release()

    def used(self, session: EngineOwner, size: int) -> None:
        """Notes that `session` holds an engine of `size` bytes and was used last."""
        self._engines[session] = size
        self._engines.move_to_end(session)

    def dropped(self, session: EngineOwner) -> None:
        """Notes that `session` holds no engine any more."""
        self._engines.pop(session, None)

    def unload_oldest(self, but: EngineOwner) -> bool:
        """Unloads the engine used longest ago other than that of `but`; False if there is none."""
        for session in self._engines:
            if session is not but:
                session.unload()
                return True
        return False

    def close(self) -> None:
        """Gives everything back, also where some of it reports faults; safe to call twice.

        Where the GPU cannot be reached, BackendError is raised and the next call tries again; not
        so where a run was lost with it, which was told then.
        """
        with self._lock:
            try:
                self._give_back()
            except BackendError:
                if not self._lost:
                    raise
                self._open = False

    def _give_back(self) -> None:
        if self._open:
            on_device = ExitStack()
            on_device.enter_context(self._on_device())
            # From here on all is released, come what may.
            self._open = False
            with ExitStack() as last:
                last.callback(self.device.close)
                last.push(on_device)
                on_device.callback(self._libraries.clear)
                on_device.callback(self._resources.close)
                on_device.callback(self.arena.release)
                for session in list(self._engines):
                    on_device.callback(session.unload)

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        with ExitStack() as stack:
            try:
                stack.enter_context(self.device.current())
            except DeviceError as error:
                raise BackendError(
                    f"the GPU cannot be reached ({error}): close other programs on it and try "
                    "again, or use --backend openvino"
                ) from error
            yield

    @property
    def device_bytes(self) -> int:
        """What the loaded engines and their working memory take."""
        return sum(self._engines.values()) + self.arena.device_bytes


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
