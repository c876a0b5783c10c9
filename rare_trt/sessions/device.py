"""The little of CUDA that a session needs, whichever Python binding brings it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rare_trt.errors import BackendError

# A stream, an event or an executable graph: whatever the binding gives out.
Handle: TypeAlias = Any

# The driver's release is written here on desktops and servers; a Jetson has neither file.
DRIVER_FILES: Final = (Path("/sys/module/nvidia/version"), Path("/proc/driver/nvidia/version"))


class DeviceError(BackendError):
    """A CUDA call failed."""


class DeviceMemoryError(DeviceError):
    """The GPU, or pinned host memory, has no room for an allocation."""


@dataclass(frozen=True)
class Gpu:
    """A GPU as the driver describes it; `driver` names the driver's release and CUDA version."""

    name: str
    compute_capability: str
    memory_bytes: int
    integrated: bool
    driver: str


def gpu_model(name: str, multiprocessors: int, *, integrated: bool) -> str:
    """What an engine is bound to: the driver's name for the GPU, of which Jetsons need more.

    Every module with an Orin calls it "Orin", with 4 multiprocessors as with 16.
    """
    return f"{name}, {multiprocessors} multiprocessors" if integrated else name


@dataclass(frozen=True, eq=False)
class HostBuffer:
    """Pinned host memory: its bytes, and where the GPU sees them."""

    bytes: NDArray[np.uint8]
    address: int
    device_address: int


class Device(Protocol):
    """The GPU in its primary context. Every call raises DeviceError where CUDA reports a fault.

    All calls but `current` and `close` are made inside `current()`; copies and fills are queued on
    a stream and done once it was waited for.
    """

    gpu: Gpu

    def current(self) -> AbstractContextManager[None]:
        """Makes the GPU's primary context the calling thread's own for the time being."""
        ...

    def allocate(self, size: int) -> int:
        """Device memory of `size` bytes, aligned to 256."""
        ...

    def free(self, address: int) -> None: ...

    def allocate_host(self, size: int) -> HostBuffer:
        """Pinned host memory of `size` bytes that the GPU can read and write in place."""
        ...

    def free_host(self, buffer: HostBuffer) -> None: ...

    def copy_in(self, target: int, source: HostBuffer, start: int, size: int, on: Handle) -> None:
        """Queues a copy of `size` bytes of `source`, from byte `start`, to device memory."""
        ...

    def copy_out(self, target: HostBuffer, start: int, source: int, size: int, on: Handle) -> None:
        """Queues a copy of `size` bytes of device memory into `target` at byte `start`."""
        ...

    def fill(self, target: int, value: int, size: int, on: Handle) -> None:
        """Queues setting `size` bytes of device memory to `value`."""
        ...

    def stream(self) -> Handle: ...

    def stream_address(self, stream: Handle) -> int:
        """What other libraries know the stream by."""
        ...

    def destroy_stream(self, stream: Handle) -> None: ...

    def event(self) -> Handle: ...

    def record(self, event: Handle, on: Handle) -> None: ...

    def wait(self, event: Handle) -> None:
        """Returns once all that was queued before the event is done."""
        ...

    def synchronize(self, stream: Handle) -> None:
        """Returns once all that was queued on the stream is done."""
        ...

    def destroy_event(self, event: Handle) -> None: ...

    def captured(self, work: Callable[[], None], on: Handle) -> Handle:
        """A graph of what `work` queues on the stream, ready to launch; nothing is run."""
        ...

    def launch(self, graph: Handle, on: Handle) -> None: ...

    def destroy_graph(self, graph: Handle) -> None: ...

    def close(self) -> None:
        """Lets go of the context; safe to call twice."""
        ...


def driver_release() -> str:
    """The release of NVIDIA's kernel driver, empty where it is not written down."""
    for path in DRIVER_FILES:
        with suppress(OSError):
            return path.read_text().splitlines()[0].strip()
    return ""
