"""The device on PyCUDA, run on the fake CUDA driver; skipped where PyCUDA is not installed."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from conftest import FakeGpu
from fake_cuda import SONAME, FakeDriver

from rare_trt import Segmenter, read_scan
from rare_trt.errors import BackendError
from rare_trt.package.reading import Package
from rare_trt.sessions.device import Device, DeviceError, DeviceMemoryError, Gpu, Handle

if find_spec("pycuda") is None:
    pytest.skip("PyCUDA is not installed", allow_module_level=True)

Make: TypeAlias = Callable[[], Device]

OUT_OF_MEMORY, ILLEGAL_ADDRESS, NOT_SUPPORTED = 2, 700, 801
SIZE = 1024


@pytest.fixture(scope="module")
def make(fake_driver: FakeDriver) -> Make:
    """The class, imported once the driver is there."""
    flags = sys.getdlopenflags()
    # PyCUDA names many functions that it is not asked for here and the fake driver lacks.
    sys.setdlopenflags(os.RTLD_LAZY)
    try:
        from rare_trt.sessions.pycuda import PyCudaDevice
    finally:
        sys.setdlopenflags(flags)
    return PyCudaDevice


@pytest.fixture
def driver(fake_driver: FakeDriver) -> Iterator[FakeDriver]:
    """The driver with a device, and no context on this thread before and after."""
    fake_driver.reset()
    assert context_of_this_thread() is None
    yield fake_driver
    assert context_of_this_thread() is None
    fake_driver.reset()
    fake_driver.set_devices(0)


@pytest.fixture
def device(make: Make, driver: FakeDriver) -> Iterator[Device]:
    """An open device that must have given everything back at the end of the test."""
    opened = make()
    yield opened
    opened.close()
    assert (driver.live_device_bytes(), driver.live_host_bytes()) == (0, 0)
    assert (driver.live_handles(), driver.pending()) == (0, 0)


def context_of_this_thread() -> int | None:
    context, cuda = ctypes.c_void_p(), ctypes.CDLL(SONAME)
    cuda.cuInit(0)
    assert cuda.cuCtxGetCurrent(ctypes.byref(context)) == 0
    return context.value


def on_other_thread(work: Callable[[], object]) -> object:
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    return results[0]


def finished(device: Device, stream: Handle) -> None:
    event = device.create_event()
    device.record(event, stream)
    device.wait(event)
    device.destroy_event(event)


# The GPU and its context


def test_describes_the_gpu(make: Make, driver: FakeDriver) -> None:
    driver.set_device(" Orin ", (8, 7), integrated=True, multiprocessors=8, total_bytes=123 << 20)
    device = make()
    assert device.gpu == Gpu("Orin, 8 multiprocessors", "8.7", 123 << 20, True, device.gpu.driver)
    assert device.gpu.driver.endswith("CUDA 13.0")
    device.close()
    driver.set_device("NVIDIA L4", (8, 9), multiprocessors=58)
    device = make()
    assert device.gpu.name == "NVIDIA L4"
    device.close()


def test_no_gpu_is_told(make: Make, driver: FakeDriver) -> None:
    driver.set_devices(0)
    with pytest.raises(BackendError, match="no NVIDIA GPU can be used here"):
        make()


def test_the_context_is_current_inside_only(device: Device) -> None:
    assert context_of_this_thread() is None
    with device.current():
        outer = context_of_this_thread()
        with device.current():
            assert context_of_this_thread() == outer is not None
        assert context_of_this_thread() == outer
    assert context_of_this_thread() is None
    with pytest.raises(DeviceError):
        device.allocate(SIZE)


def test_an_error_inside_leaves_the_context(device: Device) -> None:
    with pytest.raises(KeyError), device.current():
        raise KeyError
    assert context_of_this_thread() is None


def test_threads_share_what_the_device_made(device: Device, driver: FakeDriver) -> None:
    with device.current():
        stream = device.create_stream()
        address = device.allocate(SIZE)
        host = device.allocate_host(SIZE)
        event = device.create_event()

    def use() -> int | None:
        with device.current():
            device.fill(address, 7, SIZE, stream)
            device.copy_out(host, 0, address, SIZE, stream)
            device.record(event, stream)
            device.wait(event)
            assert (host.bytes == 7).all()
            device.free(address)
            device.free_host(host)
            device.destroy_event(event)
            device.destroy_stream(stream)
        return context_of_this_thread()

    assert on_other_thread(use) is None
    assert driver.live_handles() == 1  # the context


@pytest.mark.parametrize("elsewhere", [False, True])
def test_close(make: Make, driver: FakeDriver, elsewhere: bool) -> None:
    device = make()
    assert driver.live_handles() == 1
    (on_other_thread if elsewhere else lambda work: work())(device.close)
    assert driver.live_handles() == 0
    device.close()
    assert driver.calls("cuDevicePrimaryCtxRelease") == 1
    with pytest.raises(DeviceError, match="closed"), device.current():
        pass
    again = make()
    with again.current():
        again.free(again.allocate(SIZE))
    again.close()


def test_close_inside_takes_effect_outside(make: Make, driver: FakeDriver) -> None:
    device = make()
    with device.current(), device.current():
        address = device.allocate(SIZE)
        device.close()
        device.free(address)
        with pytest.raises(DeviceError, match="closed"), device.current():
            pass
        assert driver.live_handles() == 1
    assert driver.live_handles() == 0


def test_close_while_another_thread_is_inside(make: Make, driver: FakeDriver) -> None:
    device = make()
    inside, closed = threading.Event(), threading.Event()

    def use() -> None:
        with device.current():
            inside.set()
            assert closed.wait(10)
            device.free(device.allocate(SIZE))

    thread = threading.Thread(target=use)
    thread.start()
    assert inside.wait(10)
    device.close()
    assert driver.live_handles() == 1
    closed.set()
    thread.join()
    assert driver.live_handles() == 0


def test_a_context_of_the_program_stays_current(device: Device) -> None:
    from pycuda import driver as pycuda

    own = pycuda.Device(0).retain_primary_context()
    own.push()
    before = context_of_this_thread()
    with device.current():
        device.close()
    assert context_of_this_thread() == before is not None
    assert pycuda.Context.get_current() is own
    pycuda.Context.pop()
    on_other_thread(lambda: (own.push(), own.detach()))


def test_a_context_that_cannot_be_popped_ends_the_device_and_not_the_program(
    make: Make, driver: FakeDriver
) -> None:
    device = make()

    def use() -> None:
        popped = driver.fails("cuCtxPopCurrent", ILLEGAL_ADDRESS)
        with popped, pytest.raises(DeviceError, match="cuCtxPopCurrent"), device.current():
            pass

    on_other_thread(use)
    assert driver.live_handles() == 0
    with pytest.raises(DeviceError, match="closed"), device.current():
        pass
    device.close()


def test_a_device_that_nobody_closed_closes_itself(make: Make, driver: FakeDriver) -> None:
    on_other_thread(lambda: [make()].clear())
    assert driver.live_handles() == 0


# Memory


def test_device_memory(device: Device, driver: FakeDriver) -> None:
    with device.current():
        address = device.allocate(SIZE)
        assert address % 256 == 0
        assert driver.room(address) == SIZE
        device.free(address)
        assert driver.live_device_bytes() == 0
        with pytest.raises(DeviceError, match="freed"):
            device.free(address)
    assert driver.calls("cuMemFree") == 1


def test_pinned_memory_is_mapped(device: Device, driver: FakeDriver) -> None:
    with device.current():
        buffer = device.allocate_host(SIZE)
        assert (buffer.bytes.dtype, buffer.bytes.shape) == (np.uint8, (SIZE,))
        assert buffer.address == buffer.bytes.ctypes.data
        assert driver.room(buffer.device_address) == SIZE
        buffer.bytes[:] = 3
        device.free_host(buffer)
        assert driver.live_host_bytes() == 0
        with pytest.raises(DeviceError, match="freed"):
            device.free_host(buffer)
    assert driver.calls("cuMemFreeHost") == 1


def test_memory_runs_out(device: Device, driver: FakeDriver) -> None:
    driver.set_device(total_bytes=SIZE)
    with device.current():
        with pytest.raises(DeviceMemoryError):
            device.allocate(SIZE + 1)
        with driver.fails("cuMemHostAlloc", OUT_OF_MEMORY), pytest.raises(DeviceMemoryError):
            device.allocate_host(SIZE)


def test_memory_that_cannot_be_mapped_is_given_back(device: Device, driver: FakeDriver) -> None:
    with device.current():
        with driver.fails("cuMemHostGetDevicePointer", NOT_SUPPORTED), pytest.raises(DeviceError):
            device.allocate_host(SIZE)
        assert driver.live_host_bytes() == 0


def test_a_refused_release_shows_on_stderr_alone(
    make: Make,
    driver: FakeDriver,
    capfd: pytest.CaptureFixture[str],
) -> None:
    device = make()
    with device.current():
        address = device.allocate(SIZE)
        with driver.fails("cuMemFree", ILLEGAL_ADDRESS):
            device.free(address)
    device.close()
    assert "cuMemFree failed" in capfd.readouterr().err
    assert driver.live_device_bytes() == SIZE


# Streams and events


def test_copies_and_fills_are_queued(device: Device, driver: FakeDriver) -> None:
    with device.current():
        stream = device.create_stream()
        source, target = device.allocate_host(SIZE), device.allocate_host(SIZE)
        address = device.allocate(SIZE)
        source.bytes[:] = np.arange(SIZE) % 251
        target.bytes[:] = 0
        device.fill(address, 255, SIZE, stream)
        device.copy_in(address + 256, source, 100, 300, stream)
        device.copy_out(target, 0, address, SIZE, stream)
        assert driver.pending() == 3
        assert not target.bytes.any()
        finished(device, stream)
        assert (target.bytes[256:556] == source.bytes[100:400]).all()
        assert (target.bytes[:256] == 255).all() and (target.bytes[556:] == 255).all()
        for start, size in ((SIZE - 1, 2), (-1, 1), (0, -1)):
            with pytest.raises(DeviceError, match="within"):
                device.copy_in(address, source, start, size, stream)
            with pytest.raises(DeviceError, match="within"):
                device.copy_out(target, start, address, size, stream)
        device.free_host(source)
        device.free_host(target)
        device.free(address)
        device.destroy_stream(stream)


def test_other_libraries_queue_on_the_stream(device: Device, driver: FakeDriver) -> None:
    ran: list[int] = []
    with device.current():
        stream = device.create_stream()
        address = device.allocate(SIZE)
        assert driver.launch(device.stream_address(stream), lambda: ran.append(1)) == 0
        # A default stream's synchronous work would wait for a blocking stream.
        from pycuda import driver as pycuda

        pycuda.memcpy_dtoh(np.empty(SIZE, np.uint8), address)
        assert not ran
        device.synchronize(stream)
        assert ran
        device.free(address)
        device.destroy_stream(stream)


def test_what_was_destroyed_is_gone_at_once_and_for_good(
    device: Device, driver: FakeDriver
) -> None:
    with device.current():
        stream, event = device.create_stream(), device.create_event()
        assert driver.live_handles() == 3
        device.destroy_event(event)
        device.destroy_stream(stream)
        assert driver.live_handles() == 1
        calls: tuple[Callable[[], object], ...] = (
            lambda: device.wait(event),
            lambda: device.stream_address(stream),
            lambda: device.destroy_event(event),
            lambda: device.destroy_stream(stream),
        )
        for call in calls:
            with pytest.raises(DeviceError, match="destroyed"):
                call()


def test_failures_are_device_errors(device: Device, driver: FakeDriver) -> None:
    with device.current():
        stream, event = device.create_stream(), device.create_event()
        address, host = device.allocate(SIZE), device.allocate_host(SIZE)
        calls: dict[str, Callable[[], object]] = {
            "cuMemAlloc": lambda: device.allocate(SIZE),
            "cuMemHostAlloc": lambda: device.allocate_host(SIZE),
            "cuMemcpyHtoDAsync": lambda: device.copy_in(address, host, 0, SIZE, stream),
            "cuMemcpyDtoHAsync": lambda: device.copy_out(host, 0, address, SIZE, stream),
            "cuMemsetD8Async": lambda: device.fill(address, 0, SIZE, stream),
            "cuStreamCreate": device.create_stream,
            "cuEventCreate": device.create_event,
            "cuEventRecord": lambda: device.record(event, stream),
            "cuEventSynchronize": lambda: device.wait(event),
            "cuStreamSynchronize": lambda: device.synchronize(stream),
        }
        for function, call in calls.items():
            with driver.fails(function, ILLEGAL_ADDRESS):
                with pytest.raises(DeviceError, match=r"CUDA reports \w+ failed") as caught:
                    call()
                assert not isinstance(caught.value, DeviceMemoryError)
        device.destroy_event(event)
        device.free(address)
        device.free_host(host)
        device.destroy_stream(stream)
    push = driver.fails("cuCtxPushCurrent", ILLEGAL_ADDRESS)
    with push, pytest.raises(DeviceError), device.current():
        pass


@pytest.mark.parametrize("function", ["cuDevicePrimaryCtxRetain", "cuDeviceGetAttribute"])
def test_a_device_that_fails_to_open(make: Make, driver: FakeDriver, function: str) -> None:
    with driver.fails(function, ILLEGAL_ADDRESS), pytest.raises(DeviceError):
        make()
    assert driver.live_handles() == 0


# Graphs


def test_no_graphs(device: Device) -> None:
    ran: list[int] = []
    with device.current():
        stream = device.create_stream()
        with pytest.raises(DeviceError, match="PyCUDA has no CUDA graphs"):
            device.capture(lambda: ran.append(1), stream)
        assert not ran
        finished(device, stream)  # not left in capture mode
        device.destroy_stream(stream)


# The session


def test_a_session_runs_on_it_without_graphs(
    make: Make,
    gpu: FakeGpu,
    tiny_engines: Package,
    examples: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rare_trt.sessions.engine_host.open_device", make)
    scan = read_scan(examples / "hippocampus_1mm.nii.gz")
    with Segmenter(tiny_engines, "openvino") as known:
        expected = known.segment(scan).labels
    no_graph = pytest.warns(UserWarning, match="no CUDA graph could be made .PyCUDA has no")
    with Segmenter(tiny_engines, "tensorrt") as segmenter, no_graph:
        answers = [segmenter.segment(scan) for _ in range(3)]
    assert expected.any()
    for answer in answers:
        assert answer.backend == "tensorrt"
        assert np.array_equal(answer.labels, expected)
    assert gpu.live() == (0, 0, 0)
