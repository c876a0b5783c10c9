"""The fake CUDA driver is as strict as a real one, seen through cuda-python."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from fake_cuda import FakeDriver, build, why_unusable

Bytes = npt.NDArray[np.uint8]

_why = why_unusable()
if _why is not None:
    pytest.skip(_why, allow_module_level=True)
cuda: Any = pytest.importorskip("cuda.bindings.driver")
CODE: Any = cuda.CUresult
THREAD_LOCAL = cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
GLOBAL = cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
NON_BLOCKING = 1
SIZE = 1024


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> FakeDriver:
    library = build(tmp_path_factory.mktemp("fake_cuda"))
    assert library is not None
    return FakeDriver(library)


@pytest.fixture
def bare(loaded: FakeDriver) -> Iterator[FakeDriver]:
    """The driver as it is before cuInit."""
    loaded.reset()
    yield loaded
    loaded.reset()
    loaded.set_devices(0)  # other tests expect a machine without a GPU


@pytest.fixture
def driver(bare: FakeDriver) -> FakeDriver:
    """The driver with the primary context of device 0 current."""
    ok(cuda.cuInit(0))
    ok(cuda.cuCtxSetCurrent(ok(cuda.cuDevicePrimaryCtxRetain(0))))
    return bare


@pytest.fixture
def stream(driver: FakeDriver) -> Any:
    return ok(cuda.cuStreamCreate(NON_BLOCKING))


def ok(returned: tuple[Any, ...]) -> Any:
    """What a call returned beside its code, which must be success."""
    assert returned[0] == CODE.CUDA_SUCCESS
    return returned[1] if len(returned) == 2 else returned[1:]


def error(returned: tuple[Any, ...]) -> str:
    """The name of the code that a call returned, without CUDA_ERROR_."""
    return str(returned[0].name).removeprefix("CUDA_ERROR_")


def device(size: int = SIZE) -> int:
    return int(ok(cuda.cuMemAlloc(size)))


def host(address: int, size: int = SIZE) -> Bytes:
    """Memory at an address: also that of a device, as the fake's is host memory."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def pinned(value: int = 0, flags: int = 0) -> Bytes:
    memory = host(int(ok(cuda.cuMemHostAlloc(SIZE, flags))))
    memory[:] = value
    return memory


def at(array: Bytes) -> int:
    return int(array.ctypes.data)


def on_other_thread(function: Callable[[], Any]) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


# Start and devices


def test_driver_is_loaded_once(bare: FakeDriver, tmp_path: Path) -> None:
    other = build(tmp_path)
    assert other is not None
    again = FakeDriver(other)
    bare.set_devices(2)
    ok(cuda.cuInit(0))
    assert ok(cuda.cuDeviceGetCount()) == 2
    assert again.calls("cuInit") == 1
    again.reset()
    assert bare.calls("cuInit") == 0


def test_cuda_python_finds_the_fake(driver: FakeDriver) -> None:
    assert driver.calls("cuInit") == 1
    ok(cuda.cuInit(0))
    assert driver.calls("cuInit") == 2


def test_nothing_works_before_the_start(bare: FakeDriver) -> None:
    assert error(cuda.cuDeviceGetCount()) == "NOT_INITIALIZED"
    assert error(cuda.cuMemAlloc(1)) == "NOT_INITIALIZED"
    assert error(cuda.cuCtxGetCurrent()) == "NOT_INITIALIZED"


def test_no_device(bare: FakeDriver) -> None:
    bare.set_devices(0)
    assert error(cuda.cuInit(0)) == "NO_DEVICE"
    assert error(cuda.cuDeviceGetCount()) == "NOT_INITIALIZED"


