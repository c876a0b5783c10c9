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
    """A GPU with the stream and the arena that the engines of a package share, one run at a time.

    Where the engines exceed `memory_limit` bytes or the GPU's memory, the least recently used ones
    are unloaded, and loaded again for their next run. Raises BackendError where the GPU cannot be
    used.
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
                self.stream: Handle = self.device.create_stream()
                self._resources.callback(self.device.destroy_stream, self.stream)
                self.finished: Handle = self.device.create_event()
                self._resources.callback(self.device.destroy_event, self.finished)
        except DeviceError as error:
            self.close()
            raise BackendError(
                f"the GPU cannot be used ({error}): close other programs on it, or use --backend "
                "openvino"
            ) from error

    @contextmanager
    def acquire(self) -> Iterator[None]:
        """Reserves the GPU for the calling thread and makes its context current.

        Raises BackendError where the host is closed or the GPU cannot be reached.
        """
        with self._lock:
            if not self._open:
                raise BackendError("the segmenter was closed; expected an open one: load it again")
            with self._make_current():
                yield

    def synchronize(self) -> None:
        """Waits for the work that a failed run has queued, because it uses memory to be freed."""
        try:
            self.device.synchronize(self.stream)
        except DeviceError:
            # After an illegal address, for example, CUDA fails for the rest of the process.
            self._lost = True

    def library(self, backend: EngineBackend) -> Library:
        """Returns the library of `backend`, loaded once."""
        if backend not in self._libraries:
            self._libraries[backend] = Library(backend)
        return self._libraries[backend]

    def make_room(self, owner: EngineOwner, size: int) -> None:
        """Unloads other engines until `size` more bytes for `owner` are within the memory limit.

        Where `owner` is about to load its engine, the arena is released too if necessary. Raises
        BackendError where the memory limit is too small.
        """
        if self._memory_limit is None:
            return
        while self.device_bytes + size > self._memory_limit:
            if self.unload_oldest(keep=owner):
                continue
            if owner in self._engines or not self.arena.device_bytes:
                raise BackendError(
                    f"route {owner.entry.route} needs {_mib(size)} of GPU memory beside the "
                    f"{_mib(self.device_bytes)} in use; the memory limit is "
                    f"{_mib(self._memory_limit)}: raise it"
                )
            # It has the size of the largest scan so far; the next run reserves its own size.
            self.arena.release()

    def mark_used(self, owner: EngineOwner, size: int) -> None:
        """Records that `owner` has an engine of `size` bytes, as the most recently used one."""
        self._engines[owner] = size
        self._engines.move_to_end(owner)

    def forget(self, owner: EngineOwner) -> None:
        """Records that `owner` has no engine any more."""
        self._engines.pop(owner, None)

    def unload_oldest(self, keep: EngineOwner) -> bool:
        """Unloads the least recently used engine except that of `keep`; False without any."""
        for owner in self._engines:
            if owner is not keep:
                owner.unload()
                return True
        return False

    def close(self) -> None:
        """Releases everything, also where a part of it fails; safe to call twice.

        Raises BackendError where the GPU cannot be reached; the next call then tries again. After
        device loss, already reported, close() does not raise.
        """
        with self._lock:
            try:
                self._release()
            except BackendError:
                if not self._lost:
                    raise
                self._open = False

    def _release(self) -> None:
        if self._open:
            on_device = ExitStack()
            on_device.enter_context(self._make_current())
            # From here on every callback runs, even if others fail.
            self._open = False
            with ExitStack() as last:
                last.callback(self.device.close)
                last.push(on_device)
                on_device.callback(self._libraries.clear)
                on_device.callback(self._resources.close)
                on_device.callback(self.arena.release)
                for owner in list(self._engines):
                    on_device.callback(owner.unload)

    @contextmanager
    def _make_current(self) -> Iterator[None]:
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
        """GPU memory that the loaded engines and the arena take."""
        return sum(self._engines.values()) + self.arena.device_bytes


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
