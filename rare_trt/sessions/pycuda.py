"""The device on PyCUDA 2020.1 or newer, which images for Jetson carry.

PyCUDA lets objects go as Python does, so what others hold are addresses and handles, and the
object behind each has one reference, here. Two things it cannot do: capture graphs, and report
that CUDA refused to release something other than by a line on stderr.

The tests have run all of it on PyCUDA 2024.1 and 2026.1, built for CUDA 12.6, over a fake driver.
The releases from 2020.1 on have the same calls in their sources; no GPU has run this.
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
    driver_release,
    gpu_model,
)

ATTRIBUTE = driver.device_attribute
# CU_STREAM_NON_BLOCKING: PyCUDA has no name for it.
NON_BLOCKING = 1
NO_GRAPHS = "PyCUDA has no CUDA graphs; cuda-bindings has"


class PyCudaDevice:
    """The first GPU, through PyCUDA; see `Device`."""

    def __init__(self) -> None:
        try:
            with _checked():
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
        with _checked():
            self.gpu = self._described()
            self._context: Any = self._device.retain_primary_context()
        # At the end of the program if not before: PyCUDA's own end for a context is not that of a
        # primary one.
        self._detach = finalize(self, _detach, self._context)

    @contextmanager
    def current(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise DeviceError("the device was closed")
            self._inside += 1
        try:
            with _checked():
                self._context.push()
            try:
                yield
            finally:
                with _checked():
                    self._pop()
        finally:
            with self._lock:
                self._inside -= 1
            self._let_go()

    def allocate(self, size: int) -> int:
        with _checked():
            allocation = driver.mem_alloc(size)
        address = int(allocation)
        self._allocations[address] = allocation
        return address

    def free(self, address: int) -> None:
        self._release(address)

    def allocate_host(self, size: int) -> HostBuffer:
        with _checked():
            memory: NDArray[np.uint8] = driver.pagelocked_empty(
                size, np.uint8, mem_flags=driver.host_alloc_flags.DEVICEMAP
            )
        allocation: Any = memory.base
        address = memory.ctypes.data
        self._allocations[address] = allocation
        try:
            with _checked():
                device_address = int(allocation.get_device_pointer())
        except DeviceError:
            self._release(address)
            raise
        return HostBuffer(memory, address, device_address)

    def free_host(self, buffer: HostBuffer) -> None:
        self._release(buffer.address)

    def copy_in(self, target: int, source: HostBuffer, start: int, size: int, on: Handle) -> None:
        with _checked():
            driver.memcpy_htod_async(target, _part(source, start, size), _object(on))

    def copy_out(self, target: HostBuffer, start: int, source: int, size: int, on: Handle) -> None:
        with _checked():
            driver.memcpy_dtoh_async(_part(target, start, size), source, _object(on))

    def fill(self, target: int, value: int, size: int, on: Handle) -> None:
        with _checked():
            driver.memset_d8_async(target, value, size, _object(on))

    def stream(self) -> Handle:
        with _checked():
            return _Held(driver.Stream(NON_BLOCKING))

    def stream_address(self, stream: Handle) -> int:
        return int(_object(stream).handle)

    def destroy_stream(self, stream: Handle) -> None:
        _destroy(stream)

    def event(self) -> Handle:
        with _checked():
            return _Held(driver.Event())

    def record(self, event: Handle, on: Handle) -> None:
        with _checked():
            _object(event).record(_object(on))

    def wait(self, event: Handle) -> None:
        with _checked():
            _object(event).synchronize()

    def synchronize(self, stream: Handle) -> None:
        with _checked():
            _object(stream).synchronize()

    def destroy_event(self, event: Handle) -> None:
        _destroy(event)

    def captured(self, work: Callable[[], None], on: Handle) -> Handle:
        raise DeviceError(NO_GRAPHS)

    def launch(self, graph: Handle, on: Handle) -> None:
        raise DeviceError(NO_GRAPHS)

    def destroy_graph(self, graph: Handle) -> None:
        raise DeviceError(NO_GRAPHS)

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self._let_go()

    def _let_go(self) -> None:
        """Detaches the context once the device is closed and no thread is in the context.

        PyCUDA cannot pop what is detached, and leaves a context on the stack of the thread that
        detached it: on that of a thread which ends, it is in nobody's way.
        """
        with self._lock:
            due = self._closed and not self._inside and self._detach.alive
        if due:
            with ThreadPoolExecutor(max_workers=1) as thread, _checked():
                thread.submit(self._detach).result()

    def _pop(self) -> None:
        try:
            driver.Context.pop()
        except driver.Error:
            # PyCUDA ends the whole program with a thread that has a context left. A detached one
            # it takes off the stack.
            self._closed = True
            if self._detach.detach() is not None:
                self._context.detach()
            raise

    def _release(self, address: int) -> None:
        allocation = self._allocations.pop(address, None)
        if allocation is None:
            raise DeviceError(f"no memory at {address:#x} is there to be freed")
        with _checked():
            allocation.free()

    def _described(self) -> Gpu:
        version = int(driver.get_driver_version())
        cuda = f"CUDA {version // 1000}.{version % 1000 // 10}"
        integrated = bool(self._device.get_attribute(ATTRIBUTE.INTEGRATED))
        return Gpu(
            name=gpu_model(
                self._device.name().strip(),
                self._device.get_attribute(ATTRIBUTE.MULTIPROCESSOR_COUNT),
                integrated=integrated,
            ),
            compute_capability=(
                f"{self._device.get_attribute(ATTRIBUTE.COMPUTE_CAPABILITY_MAJOR)}."
                f"{self._device.get_attribute(ATTRIBUTE.COMPUTE_CAPABILITY_MINOR)}"
            ),
            memory_bytes=int(self._device.total_memory()),
            integrated=integrated,
            driver=f"{driver_release()} {cuda}".strip(),
        )


class _Held:
    """The one reference to a stream or an event, which goes when that is destroyed."""

    def __init__(self, held: Any) -> None:
        self.held = held


def _object(handle: _Held) -> Any:
    if handle.held is None:
        raise DeviceError("the stream or event was destroyed")
    return handle.held


def _destroy(handle: _Held) -> None:
    _object(handle)
    handle.held = None


def _detach(context: Any) -> None:
    # PyCUDA does nothing on a thread that does not have the context, unless it made it.
    context.push()
    context.detach()


def _part(buffer: HostBuffer, start: int, size: int) -> NDArray[np.uint8]:
    """Bytes of `buffer`; never fewer than asked for, as a slice would be."""
    if not 0 <= start <= start + size <= buffer.bytes.size:
        raise DeviceError(
            f"{size} bytes from byte {start} are not within a buffer of {buffer.bytes.size}"
        )
    return buffer.bytes[start : start + size]


@contextmanager
def _checked() -> Iterator[None]:
    """Turns PyCUDA's errors into DeviceError, and DeviceMemoryError where memory ran out."""
    try:
        yield
    except driver.MemoryError as error:
        raise DeviceMemoryError(f"the GPU is out of memory ({error})") from error
    except driver.Error as error:
        raise DeviceError(f"CUDA reports {error}") from error