def test_device_is_as_set(bare: FakeDriver) -> None:
    bare.set_devices(2)
    bare.set_device("Orin", (8, 7), integrated=True, total_bytes=1 << 20)
    ok(cuda.cuInit(0))
    assert ok(cuda.cuDeviceGetCount()) == 2
    assert error(cuda.cuDeviceGet(2)) == "INVALID_DEVICE"
    gpu = ok(cuda.cuDeviceGet(1))
    assert ok(cuda.cuDeviceGetName(64, gpu)).startswith(b"Orin\0")
    assert ok(cuda.cuDeviceTotalMem(gpu)) == 1 << 20
    assert ok(cuda.cuDeviceGetUuid(gpu)).bytes != ok(cuda.cuDeviceGetUuid(0)).bytes
    attribute = cuda.CUdevice_attribute
    expected = {
        attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: 8,
        attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: 7,
        attribute.CU_DEVICE_ATTRIBUTE_INTEGRATED: 1,
        attribute.CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY: 1,
        attribute.CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING: 1,
    }
    assert {a: ok(cuda.cuDeviceGetAttribute(a, gpu)) for a in expected} == expected


def test_errors_have_names(driver: FakeDriver) -> None:
    assert ok(cuda.cuGetErrorName(CODE.CUDA_ERROR_OUT_OF_MEMORY)) == b"CUDA_ERROR_OUT_OF_MEMORY"
    assert ok(cuda.cuGetErrorString(CODE.CUDA_SUCCESS)) == b"CUDA_SUCCESS"


# Contexts


def test_context_is_per_thread(driver: FakeDriver) -> None:
    context = ok(cuda.cuCtxGetCurrent())
    assert error(on_other_thread(lambda: cuda.cuMemAlloc(1))) == "INVALID_CONTEXT"
    assert error(on_other_thread(lambda: cuda.cuStreamCreate(0))) == "INVALID_CONTEXT"

    def elsewhere() -> Any:
        ok(cuda.cuCtxPushCurrent(context))
        pointer = device()
        ok(cuda.cuMemFree(pointer))
        ok(cuda.cuCtxPopCurrent())
        return cuda.cuCtxGetDevice()

    assert error(on_other_thread(elsewhere)) == "INVALID_CONTEXT"
    assert int(ok(cuda.cuCtxGetDevice())) == 0


def test_last_release_ends_the_context_and_leaves_leaks_to_see(driver: FakeDriver) -> None:
    stream, pointer = ok(cuda.cuStreamCreate(0)), device()
    ok(cuda.cuDevicePrimaryCtxRelease(0))
    assert error(cuda.cuMemAlloc(1)) == "CONTEXT_IS_DESTROYED"
    assert error(cuda.cuDevicePrimaryCtxRelease(0)) == "INVALID_CONTEXT"
    ok(cuda.cuCtxSetCurrent(ok(cuda.cuDevicePrimaryCtxRetain(0))))
    assert error(cuda.cuStreamSynchronize(stream)) == "INVALID_HANDLE"
    assert error(cuda.cuMemFree(pointer)) == "INVALID_VALUE"
    assert (driver.live_device_bytes(), driver.live_handles()) == (SIZE, 2)


# Memory


def test_memory_is_filled_and_counted(driver: FakeDriver) -> None:
    pointer, other = device(), pinned()
    assert (host(pointer) == 0xCD).all()
    assert (driver.live_device_bytes(), driver.live_host_bytes()) == (SIZE, SIZE)
    assert (driver.room(pointer + 24), driver.room(at(other))) == (SIZE - 24, 0)
    ok(cuda.cuMemFree(pointer))
    ok(cuda.cuMemFreeHost(at(other)))
    assert (host(pointer) == 0xDD).all()
    assert (driver.live_device_bytes(), driver.live_host_bytes()) == (0, 0)
    assert (driver.peak_device_bytes(), driver.room(pointer)) == (SIZE, 0)


def test_freed_memory_is_refused(driver: FakeDriver, stream: Any) -> None:
    pointer, data = device(), np.zeros(SIZE, np.uint8)
    assert error(cuda.cuMemFree(pointer + 1)) == "INVALID_VALUE"
    assert error(cuda.cuMemFreeHost(pointer)) == "INVALID_VALUE"
    ok(cuda.cuMemFree(pointer))
    assert error(cuda.cuMemFree(pointer)) == "INVALID_VALUE"
    assert error(cuda.cuMemcpyHtoD(pointer, at(data), 1)) == "INVALID_VALUE"
    assert error(cuda.cuMemcpyDtoHAsync(at(data), pointer, 1, stream)) == "INVALID_VALUE"
    assert error(cuda.cuMemsetD8Async(pointer, 0, 1, stream)) == "INVALID_VALUE"


