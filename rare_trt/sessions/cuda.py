"""The device on cuda-python's driver bindings."""

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
    driver_release,
    gpu_model,
)

ATTRIBUTE = driver.CUdevice_attribute
SUCCESS = driver.CUresult.CUDA_SUCCESS
OUT_OF_MEMORY = driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY


class CudaDevice:
    """The first GPU, through the driver API; see `Device`."""

    def __init__(self) -> None:
        try:
            _done(driver.cuInit(0))
            self._device = _done(driver.cuDeviceGet(0))
        except DeviceError as error:
            raise BackendError(
                f"no NVIDIA GPU can be used here ({error}): check the GPU and its driver, or use "
                "--backend openvino"
            ) from error
        except RuntimeError as error:
            # So cuda-python puts it that it found no libcuda.
            raise BackendError(
                "no NVIDIA GPU can be used here (its driver is not installed): install it, or use "
                "--backend openvino"
            ) from error
        self.gpu = self._described()
        self._context: Any = _done(driver.cuDevicePrimaryCtxRetain(self._device))

    @contextmanager
    def current(self) -> Iterator[None]:
        _done(driver.cuCtxPushCurrent(self._context))
        try:
            yield
        finally:
            _done(driver.cuCtxPopCurrent())

    def allocate(self, size: int) -> int:
        return int(_done(driver.cuMemAlloc(size)))

    def free(self, address: int) -> None:
        _done(driver.cuMemFree(address))

    def allocate_host(self, size: int) -> HostBuffer:
        address = int(_done(driver.cuMemHostAlloc(size, driver.CU_MEMHOSTALLOC_DEVICEMAP)))
        try:
            device_address = int(_done(driver.cuMemHostGetDevicePointer(address, 0)))
        except DeviceError:
            with suppress(DeviceError):
                _done(driver.cuMemFreeHost(address))
            raise
        memory = (ctypes.c_uint8 * size).from_address(address)
        return HostBuffer(np.ctypeslib.as_array(memory), address, device_address)

    def free_host(self, buffer: HostBuffer) -> None:
        _done(driver.cuMemFreeHost(buffer.address))

    def copy_in(self, target: int, source: HostBuffer, start: int, size: int, on: Handle) -> None:
        _done(driver.cuMemcpyHtoDAsync(target, source.address + start, size, on))

    def copy_out(self, target: HostBuffer, start: int, source: int, size: int, on: Handle) -> None:
        _done(driver.cuMemcpyDtoHAsync(target.address + start, source, size, on))

    def fill(self, target: int, value: int, size: int, on: Handle) -> None:
        _done(driver.cuMemsetD8Async(target, value, size, on))

    def stream(self) -> Handle:
        return _done(driver.cuStreamCreate(driver.CUstream_flags.CU_STREAM_NON_BLOCKING))

    def stream_address(self, stream: Handle) -> int:
        return int(stream)

    def destroy_stream(self, stream: Handle) -> None:
        _done(driver.cuStreamDestroy(stream))

    def event(self) -> Handle:
        return _done(driver.cuEventCreate(driver.CUevent_flags.CU_EVENT_DEFAULT))

    def record(self, event: Handle, on: Handle) -> None:
        _done(driver.cuEventRecord(event, on))

    def wait(self, event: Handle) -> None:
        _done(driver.cuEventSynchronize(event))

    def synchronize(self, stream: Handle) -> None:
        _done(driver.cuStreamSynchronize(stream))

    def destroy_event(self, event: Handle) -> None:
        _done(driver.cuEventDestroy(event))

    def captured(self, work: Callable[[], None], on: Handle) -> Handle:
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _done(driver.cuStreamBeginCapture(on, mode))
        try:
            work()
        except BaseException:
            # The stream must leave capture mode, whatever became of the graph.
            _, graph = driver.cuStreamEndCapture(on)
            if graph is not None and int(graph):
                driver.cuGraphDestroy(graph)
            raise
        graph = _done(driver.cuStreamEndCapture(on))
        try:
            ready = _done(driver.cuGraphInstantiate(graph, 0))
        except DeviceError:
            driver.cuGraphDestroy(graph)
            raise
        try:
            _done(driver.cuGraphDestroy(graph))
        except DeviceError:
            driver.cuGraphExecDestroy(ready)
            raise
        return ready

    def launch(self, graph: Handle, on: Handle) -> None:
        _done(driver.cuGraphLaunch(graph, on))

    def destroy_graph(self, graph: Handle) -> None:
        _done(driver.cuGraphExecDestroy(graph))

    def close(self) -> None:
        if self._context is not None:
            self._context = None
            _done(driver.cuDevicePrimaryCtxRelease(self._device))

    def _described(self) -> Gpu:
        name = _done(driver.cuDeviceGetName(256, self._device)).split(b"\0")[0]
        integrated = bool(self._attribute(ATTRIBUTE.CU_DEVICE_ATTRIBUTE_INTEGRATED))
        version = int(_done(driver.cuDriverGetVersion()))
        cuda = f"CUDA {version // 1000}.{version % 1000 // 10}"
        return Gpu(
            name=gpu_model(
                name.decode(errors="replace").strip(),
                self._attribute(ATTRIBUTE.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT),
                integrated=integrated,
            ),
            compute_capability=(
                f"{self._attribute(ATTRIBUTE.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)}."
                f"{self._attribute(ATTRIBUTE.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)}"
            ),
            memory_bytes=int(_done(driver.cuDeviceTotalMem(self._device))),
            integrated=integrated,
            driver=f"{driver_release()} {cuda}".strip(),
        )

    def _attribute(self, attribute: Any) -> int:
        return int(_done(driver.cuDeviceGetAttribute(attribute, self._device)))


def _done(result: tuple[Any, ...]) -> Any:
    """The value of a driver call; raises DeviceError with CUDA's name for what went wrong."""
    status = result[0]
    if status != SUCCESS:
        _, name = driver.cuGetErrorName(status)
        said = name.decode() if name else str(status)
        if status == OUT_OF_MEMORY:
            raise DeviceMemoryError(f"the GPU is out of memory ({said})")
        raise DeviceError(f"CUDA reports {said}")
    return result[1] if len(result) > 1 else None
