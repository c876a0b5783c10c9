"""The device through PyCUDA 2020.1 or newer, which images for Jetson contain.

PyCUDA releases an object with its last Python reference, so this module keeps the only reference
to each, and callers get addresses and handles. PyCUDA cannot capture graphs, and prints a line on
stderr where CUDA refuses to release something.

The tests have run on PyCUDA 2024.1 and 2026.1, built for CUDA 12.6, over a fake driver. The
releases from 2020.1 on have the same calls in their sources. It has not run on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import Any
from weakref import finalize

import numpy as np
from numpy.typing import NDArray
from pycuda import driver

from rare_trt.errors import BackendError
from rare_trt.sessions.device import (
    DeviceError,
    DeviceMemoryError,
    Gpu,
    Handle,
    HostBuffer,
    describe_gpu,
)

ATTRIBUTE = driver.device_attribute
# CU_STREAM_NON_BLOCKING: PyCUDA has no name for it.
NON_BLOCKING = 1
NO_GRAPHS = "PyCUDA has no CUDA graphs; cuda-bindings has"


class PyCudaDevice:
    """The first GPU, through PyCUDA; see `Device`."""

    def __init__(self) -> None:
        try:
            with _cuda_errors():
                driver.init()
                self._device = driver.Device(0)
        except DeviceError as error:
            raise BackendError(
                f"no NVIDIA GPU can be used here ({error}): install NVIDIA's driver, or use "
                "--backend openvino"
            ) from error
        self._allocations: dict[int, Any] = {}
        self._lock = Lock()
        self._inside = 0
        self._closed = False
        with _cuda_errors():
            self.gpu = self._describe()
            self._context: Any = self._device.retain_primary_context()
        # At the latest at the end of the program: PyCUDA's own clean-up does not release a primary
        # context.
        self._detach = finalize(self, _detach, self._context)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Makes the primary context current on this thread while it is entered."""
        with self._lock:
            if self._closed:
                raise DeviceError("the device was closed")
            self._inside += 1
        try:
            with _cuda_errors():
                self._context.push()
            try:
                yield
            finally:
                with _cuda_errors():
                    self._pop()
        finally:
            with self._lock:
                self._inside -= 1
            self._detach_if_unused()

    def allocate(self, size: int) -> int:
        """Allocates `size` bytes of device memory; returns their address."""
        with _cuda_errors():
            allocation = driver.mem_alloc(size)
        address = int(allocation)
        self._allocations[address] = allocation
        return address

    def free(self, address: int) -> None:
        """Frees device memory."""
        self._release(address)

    def allocate_host(self, size: int) -> HostBuffer:
        """Allocates `size` bytes of pinned host memory, mapped for the GPU."""
        with _cuda_errors():
            memory: NDArray[np.uint8] = driver.pagelocked_empty(
                size, np.uint8, mem_flags=driver.host_alloc_flags.DEVICEMAP
            )
        allocation: Any = memory.base
        address = memory.ctypes.data
        self._allocations[address] = allocation
        try:
            with _cuda_errors():
                device_address = int(allocation.get_device_pointer())
        except DeviceError:
            self._release(address)
            raise
        return HostBuffer(memory, address, device_address)

    def free_host(self, buffer: HostBuffer) -> None:
        """Frees pinned host memory."""
        self._release(buffer.address)

    def copy_in(self, target: int, source: HostBuffer, start: int, size: int, on: Handle) -> None:
        """Queues a copy from host to device memory."""
        with _cuda_errors():
            driver.memcpy_htod_async(target, _part(source, start, size), _object(on))

    def copy_out(self, target: HostBuffer, start: int, source: int, size: int, on: Handle) -> None:
        """Queues a copy from device to host memory."""
        with _cuda_errors():
            driver.memcpy_dtoh_async(_part(target, start, size), source, _object(on))

    def fill(self, target: int, value: int, size: int, on: Handle) -> None:
        """Queues setting device memory to `value`."""
        with _cuda_errors():
            driver.memset_d8_async(target, value, size, _object(on))

    def create_stream(self) -> Handle:
        """Creates a non-blocking stream."""
        with _cuda_errors():
            return _Reference(driver.Stream(NON_BLOCKING))

    def stream_address(self, stream: Handle) -> int:
        """Returns the stream's CUDA handle as a number."""
        return int(_object(stream).handle)

    def destroy_stream(self, stream: Handle) -> None:
        """Destroys a stream."""
        _destroy(stream)

    def create_event(self) -> Handle:
        """Creates an event."""
        with _cuda_errors():
            return _Reference(driver.Event())

    def record(self, event: Handle, on: Handle) -> None:
        """Queues the event on the stream."""
        with _cuda_errors():
            _object(event).record(_object(on))

    def wait(self, event: Handle) -> None:
        """Waits for the event."""
        with _cuda_errors():
            _object(event).synchronize()

    def synchronize(self, stream: Handle) -> None:
        """Waits for all work on the stream."""
        with _cuda_errors():
            _object(stream).synchronize()

    def destroy_event(self, event: Handle) -> None:
        """Destroys an event."""
        _destroy(event)

    def capture(self, work: Callable[[], None], on: Handle) -> Handle:
        """Raises DeviceError: PyCUDA has no graphs."""
        raise DeviceError(NO_GRAPHS)

    def launch(self, graph: Handle, on: Handle) -> None:
        """Raises DeviceError: PyCUDA has no graphs."""
        raise DeviceError(NO_GRAPHS)

    def destroy_graph(self, graph: Handle) -> None:
        """Raises DeviceError: PyCUDA has no graphs."""
        raise DeviceError(NO_GRAPHS)

    def close(self) -> None:
        """Releases the primary context once no thread is inside it; safe to call twice."""
        with self._lock:
            self._closed = True
        self._detach_if_unused()

    def _detach_if_unused(self) -> None:
        """Detaches the context once the device is closed and no thread is inside it.

        PyCUDA leaves a detached context on the stack of the thread that detached it, and cannot pop
        it. Detach on a short-lived thread so that the stale context dies with it.
        """
        with self._lock:
            due = self._closed and not self._inside and self._detach.alive
        if due:
            with ThreadPoolExecutor(max_workers=1) as thread, _cuda_errors():
                thread.submit(self._detach).result()

    def _pop(self) -> None:
        try:
            driver.Context.pop()
        except driver.Error:
            # PyCUDA aborts the program when a thread ends with a context on its stack. Detaching
            # takes it off.
            self._closed = True
            if self._detach.detach() is not None:
                self._context.detach()
            raise

    def _release(self, address: int) -> None:
        allocation = self._allocations.pop(address, None)
        if allocation is None:
            raise DeviceError(f"no memory at {address:#x} can be freed: it is not allocated")
        with _cuda_errors():
            allocation.free()

    def _describe(self) -> Gpu:
        attribute = self._device.get_attribute
        return describe_gpu(
            self._device.name().strip(),
            (
                attribute(ATTRIBUTE.COMPUTE_CAPABILITY_MAJOR),
                attribute(ATTRIBUTE.COMPUTE_CAPABILITY_MINOR),
            ),
            attribute(ATTRIBUTE.MULTIPROCESSOR_COUNT),
            int(self._device.total_memory()),
            int(driver.get_driver_version()),
            integrated=bool(attribute(ATTRIBUTE.INTEGRATED)),
        )