def test_out_of_memory(driver: FakeDriver) -> None:
    driver.set_device(total_bytes=SIZE)
    pointer = device(SIZE - 1)
    assert ok(cuda.cuMemGetInfo()) == (1, SIZE)
    assert error(cuda.cuMemAlloc(2)) == "OUT_OF_MEMORY"
    assert error(cuda.cuMemAlloc((1 << 64) - 1)) == "OUT_OF_MEMORY"
    assert error(cuda.cuMemAlloc(0)) == "INVALID_VALUE"
    device(1)
    ok(cuda.cuMemFree(pointer))
    device(SIZE - 1)


def test_mapped_memory_is_seen_from_the_device(driver: FakeDriver, stream: Any) -> None:
    plain, mapped = pinned(), pinned(3, flags=cuda.CU_MEMHOSTALLOC_DEVICEMAP)
    assert error(cuda.cuMemHostGetDevicePointer(at(plain), 0)) == "INVALID_VALUE"
    pointer = ok(cuda.cuMemHostGetDevicePointer(at(mapped), 0))
    assert driver.room(int(pointer)) == SIZE
    target = device()
    ok(cuda.cuMemcpyDtoDAsync(target, pointer, SIZE, stream))
    ok(cuda.cuStreamSynchronize(stream))
    assert (host(target) == 3).all()


def test_copies_keep_to_their_block_and_direction(driver: FakeDriver, stream: Any) -> None:
    one, two, memory = device(), device(), pinned()
    for refused in (
        cuda.cuMemcpyHtoDAsync(one + 1, at(memory), SIZE, stream),
        cuda.cuMemcpyHtoDAsync(one, at(memory) + 1, SIZE, stream),
        cuda.cuMemcpyDtoHAsync(at(memory), one + 1, SIZE, stream),
        cuda.cuMemcpyDtoDAsync(one, two + 1, SIZE, stream),
        cuda.cuMemcpyAsync(one, two, SIZE + 1, stream),
        cuda.cuMemsetD8Async(one, 0, SIZE + 1, stream),
        cuda.cuMemcpyHtoD(one, two, SIZE),
        cuda.cuMemcpyDtoH(one, two, SIZE),
        cuda.cuMemcpyHtoDAsync(at(memory), one, SIZE, stream),
        cuda.cuMemcpyDtoDAsync(one, at(memory), SIZE, stream),
        cuda.cuMemcpyHtoD(one, 0, SIZE),
    ):
        assert error(refused) == "INVALID_VALUE"
    assert driver.pending() == 0
    memory[:] = 9
    ok(cuda.cuMemcpyAsync(one, at(memory), SIZE, stream))
    ok(cuda.cuMemcpyAsync(two, one, SIZE, stream))
    ok(cuda.cuMemsetD8Async(one, 4, SIZE, stream))
    ok(cuda.cuStreamSynchronize(stream))
    assert ((host(one) == 4) & (host(two) == 9)).all()


def test_unknown_handles(driver: FakeDriver, stream: Any) -> None:
    event = ok(cuda.cuEventCreate(0))
    ok(cuda.cuStreamDestroy(stream))
    ok(cuda.cuEventDestroy(event))
    for refused in (
        cuda.cuStreamSynchronize(stream),
        cuda.cuStreamSynchronize(0),
        cuda.cuStreamDestroy(stream),
        cuda.cuStreamDestroy(event),
        cuda.cuEventDestroy(event),
        cuda.cuEventSynchronize(event),
        cuda.cuGraphLaunch(12345, stream),
        cuda.cuGraphDestroy(12345),
        cuda.cuMemsetD8Async(device(), 0, 1, 12345),
    ):
        assert error(refused) == "INVALID_HANDLE"


# Work is queued


