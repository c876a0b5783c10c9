"""The part of CUDA that a session needs, independent of the Python binding that provides it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rare_trt.errors import BackendError

# A stream, an event or an executable graph: an object of the binding.
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


def describe_gpu(
    name: str,
    capability: tuple[int, int],
    multiprocessors: int,
    memory_bytes: int,
    cuda_version: int,
    *,
    integrated: bool,
) -> Gpu:
    """Returns the description that engines are bound to; `cuda_version` is as the driver gives it.

    An integrated GPU's name gets its multiprocessors: every Jetson module with an Orin calls it
    "Orin", with 4 of them as with 16.
    """
    cuda = f"CUDA {cuda_version // 1000}.{cuda_version % 1000 // 10}"
    return Gpu(
        name=f"{name}, {multiprocessors} multiprocessors" if integrated else name,
        compute_capability=f"{capability[0]}.{capability[1]}",
        memory_bytes=memory_bytes,
        integrated=integrated,
        driver=f"{driver_release()} {cuda}".strip(),
    )


@dataclass(frozen=True, eq=False)
class HostBuffer:
    """Pinned host memory: its bytes, its address, and the GPU's address of it."""

    bytes: NDArray[np.uint8]
    address: int
    device_address: int


class Device(Protocol):
    """The GPU in its primary context. Every call raises DeviceError where CUDA reports a fault.

    All calls but `current` and `close` are made inside `current()`. Copies and fills are queued on
    a stream, and are complete once the caller has waited for it.
    """

    gpu: Gpu

    def current(self) -> AbstractContextManager[None]:
        """Makes the GPU's primary context current on the calling thread while it is entered."""
        ...

    def allocate(self, size: int) -> int:
        """Allocates `size` bytes of device memory, aligned to 256; returns their address."""
        ...

    def free(self, address: int) -> None:
        """Frees device memory."""
        ...

    def allocate_host(self, size: int) -> HostBuffer:
        """Allocates `size` bytes of pinned host memory that the GPU can read and write in place."""
        ...

    def free_host(self, buffer: HostBuffer) -> None:
        """Frees pinned host memory."""
        ...

    def copy_in(self, target: int, source: HostBuffer, start: int, size: int, on: Handle) -> None:
        """Queues a copy of `size` bytes of `source`, from byte `start`, to device memory."""
        ...

    def copy_out(self, target: HostBuffer, start: int, source: int, size: int, on: Handle) -> None:
        """Queues a copy of `size` bytes of device memory into `target` at byte `start`."""
        ...

    def fill(self, target: int, value: int, size: int, on: Handle) -> None:
        """Queues setting `size` bytes of device memory to `value`."""
        ...

    def create_stream(self) -> Handle:
        """Creates a stream that does not wait for the default stream."""
        ...

    def stream_address(self, stream: Handle) -> int:
        """Returns the address by which other libraries know the stream."""
        ...

    def destroy_stream(self, stream: Handle) -> None:
        """Destroys a stream."""
        ...

    def create_event(self) -> Handle:
        """Creates an event."""
        ...

    def record(self, event: Handle, on: Handle) -> None:
        """Queues the event on the stream."""
        ...

    def wait(self, event: Handle) -> None:
        """Returns once all work that was queued before the event is done."""
        ...

    def synchronize(self, stream: Handle) -> None:
        """Returns once all work that was queued on the stream is done."""
        ...

    def destroy_event(self, event: Handle) -> None:
        """Destroys an event."""
        ...

    def capture(self, work: Callable[[], None], on: Handle) -> Handle:
        """Captures the calls that `work` queues on the stream as an executable graph.

        Nothing is run.
        """
        ...

    def launch(self, graph: Handle, on: Handle) -> None:
        """Queues an executable graph on the stream."""
        ...

    def destroy_graph(self, graph: Handle) -> None:
        """Destroys an executable graph."""
        ...

    def close(self) -> None:
        """Releases the context; safe to call twice."""
        ...


def driver_release() -> str:
    """Returns the release of NVIDIA's kernel driver, empty where no file names it."""
    for path in DRIVER_FILES:
        with suppress(OSError):
            return path.read_text().splitlines()[0].strip()
    return ""
