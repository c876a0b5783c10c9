"""The device through cuda-python's driver bindings."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from cuda.bindings import driver

from rare_trt.errors import BackendError
from rare_trt.sessions.device import (
    DeviceError,
    DeviceMemoryError,
    Gpu,
    Handle,
    HostBuffer,
    describe_gpu,
)

ATTRIBUTE = driver.CUdevice_attribute
SUCCESS = driver.CUresult.CUDA_SUCCESS
OUT_OF_MEMORY = driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY


class CudaDevice:
    """The first GPU, through the driver API; see `Device`."""

    def __init__(self) -> None:
        try:
            _check(driver.cuInit(0))
            self._device = _check(driver.cuDeviceGet(0))
        except DeviceError as error:
            raise BackendError(
                f"no NVIDIA GPU can be used here ({error}): check the GPU and its driver, or use "
                "--backend openvino"
            ) from error
        except RuntimeError as error:
            # cuda-python raises it where there is no libcuda.
            raise BackendError(
                "no NVIDIA GPU can be used here (its driver is not installed): install it, or use "
                "--backend openvino"
            ) from error
        self.gpu = self._describe()
        self._context: Any = _check(driver.cuDevicePrimaryCtxRetain(self._device))

    @contextmanager
    def current(self) -> Iterator[None]:
        """Makes the primary context current on this thread while it is entered."""
        _check(driver.cuCtxPushCurrent(self._context))
        try:
            yield
        finally:
            _check(driver.cuCtxPopCurrent())

    def allocate(self, size: int) -> int:
        """Allocates `size` bytes of device memory; returns their address."""
        return int(_check(driver.cuMemAlloc(size)))

    def free(self, address: int) -> None:
        """Frees device memory."""
        _check(driver.cuMemFree(address))

    def allocate_host(self, size: int) -> HostBuffer:
        """Allocates `size` bytes of pinned host memory, mapped for the GPU."""
        address = int(_check(driver.cuMemHostAlloc(size, driver.CU_MEMHOSTALLOC_DEVICEMAP)))
        try:
            device_address = int(_check(driver.cuMemHostGetDevicePointer(address, 0)))
        except DeviceError:
            with suppress(DeviceError):
                _check(driver.cuMemFreeHost(address))
            raise
        memory = (ctypes.c_uint8 * size).from_address(address)
        return HostBuffer(np.ctypeslib.as_array(memory), address, device_address)

    def free_host(self, buffer: HostBuffer) -> None:
        """Frees pinned host memory."""
        _check(driver.cuMemFreeHost(buffer.address))

    def copy_in(self, target: int, source: HostBuffer, start: int, size: int, on: Handle) -> None:
        """Queues a copy from host to device memory."""
        _check(driver.cuMemcpyHtoDAsync(target, source.address + start, size, on))

    def copy_out(self, target: HostBuffer, start: int, source: int, size: int, on: Handle) -> None:
        """Queues a copy from device to host memory."""
        _check(driver.cuMemcpyDtoHAsync(target.address + start, source, size, on))

    def fill(self, target: int, value: int, size: int, on: Handle) -> None:
        """Queues setting device memory to `value`."""
        _check(driver.cuMemsetD8Async(target, value, size, on))

    def create_stream(self) -> Handle:
        """Creates a non-blocking stream."""
        return _check(driver.cuStreamCreate(driver.CUstream_flags.CU_STREAM_NON_BLOCKING))

    def stream_address(self, stream: Handle) -> int:
        """Returns the stream's CUDA handle as a number."""
        return int(stream)

    def destroy_stream(self, stream: Handle) -> None:
        """Destroys a stream."""
        _check(driver.cuStreamDestroy(stream))

    def create_event(self) -> Handle:
        """Creates an event."""
        return _check(driver.cuEventCreate(driver.CUevent_flags.CU_EVENT_DEFAULT))

    def record(self, event: Handle, on: Handle) -> None:
        """Queues the event on the stream."""
        _check(driver.cuEventRecord(event, on))

    def wait(self, event: Handle) -> None:
        """Waits for the event."""
        _check(driver.cuEventSynchronize(event))

    def synchronize(self, stream: Handle) -> None:
        """Waits for all work on the stream."""
        _check(driver.cuStreamSynchronize(stream))

    def destroy_event(self, event: Handle) -> None:
        """Destroys an event."""
        _check(driver.cuEventDestroy(event))

    def capture(self, work: Callable[[], None], on: Handle) -> Handle:
        """Captures what `work` queues on the stream as an executable graph."""
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _check(driver.cuStreamBeginCapture(on, mode))
        try:
            work()
        except BaseException:
            # The stream must leave capture mode, with or without a graph.
            _, graph = driver.cuStreamEndCapture(on)
            if graph is not None and int(graph):
                driver.cuGraphDestroy(graph)
            raise
        graph = _check(driver.cuStreamEndCapture(on))
        try:
            ready = _check(driver.cuGraphInstantiate(graph, 0))
        except DeviceError:
            driver.cuGraphDestroy(graph)
            raise
        try:
            _check(driver.cuGraphDestroy(graph))
        except DeviceError:
            driver.cuGraphExecDestroy(ready)
            raise
        return ready

    def launch(self, graph: Handle, on: Handle) -> None:
        """Queues an executable graph on the stream."""
        _check(driver.cuGraphLaunch(graph, on))

    def destroy_graph(self, graph: Handle) -> None:
        """Destroys an executable graph."""
        _check(driver.cuGraphExecDestroy(graph))

    def close(self) -> None:
        """Releases the primary context; safe to call twice."""
        if self._context is not None:
            self._context = None
            _check(driver.cuDevicePrimaryCtxRelease(self._device))

    def _describe(self) -> Gpu:
        name = _check(driver.cuDeviceGetName(256, self._device)).split(b"\0")[0]
        return describe_gpu(
            name.decode(errors="replace").strip(),
            (
                self._attribute(ATTRIBUTE.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
                self._attribute(ATTRIBUTE.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
            ),
            self._attribute(ATTRIBUTE.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT),
            int(_check(driver.cuDeviceTotalMem(self._device))),
            int(_check(driver.cuDriverGetVersion())),
            integrated=bool(self._attribute(ATTRIBUTE.CU_DEVICE_ATTRIBUTE_INTEGRATED)),
        )

    def _attribute(self, attribute: Any) -> int:
        return int(_check(driver.cuDeviceGetAttribute(attribute, self._device)))


def _check(result: tuple[Any, ...]) -> Any:
    """Returns the value of a driver call; raises DeviceError with CUDA's name of the error."""
    status = result[0]
    if status != SUCCESS:
        _, name = driver.cuGetErrorName(status)
        error = name.decode() if name else str(status)
        if status == OUT_OF_MEMORY:
            raise DeviceMemoryError(f"the GPU is out of memory ({error})")
        raise DeviceError(f"CUDA reports {error}")
    return result[1] if len(result) > 1 else None