def test_missing_synchronisation_shows_as_stale_data(driver: FakeDriver, stream: Any) -> None:
    pointer, source, target = device(), pinned(5), pinned(1)
    ok(cuda.cuMemcpyHtoDAsync(pointer, at(source), SIZE, stream))
    ok(cuda.cuMemcpyDtoHAsync(at(target), pointer, SIZE, stream))
    assert (target == 1).all()
    assert driver.pending() == 2
    source[:] = 6  # too early: the copy has not been made
    ok(cuda.cuStreamSynchronize(stream))
    assert (target == 6).all()
    assert driver.pending() == 0


@pytest.mark.parametrize(
    "wait",
    [
        lambda pointer, stream, event: cuda.cuCtxSynchronize(),
        lambda pointer, stream, event: cuda.cuStreamSynchronize(stream),
        lambda pointer, stream, event: cuda.cuEventSynchronize(event),
        lambda pointer, stream, event: cuda.cuMemFree(pointer),
    ],
    ids=["context", "stream", "event", "free"],
)
def test_waiting_runs_what_is_queued(
    driver: FakeDriver, stream: Any, wait: Callable[[int, Any, Any], Any]
) -> None:
    event, done = ok(cuda.cuEventCreate(0)), list[int]()
    assert driver.launch(stream, lambda: done.append(1)) == 0
    ok(cuda.cuEventRecord(event, stream))
    assert error(cuda.cuEventQuery(event)) == "NOT_READY"
    assert driver.launch(stream, lambda: done.append(2)) == 0
    ok(wait(device(), stream, event))
    assert done[0] == 1
    assert error(cuda.cuEventQuery(event)) == "CUDA_SUCCESS"


def test_synchronous_copy_waits_for_blocking_streams_only(driver: FakeDriver, stream: Any) -> None:
    pointer, seen, blocking = device(), np.zeros(SIZE, np.uint8), ok(cuda.cuStreamCreate(0))
    ok(cuda.cuMemsetD8Async(pointer, 1, SIZE, stream))
    ok(cuda.cuMemcpyDtoH(at(seen), pointer, SIZE))
    assert (seen == 0xCD).all()
    ok(cuda.cuMemsetD8Async(pointer, 2, SIZE, blocking))
    ok(cuda.cuMemcpyDtoH(at(seen), pointer, SIZE))
    assert (seen == 2).all()


def test_asking_again_and_again_comes_to_an_end(driver: FakeDriver, stream: Any) -> None:
    done: list[int] = []
    for i in range(2):
        # mypy infers no type for a default that binds the loop's variable.
        driver.launch(stream, lambda i=i: done.append(i))  # type: ignore[misc]
    answers = [error(cuda.cuStreamQuery(stream)) for _ in range(3)]
    assert answers == ["NOT_READY", "NOT_READY", "CUDA_SUCCESS"]
    assert done == [0, 1]


def test_ordinary_host_memory_is_not_touched_later(driver: FakeDriver, stream: Any) -> None:
    pointer, source, target = device(), np.full(SIZE, 5, np.uint8), np.zeros(SIZE, np.uint8)
    ok(cuda.cuMemcpyHtoDAsync(pointer, at(source), SIZE, stream))
    source[:] = 6
    assert driver.pending() == 1
    ok(cuda.cuMemcpyDtoHAsync(at(target), pointer, SIZE, stream))
    assert driver.pending() == 0
    assert (target == 5).all()


def test_event_orders_two_streams(driver: FakeDriver, stream: Any) -> None:
    other, event, order = ok(cuda.cuStreamCreate(0)), ok(cuda.cuEventCreate(0)), list[str]()
    driver.launch(stream, lambda: order.append("before"))
    ok(cuda.cuEventRecord(event, stream))
    driver.launch(stream, lambda: order.append("unrelated"))
    ok(cuda.cuStreamWaitEvent(other, event, 0))
    driver.launch(other, lambda: order.append("after"))
    ok(cuda.cuEventDestroy(event))
    ok(cuda.cuStreamSynchronize(other))
    assert order == ["before", "after"]
    assert driver.pending() == 1