class _Reference:
    """The only reference to a stream or an event, dropped when that is destroyed."""

    def __init__(self, target: Any) -> None:
        self.target = target


def _object(handle: _Reference) -> Any:
    if handle.target is None:
        raise DeviceError("the stream or event was destroyed")
    return handle.target


def _destroy(handle: _Reference) -> None:
    _object(handle)
    handle.target = None


def _detach(context: Any) -> None:
    # PyCUDA ignores it on a thread that neither has nor made the context.
    context.push()
    context.detach()


def _part(buffer: HostBuffer, start: int, size: int) -> NDArray[np.uint8]:
    """Returns `size` bytes of `buffer`; raises DeviceError where a slice would be shorter."""
    if not 0 <= start <= start + size <= buffer.bytes.size:
        raise DeviceError(
            f"{size} bytes from byte {start} are not within a buffer of {buffer.bytes.size}"
        )
    return buffer.bytes[start : start + size]


@contextmanager
def _cuda_errors() -> Iterator[None]:
    """Turns PyCUDA's errors into DeviceError, and DeviceMemoryError where memory ran out."""
    try:
        yield
    except driver.MemoryError as error:
        raise DeviceMemoryError(f"the GPU is out of memory ({error})") from error
    except driver.Error as error:
        raise DeviceError(f"CUDA reports {error}") from error