def test_elapsed_time(driver: FakeDriver, stream: Any) -> None:
    start, end = ok(cuda.cuEventCreate(0)), ok(cuda.cuEventCreate(0))
    assert error(cuda.cuEventElapsedTime(start, end)) == "INVALID_HANDLE"
    ok(cuda.cuEventRecord(start, stream))
    ok(cuda.cuEventRecord(end, stream))
    assert error(cuda.cuEventElapsedTime(start, end)) == "NOT_READY"
    ok(cuda.cuEventSynchronize(end))
    assert ok(cuda.cuEventElapsedTime(start, end)) > 0


def test_destroyed_stream_keeps_its_work(driver: FakeDriver, stream: Any) -> None:
    pointer = device()
    ok(cuda.cuMemsetD8Async(pointer, 1, SIZE, stream))
    ok(cuda.cuStreamDestroy(stream))
    assert (host(pointer) == 0xCD).all()
    ok(cuda.cuCtxSynchronize())
    assert (host(pointer) == 1).all()


def test_host_function_may_not_call_the_driver(driver: FakeDriver, stream: Any) -> None:
    answers: list[str] = []
    driver.launch(stream, lambda: answers.append(error(cuda.cuMemAlloc(1))))
    ok(cuda.cuStreamSynchronize(stream))
    assert answers == ["NOT_PERMITTED"]


def test_other_threads_go_on_while_a_host_function_runs(driver: FakeDriver, stream: Any) -> None:
    context, entered, leave = ok(cuda.cuCtxGetCurrent()), threading.Event(), threading.Event()
    done: list[str] = []

    def slow() -> None:
        entered.set()
        assert leave.wait(10)
        done.append("slow")

    def wait() -> None:
        ok(cuda.cuCtxSetCurrent(context))
        # Not with cuda-python: early versions of 12 keep the interpreter lock while they wait.
        code = ctypes.CDLL("libcuda.so.1").cuStreamSynchronize(ctypes.c_void_p(int(stream)))
        done.append("waited" if code == 0 else "failed")

    driver.launch(stream, slow)
    driver.launch(stream, lambda: done.append("next"))
    threads = [threading.Thread(target=wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert entered.wait(10)
    ok(cuda.cuMemGetInfo())
    leave.set()
    for thread in threads:
        thread.join()
    assert done == ["slow", "next"] + ["waited"] * 4


# Capture and graphs


def captured(stream: Any, work: Callable[[], None]) -> Any:
    """An executable graph of what `work` puts on the stream."""
    ok(cuda.cuStreamBeginCapture(stream, THREAD_LOCAL))
    work()
    graph = ok(cuda.cuStreamEndCapture(stream))
    executable = ok(cuda.cuGraphInstantiate(graph, 0))
    ok(cuda.cuGraphDestroy(graph))
    return executable


def test_graph_replays_with_what_the_host_holds_then(driver: FakeDriver, stream: Any) -> None:
    pointer, source, target = device(), pinned(1), pinned(0)

    def double() -> None:
        host(pointer)[:] *= 2

    def work() -> None:
        ok(cuda.cuMemcpyHtoDAsync(pointer, at(source), SIZE, stream))
        assert driver.launch(stream, double) == 0
        ok(cuda.cuMemcpyDtoHAsync(at(target), pointer, SIZE, stream))

    executable = captured(stream, work)
    ok(cuda.cuStreamSynchronize(stream))
    assert (host(pointer) == 0xCD).all()  # capturing does not run
    for value in (1, 7, 40):
        source[:] = value
        ok(cuda.cuGraphUpload(executable, stream))
        ok(cuda.cuGraphLaunch(executable, stream))
        assert driver.pending() == 3
        ok(cuda.cuStreamSynchronize(stream))
        assert (target == 2 * value).all()
    ok(cuda.cuGraphExecDestroy(executable))
    assert error(cuda.cuGraphLaunch(executable, stream)) == "INVALID_HANDLE"


def test_graph_has_a_node_for_each_operation(driver: FakeDriver, stream: Any) -> None:
    pointer, event = device(), ok(cuda.cuEventCreate(0))
    status = cuda.CUstreamCaptureStatus
    ok(cuda.cuStreamBeginCapture(stream, THREAD_LOCAL))
    assert ok(cuda.cuStreamIsCapturing(stream)) == status.CU_STREAM_CAPTURE_STATUS_ACTIVE
    ok(cuda.cuMemsetD8Async(pointer, 1, SIZE, stream))
    ok(cuda.cuEventRecord(event, stream))
    ok(cuda.cuStreamWaitEvent(stream, event, 0))
    driver.launch(stream, lambda: None)
    graph = ok(cuda.cuStreamEndCapture(stream))
    assert ok(cuda.cuStreamIsCapturing(stream)) == status.CU_STREAM_CAPTURE_STATUS_NONE
    assert ok(cuda.cuGraphGetNodes(graph))[1] == 2
    nodes, count = ok(cuda.cuGraphGetNodes(graph, 2))
    assert count == len({int(node) for node in nodes}) == 2
    assert error(cuda.cuEventSynchronize(event)) == "CAPTURED_EVENT"


def test_only_pinned_memory_can_be_captured(driver: FakeDriver, stream: Any) -> None:
    pointer, ordinary = device(), np.zeros(SIZE, np.uint8)
    ok(cuda.cuStreamBeginCapture(stream, THREAD_LOCAL))
    refused = cuda.cuMemcpyHtoDAsync(pointer, at(ordinary), SIZE, stream)
    assert error(refused) == "INVALID_VALUE"
    refused = cuda.cuMemcpyDtoHAsync(at(ordinary), pointer, SIZE, stream)
    assert error(refused) == "INVALID_VALUE"
    ok(cuda.cuGraphDestroy(ok(cuda.cuStreamEndCapture(stream))))


@pytest.mark.parametrize(
    "call",
    [
        lambda pointer, memory, stream, event: cuda.cuStreamSynchronize(stream),
        lambda pointer, memory, stream, event: cuda.cuStreamQuery(stream),
        lambda pointer, memory, stream, event: cuda.cuCtxSynchronize(),
        lambda pointer, memory, stream, event: cuda.cuEventSynchronize(event),
        lambda pointer, memory, stream, event: cuda.cuMemAlloc(1),
        lambda pointer, memory, stream, event: cuda.cuMemFree(pointer),
        lambda pointer, memory, stream, event: cuda.cuMemHostAlloc(1, 0),
        lambda pointer, memory, stream, event: cuda.cuMemFreeHost(memory),
        lambda pointer, memory, stream, event: cuda.cuMemcpyHtoD(pointer, memory, 1),
        lambda pointer, memory, stream, event: cuda.cuMemcpyDtoH(memory, pointer, 1),
    ],
)
def test_illegal_call_ends_the_capture(
    driver: FakeDriver, stream: Any, call: Callable[[int, int, Any, Any], Any]
) -> None:
    pointer, memory, event = device(), at(pinned()), ok(cuda.cuEventCreate(0))
    ok(cuda.cuStreamBeginCapture(stream, THREAD_LOCAL))
    ok(cuda.cuMemsetD8Async(pointer, 1, SIZE, stream))
    assert error(call(pointer, memory, stream, event)) == "STREAM_CAPTURE_UNSUPPORTED"
    late = cuda.cuMemsetD8Async(pointer, 1, SIZE, stream)
    assert error(late) == "STREAM_CAPTURE_INVALIDATED"
    ended = cuda.cuStreamEndCapture(stream)
    assert error(ended) == "STREAM_CAPTURE_INVALIDATED"
    assert not ended[1] or int(ended[1]) == 0
    handles = driver.live_handles()
    ok(call(pointer, memory, stream, event))  # and now it is legal
    assert driver.live_handles() == handles


def test_capture_waits_for_nothing_outside(driver: FakeDriver, stream: Any) -> None:
    other, event = ok(cuda.cuStreamCreate(0)), ok(cuda.cuEventCreate(0))
    ok(cuda.cuEventRecord(event, other))
    ok(cuda.cuStreamBeginCapture(stream, THREAD_LOCAL))
    assert error(cuda.cuStreamWaitEvent(stream, event, 0)) == "STREAM_CAPTURE_ISOLATION"
    assert error(cuda.cuStreamEndCapture(stream)) == "STREAM_CAPTURE_INVALIDATED"


@pytest.mark.parametrize(
    ("mode", "expected"),
    [(THREAD_LOCAL, "CUDA_SUCCESS"), (GLOBAL, "STREAM_CAPTURE_UNSUPPORTED")],
)
def test_capture_binds_other_threads_in_global_mode_only(
    driver: FakeDriver, stream: Any, mode: Any, expected: str
) -> None:
    context = ok(cuda.cuCtxGetCurrent())
    ok(cuda.cuStreamBeginCapture(stream, mode))

    def elsewhere() -> tuple[str, str]:
        ok(cuda.cuCtxSetCurrent(context))
        return error(cuda.cuMemAlloc(1)), error(cuda.cuStreamEndCapture(stream))

    assert on_other_thread(elsewhere) == (expected, "STREAM_CAPTURE_WRONG_THREAD")


def test_capture_out_of_place(driver: FakeDriver, stream: Any) -> None:
    assert error(cuda.cuStreamEndCapture(stream)) == "ILLEGAL_STATE"
    ok(cuda.cuStreamBeginCapture(stream, THREAD_LOCAL))
    assert error(cuda.cuStreamBeginCapture(stream, THREAD_LOCAL)) == "ILLEGAL_STATE"


def test_replay_over_freed_memory_breaks_the_device(driver: FakeDriver, stream: Any) -> None:
    pointer = device()
    executable = captured(stream, lambda: ok(cuda.cuMemsetD8Async(pointer, 1, SIZE, stream)))
    ok(cuda.cuMemFree(pointer))
    ok(cuda.cuGraphLaunch(executable, stream))
    assert error(cuda.cuStreamSynchronize(stream)) == "ILLEGAL_ADDRESS"
    assert error(cuda.cuMemAlloc(1)) == "ILLEGAL_ADDRESS"


# The test API


def test_injected_failure_comes_once(driver: FakeDriver) -> None:
    with driver.fails("cuMemAlloc", CODE.CUDA_ERROR_OUT_OF_MEMORY, after=1):
        device()
        assert error(cuda.cuMemAlloc(1)) == "OUT_OF_MEMORY"
        device()
    assert driver.calls("cuMemAlloc") == 3
    assert driver.live_device_bytes() == 2 * SIZE


def test_failure_that_never_comes_is_an_error(driver: FakeDriver) -> None:
    fails = driver.fails("cuMemAlloc", 2, after=1)
    with pytest.raises(AssertionError, match="cuMemAlloc was not called"), fails:
        device()
    device()
    with pytest.raises(ValueError, match="cuNothing"):
        driver.calls("cuNothing")


def test_reset_counts_what_is_left(driver: FakeDriver, stream: Any) -> None:
    pinned()
    ok(cuda.cuMemsetD8Async(device(), 1, SIZE, stream))
    assert driver.live_handles() == 2  # the stream and the context
    assert driver.reset() == 5
    assert error(cuda.cuDeviceGetCount()) == "NOT_INITIALIZED"
    assert (driver.live_handles(), driver.pending(), driver.live_host_bytes()) == (0, 0, 0)
    assert driver.reset() == 0


def test_everything_given_back_leaves_nothing(driver: FakeDriver, stream: Any) -> None:
    pointer, event = device(), ok(cuda.cuEventCreate(0))
    executable = captured(stream, lambda: ok(cuda.cuMemsetD8Async(pointer, 1, SIZE, stream)))
    ok(cuda.cuGraphLaunch(executable, stream))
    ok(cuda.cuStreamSynchronize(stream))
    ok(cuda.cuGraphExecDestroy(executable))
    ok(cuda.cuEventDestroy(event))
    ok(cuda.cuMemFree(pointer))
    ok(cuda.cuStreamDestroy(stream))
    ok(cuda.cuDevicePrimaryCtxRelease(0))
    ok(cuda.cuCtxSetCurrent(0))
    assert driver.reset() == 0
