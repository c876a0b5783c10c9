"""The TensorRT session, whole, over a fake driver and a fake TensorRT that compute real labels.

The fakes refuse what the real ones refuse. What TensorRT leaves undefined they note, and the `gpu`
fixture then fails the test; so does whatever is left on the GPU at its end.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FakeGpu, fake_gpu
from fake_cuda import FakeDriver
from numpy.typing import NDArray

from rare_trt import Scan, Segmenter, read_scan
from rare_trt.cli import main
from rare_trt.engines.engines_from_package import build_engines
from rare_trt.errors import BackendError, EngineWarning, PackageError, ShapeError
from rare_trt.package.manifest import BuilderOptions
from rare_trt.package.reading import Package, open_package
from rare_trt.package.writing import write_package
from rare_trt.scan.geometry import Volume
from rare_trt.sessions.bucket import Bucket
from rare_trt.sessions.candidates import SessionCandidates
from rare_trt.sessions.engine_host import EngineHost
from rare_trt.sessions.engine_session import EngineSession
from rare_trt.sessions.golden import read_golden_vectors
from rare_trt.sessions.machine import this_machine
from rare_trt.sessions.session import Inputs
from rare_trt.storage.cache import Cache

OUT_OF_MEMORY, ILLEGAL_ADDRESS, LAUNCH_FAILED = 2, 700, 719

Labels = NDArray[np.uint8]


def segmenter(package: Package, **options: Any) -> Segmenter:
    return Segmenter(package, "tensorrt", **options)


@pytest.fixture(scope="module")
def scan(examples: Path) -> Scan:
    return read_scan(examples / "hippocampus_1mm.nii.gz")


def cropped(scan: Scan, *sizes: int) -> Scan:
    """The first voxels of `scan` along each axis: another shape, another bucket."""
    i, j, k = sizes
    volume = scan.volume
    grid = replace(volume.grid, shape=(i, j, k))
    return replace(scan, volume=Volume(volume.voxels[:i, :j, :k].copy(), grid))


@pytest.fixture(scope="module")
def expected(tiny_engines: Package, scan: Scan) -> Labels:
    """The answer of route 1 of the small package on OpenVINO."""
    with Segmenter(tiny_engines, "openvino") as known:
        labels = known.segment(scan, route=1).labels
    assert labels.any()
    return labels


@pytest.fixture
def proven(gpu: FakeGpu, tiny_engines: Package) -> Iterator[Segmenter]:
    """A segmenter whose golden vectors were run before: what follows is the test's own."""
    with segmenter(tiny_engines, preload=True) as ready:
        yield ready


@pytest.fixture
def remembered(gpu: FakeGpu, tiny_engines: Package) -> None:
    """The golden vectors were run by an earlier segmenter: memory is that of the test's scans."""
    with segmenter(tiny_engines, preload=True):
        pass


# Answers


@pytest.mark.parametrize("route", range(4))
def test_every_route_of_the_shipped_package_answers_as_openvino_does(
    gpu: FakeGpu, shipped_engines: Package, scan: Scan, route: int
) -> None:
    # The fp16 graph on both sides: a CPU would run what calibration found to be faster.
    plain = replace(shipped_engines, manifest=replace(shipped_engines.manifest, calibration=()))
    with Segmenter(plain, "openvino") as known:
        labels = known.segment(scan, route=route).labels
    with segmenter(shipped_engines) as on_gpu:
        found = on_gpu.segment(scan, route=route)
    assert (found.backend, found.precision) == ("tensorrt", "fp16")
    assert labels.any()
    assert np.array_equal(found.labels, labels)
    assert gpu.live() == (0, 0, 0)


def test_auto_prefers_the_engine_and_openvino_can_be_asked_for(
    gpu: FakeGpu, tiny_engines: Package, scan: Scan
) -> None:
    with Segmenter(tiny_engines) as best, Segmenter(tiny_engines, "openvino") as asked:
        assert best.segment(scan).backend == "tensorrt"
        assert asked.segment(scan).backend == "openvino"


def test_a_grid_other_than_the_images_is_answered(
    proven: Segmenter, tiny_engines: Package, scan: Scan
) -> None:
    with Segmenter(tiny_engines, "openvino") as known:
        labels = known.segment(scan, spacing_out_mm=0.5).labels
    assert np.array_equal(proven.segment(scan, spacing_out_mm=0.5).labels, labels)
    assert labels.shape != scan.volume.grid.shape


def test_larger_volumes_are_tiled(
    gpu: FakeGpu, fake_driver: FakeDriver, tiny_package_folder: Path, scan: Scan, tmp_path: Path
) -> None:
    package = open_package(tiny_package_folder)
    manifest = package.manifest
    routes = tuple(
        replace(route, profile=replace(route.profile, max=route.profile.typical))
        for route in manifest.routes
    )
    loose = tuple(replace(golden, max_disagreement={"fp32": 0.1}) for golden in manifest.golden)
    contents = {name: package.read(name) for name in manifest.files}
    # Without the network's filters OpenVINO cannot reckon its memory, and takes the same tiles.
    network = {name: value for name, value in manifest.model.network.items() if name != "filters"}
    model = replace(manifest.model, network=network)
    small = replace(manifest, model=model, routes=routes, golden=loose)
    cut = write_package(tmp_path / "cut.rare", small, contents, overwrite=False)
    built, _ = build_engines(
        cut, "tensorrt", "fp32", BuilderOptions(), this_machine(), out=tmp_path / "built.rare"
    )
    wide = cropped_to_double(scan)
    with Segmenter(built, "openvino") as known, segmenter(built) as on_gpu:
        labels = known.segment(wide, route=0).labels
        before = gpu.trt.computed
        found = on_gpu.segment(wide, route=0).labels
        assert gpu.trt.computed - before > 1
    assert np.array_equal(found, labels)
    assert labels.any()


def cropped_to_double(scan: Scan) -> Scan:
    """`scan` beside its mirror image, inside the field of view but not inside one tile."""
    volume = scan.volume
    voxels = np.concatenate([volume.voxels, volume.voxels[::-1]])[:56]
    grid = replace(volume.grid, shape=(56, *volume.grid.shape[1:]))
    return replace(scan, volume=Volume(voxels, grid))


# Buckets and graphs


def test_a_repeated_shape_is_a_graph_launch(
    gpu: FakeGpu, proven: Segmenter, scan: Scan, expected: Labels
) -> None:
    calls = gpu.driver.calls
    first = calls("cuStreamBeginCapture_v2"), calls("cuGraphLaunch"), gpu.trt.enqueued
    answers = [proven.segment(scan, route=1).labels for _ in range(4)]
    # Settled by one run, captured once, launched three times.
    assert calls("cuStreamBeginCapture_v2") - first[0] <= 1
    assert calls("cuGraphLaunch") - first[1] >= 3
    assert gpu.trt.enqueued - first[2] <= 2
    assert all(np.array_equal(labels, expected) for labels in answers)


def test_scans_of_one_bucket_share_a_graph_and_new_buckets_get_their_own(
    gpu: FakeGpu, proven: Segmenter, tiny_engines: Package, scan: Scan
) -> None:
    i, j, k = scan.volume.grid.shape
    same = [cropped(scan, i, j, k), cropped(scan, i, j, k - 1)]
    other = cropped(scan, i, j - 16, k)
    with Segmenter(tiny_engines, "openvino") as known:
        for _ in range(3):
            for one in (*same, other):
                labels = proven.segment(one, route=1).labels
                assert np.array_equal(labels, known.segment(one, route=1).labels)
    captured = gpu.driver.calls("cuStreamBeginCapture_v2")
    for one in (*same, other):
        proven.segment(one, route=1)
    assert gpu.driver.calls("cuStreamBeginCapture_v2") == captured


def test_the_proof_goes_through_the_graphs_that_answer_later(
    gpu: FakeGpu, tiny_engines: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RARE_TRT_CACHE", str(tmp_path / "fresh"))
    vectors = sum(len(list(read_golden_vectors(tiny_engines, route))) for route in (0, 1))
    with segmenter(tiny_engines, preload=True):
        # Each vector once plainly, if no other shared its shapes, and at least twice as a graph.
        assert gpu.driver.calls("cuGraphLaunch") >= 2 * vectors


def test_a_graph_that_answers_wrongly_does_not_pass_the_proof(
    gpu: FakeGpu, tiny_engines: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RARE_TRT_CACHE", str(tmp_path / "fresh"))
    gpu.trt.spoil = "replays"
    with pytest.raises(BackendError, match="golden vector"):
        segmenter(tiny_engines, preload=True)
    assert gpu.live() == (0, 0, 0)


def test_of_engines_that_fit_the_dynamic_and_the_newest_answers(
    gpu: FakeGpu, tiny_package_folder: Path, scan: Scan, tmp_path: Path
) -> None:
    package, out = open_package(tiny_package_folder), tmp_path / "several.rare"
    for options in (
        BuilderOptions(static_shapes=True),
        BuilderOptions(optimization_level=0),
        BuilderOptions(optimization_level=5),
        BuilderOptions(tf32=True),
    ):
        built, _ = build_engines(package, "tensorrt", "fp32", options, this_machine(), out=out)
    assert len(built.manifest.engines) == 8
    choice = SessionCandidates(built, "tensorrt", Cache())
    sessions = [candidate.open() for candidate in choice.select(1)]
    orders = [session.entry.options for session in sessions]
    assert [(o.static_shapes, o.tf32, o.optimization_level) for o in orders] == [
        (False, False, 5),
        (False, False, 0),
        (False, True, None),
        (True, False, None),
    ]
    choice.close()


def test_engines_that_do_not_fit_are_named_once_before_openvino_answers(
    gpu: FakeGpu, tiny_engines: Package, scan: Scan
) -> None:
    gpu.driver.set_device("Another GPU", (8, 9))
    with Segmenter(tiny_engines) as best:
        with pytest.warns(EngineWarning, match="built on Fake L4; this is Another GPU"):
            assert best.segment(scan).backend == "openvino"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            best.segment(scan, route=1)


def test_the_cache_of_buckets_is_bounded(
    gpu: FakeGpu, tiny_engines: Package, scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rare_trt.sessions.engine.MAX_BUCKETS", 2)
    i, j, k = scan.volume.grid.shape
    with segmenter(tiny_engines) as on_gpu, Segmenter(tiny_engines, "openvino") as known:
        for _ in range(2):
            for smaller in range(4):
                one = cropped(scan, i, j - 8 * smaller, k)
                for _ in range(2):
                    labels = on_gpu.segment(one, route=1).labels
                    assert np.array_equal(labels, known.segment(one, route=1).labels)
        # One stream, one event, the context, and a graph for each of two buckets.
        assert gpu.live()[2] == 5


def test_a_growing_arena_renews_addresses_and_graphs(
    gpu: FakeGpu, remembered: None, tiny_engines: Package, scan: Scan
) -> None:
    i, j, k = scan.volume.grid.shape
    small = cropped(scan, i, j - 20, k)
    with segmenter(tiny_engines) as on_gpu, Segmenter(tiny_engines, "openvino") as known:
        pairs = [(small, 0), (small, 0), (small, 0), (scan, 0), (small, 0), (small, 1), (small, 0)]
        host = host_of(on_gpu)
        generations = set()
        for one, route in [*pairs, *pairs]:
            labels = on_gpu.segment(one, route=route, spacing_out_mm=0.5).labels
            truth = known.segment(one, route=route, spacing_out_mm=0.5).labels
            assert np.array_equal(labels, truth)
            generations.add(host().arena.generation)
    assert len(generations) > 1


def host_of(ready: Segmenter) -> Callable[[], EngineHost]:
    """What the engines of a segmenter share, once the first of them is there."""

    def found() -> EngineHost:
        host = ready._pool._choice._host
        assert host is not None
        return host

    return found


def test_what_cannot_be_captured_runs_without_a_graph_and_says_so(
    gpu: FakeGpu, tiny_engines: Package, scan: Scan, expected: Labels
) -> None:
    with segmenter(tiny_engines) as on_gpu:
        on_gpu.segment(cropped(scan, 30, 40, 30), route=1)
        gpu.trt.fail("capture", 100)
        launched = gpu.driver.calls("cuGraphLaunch")
        with pytest.warns(UserWarning, match="no CUDA graph could be made"):
            for _ in range(3):
                assert np.array_equal(on_gpu.segment(scan, route=1).labels, expected)
        assert gpu.driver.calls("cuGraphLaunch") == launched


def on_an_orin(driver: FakeDriver, folder: Path, out: Path) -> Package:
    """The small package with engines for an Orin of 16 multiprocessors, which is the GPU now."""
    driver.set_device("Orin", (8, 7), integrated=True, multiprocessors=16)
    built, _ = build_engines(
        open_package(folder), "tensorrt", "fp32", BuilderOptions(), this_machine(), out=out
    )
    return built


def test_a_gpu_that_shares_the_hosts_memory_copies_nothing(
    gpu: FakeGpu, tiny_package_folder: Path, tmp_path: Path, scan: Scan, expected: Labels
) -> None:
    package = on_an_orin(gpu.driver, tiny_package_folder, tmp_path / "orin.rare")
    with segmenter(package) as on_gpu:
        for _ in range(3):
            assert np.array_equal(on_gpu.segment(scan, route=1).labels, expected)
    assert gpu.driver.calls("cuMemcpyHtoDAsync_v2") == 0
    assert gpu.driver.calls("cuMemcpyDtoHAsync_v2") == 0
    assert gpu.driver.calls("cuGraphLaunch") > 0


def test_an_engine_of_one_orin_is_not_taken_for_one_of_another(
    gpu: FakeGpu, tiny_package_folder: Path, tmp_path: Path, scan: Scan
) -> None:
    package = on_an_orin(gpu.driver, tiny_package_folder, tmp_path / "orin.rare")
    gpu.driver.set_device("Orin", (8, 7), integrated=True, multiprocessors=8)
    words = "built on Orin, 16 multiprocessors; this is Orin, 8 multiprocessors: build it here"
    with segmenter(package) as on_gpu, pytest.raises(BackendError, match=words):
        on_gpu.segment(scan, route=1)


# Memory


def test_engines_make_room_for_each_other_within_the_limit(
    gpu: FakeGpu, remembered: None, tiny_engines: Package, scan: Scan, expected: Labels
) -> None:
    sizes = [tiny_engines.manifest.files[e.file].bytes for e in tiny_engines.manifest.engines]
    with segmenter(tiny_engines) as free:
        for route in (0, 1):
            free.segment(scan, route=route)
        arena = host_of(free)().arena.device_bytes
    limit = sum(sizes) + arena - 1
    gpu.driver.reset()
    gpu.driver.set_device("Fake L4", (8, 9))
    with segmenter(tiny_engines, gpu_memory_limit=limit) as tight:
        for route in (1, 0, 1, 0, 1):
            labels = tight.segment(scan, route=route).labels
            assert len(gpu.trt.live_engines) == 1
        assert np.array_equal(labels, expected)
        assert gpu.driver.peak_device_bytes() <= limit


def test_a_limit_that_no_engine_keeps_is_named(
    gpu: FakeGpu, tiny_engines: Package, scan: Scan
) -> None:
    with (
        segmenter(tiny_engines, gpu_memory_limit=1 << 20) as tight,
        pytest.raises(BackendError, match=r"the memory limit is 1 MiB: raise it"),
    ):
        tight.segment(scan, route=0)


def test_the_arena_makes_room_too_where_no_other_engine_can(
    gpu: FakeGpu, tiny_engines: Package, scan: Scan, expected: Labels
) -> None:
    limit = 1 << 30
    with segmenter(tiny_engines, gpu_memory_limit=limit) as on_gpu:
        on_gpu.segment(scan, route=1)
        host = host_of(on_gpu)()
        (used,) = on_gpu._pool._sessions.values()
        assert isinstance(used, EngineSession)
        assert host.arena.device_bytes
        with host.acquire():
            used.unload()
            host.make_room(used, limit)
            assert not host.arena.device_bytes
            with pytest.raises(BackendError, match="the memory limit is 1024 MiB: raise it"):
                host.make_room(used, limit + 1)
        assert np.array_equal(on_gpu.segment(scan, route=1).labels, expected)


def test_an_arena_does_not_grow_beyond_the_limit(
    gpu: FakeGpu, remembered: None, tiny_engines: Package, scan: Scan, expected: Labels
) -> None:
    sizes = []
    with segmenter(tiny_engines) as free:
        for spacing in (None, 0.5):
            free.segment(scan, route=1, spacing_out_mm=spacing)
            sizes.append(host_of(free)().device_bytes)
    small, large = sizes
    assert small < large
    # Without the arena as it is, but for one byte, what it grows by would seem to fit.
    with segmenter(tiny_engines, gpu_memory_limit=large - 1) as on_gpu:
        on_gpu.segment(scan, route=1)
        with pytest.raises(BackendError, match="the memory limit is"):
            on_gpu.segment(scan, route=1, spacing_out_mm=0.5)
        assert host_of(on_gpu)().device_bytes < large
        assert np.array_equal(on_gpu.segment(scan, route=1).labels, expected)


def test_an_engine_in_fp16_does_not_answer_where_fp16_exceeds_the_budget(
    gpu: FakeGpu, shipped_engines: Package, tmp_path: Path
) -> None:
    manifest = shipped_engines.manifest
    first, *others = manifest.calibration
    without = tuple(one for one in first.variants if one.arithmetic != "fp16")
    calibration = (replace(first, variants=without), *others)
    contents = {name: shipped_engines.read(name) for name in manifest.files}
    changed = replace(manifest, calibration=calibration)
    package = write_package(tmp_path / "x.rare", changed, contents, overwrite=False)
    choice = SessionCandidates(package, "tensorrt", Cache())
    assert choice.select(1)
    with pytest.raises(BackendError, match="fp16 exceeds the Dice budget: build it with"):
        choice.select(0)
    built, _ = build_engines(package, "tensorrt", "fp16", BuilderOptions(), this_machine())
    new = [one for one in built.manifest.engines if one not in manifest.engines]
    assert [(one.route, one.precision) for one in new] == [(0, "fp32")]
    assert [one.arithmetic for one in SessionCandidates(built, "tensorrt", Cache()).select(0)] == [
        "fp32"
    ]


def test_a_full_gpu_lets_go_of_the_engine_used_longest_ago(
    gpu: FakeGpu, remembered: None, tiny_engines: Package, scan: Scan, expected: Labels
) -> None:
    with segmenter(tiny_engines, preload=True) as on_gpu:
        assert len(gpu.trt.live_engines) == 2
        on_gpu.segment(scan, route=1)
        fine = Segmenter(tiny_engines, "openvino").segment(scan, route=1, spacing_out_mm=0.5)
        with gpu.driver.fails("cuMemAlloc_v2", OUT_OF_MEMORY):
            found = on_gpu.segment(scan, route=1, spacing_out_mm=0.5)
        assert np.array_equal(found.labels, fine.labels)
        assert len(gpu.trt.live_engines) == 1
        assert np.array_equal(on_gpu.segment(scan, route=1).labels, expected)


def test_memory_grows_no_further_after_the_first_runs(
    gpu: FakeGpu, proven: Segmenter, scan: Scan
) -> None:
    for _ in range(3):
        proven.segment(scan)
    live = gpu.live()
    for _ in range(20):
        proven.segment(scan)
    assert gpu.live() == live


# Faults


FREEING = ("cuMemFree_v2", "cuMemFreeHost", "cuStreamDestroy_v2", "cuEventDestroy_v2")
FREEING += ("cuGraphDestroy", "cuGraphExecDestroy", "cuDevicePrimaryCtxRelease_v2")
FREEING += ("cuCtxPopCurrent_v2",)
USED = ("cuMemAlloc_v2", "cuMemHostAlloc", "cuMemHostGetDevicePointer_v2", "cuStreamCreate")
USED += ("cuEventCreate", "cuEventRecord", "cuEventSynchronize", "cuMemcpyHtoDAsync_v2")
USED += ("cuMemcpyDtoHAsync_v2", "cuMemsetD8Async", "cuStreamBeginCapture_v2", "cuGraphLaunch")
USED += ("cuGraphInstantiateWithFlags", "cuLaunchHostFunc", "cuInit")
USED += ("cuCtxPushCurrent_v2", "cuDevicePrimaryCtxRetain", "cuDeviceGet")


def run_twice(package: Package, scan: Scan) -> list[Labels]:
    """Loads, answers twice (the second time by a graph) and closes."""
    on_gpu = segmenter(package)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "no CUDA graph could be made")
            return [on_gpu.segment(scan, route=1).labels for _ in range(2)]
    finally:
        try:
            on_gpu.close()
        except BackendError:
            # A close that did not get at the GPU is finished by the next one.
            on_gpu.close()
            raise


@pytest.mark.parametrize("function", USED)
def test_no_failing_call_gives_a_wrong_answer_or_leaves_memory(
    gpu: FakeGpu, tiny_engines: Package, scan: Scan, expected: Labels, function: str
) -> None:
    """Each call of each driver function fails once: the answer is right, or there is none."""
    # The first run on a machine proves the engine, too; that is not counted.
    run_twice(tiny_engines, scan)
    before = gpu.driver.calls(function)
    run_twice(tiny_engines, scan)
    count = gpu.driver.calls(function) - before
    assert count > 0
    code = OUT_OF_MEMORY if "Alloc" in function else LAUNCH_FAILED
    raised = 0
    for index in sorted({*range(min(count, 4)), count // 2, count - 1}):
        try:
            with gpu.driver.fails(function, code, after=index):
                answers = run_twice(tiny_engines, scan)
        except BackendError as error:
            raised += 1
            assert str(error).count("\n") == 0
        else:
            assert all(np.array_equal(labels, expected) for labels in answers)
        assert gpu.live() == (0, 0, 0), (function, index)
    # Without a graph the labels are the same; all other failures raise.
    if "Capture" not in function and "Instantiate" not in function:
        assert raised


@pytest.mark.parametrize("function", FREEING)
def test_a_failing_release_is_told_and_the_rest_is_released(
    fake_driver: FakeDriver, tiny_engines: Package, scan: Scan, expected: Labels, function: str
) -> None:
    with fake_gpu(fake_driver) as gpu:
        try:
            with gpu.driver.fails(function, LAUNCH_FAILED):
                answers = run_twice(tiny_engines, scan)
        except BackendError:
            pass
        else:
            assert all(np.array_equal(labels, expected) for labels in answers)
        # What could not be released is one thing; nothing else is left.
        left = gpu.live()
        assert sum(1 for amount in left if amount) <= 1
        assert left[2] <= 1


FAULTS = {
    "deserialize_cuda_engine": "cannot load it",
    "create_execution_context": "made no execution context",
    "set_input_shape": "the engine refused shape",
    "infer_shapes": "cannot infer the shapes of its tensors .+ -1",
    "get_tensor_shape": "the engine gives labels of shape",
    "update_device_memory_size_for_shapes": "does not report the memory it needs",
    "set_tensor_address": "the engine refused an address",
    "execute_async_v3": "could not queue the run",
}


@pytest.mark.parametrize(("method", "words"), FAULTS.items())
def test_every_status_of_tensorrt_is_looked_at(
    gpu: FakeGpu, tiny_engines: Package, scan: Scan, expected: Labels, method: str, words: str
) -> None:
    with segmenter(tiny_engines) as on_gpu:
        gpu.trt.fail(method)
        with pytest.raises(BackendError, match=words) as caught:
            on_gpu.segment(scan, route=1)
        assert str(caught.value).count("\n") == 0
        # The engine is loaded afresh, and is as good as new.
        assert np.array_equal(on_gpu.segment(scan, route=1).labels, expected)
    assert gpu.live() == (0, 0, 0)


@pytest.mark.parametrize("method", FAULTS)
def test_auto_answers_with_openvino_and_says_so(
    gpu: FakeGpu, tiny_engines: Package, scan: Scan, expected: Labels, method: str
) -> None:
    with Segmenter(tiny_engines) as best:
        gpu.trt.fail(method)
        with pytest.warns(EngineWarning, match="tensorrt fp32 is not used for route 1 any more"):
            found = best.segment(scan, route=1)
        assert found.backend == "openvino"
        assert np.array_equal(found.labels, expected)
        # For good on this route, not on others.
        assert best.segment(scan, route=1).backend == "openvino"
        assert best.segment(scan, route=0).backend == "tensorrt"


def test_a_driver_too_old_for_tensorrt_is_told_and_openvino_answers(
    gpu: FakeGpu, tiny_engines: Package, scan: Scan, expected: Labels
) -> None:
    gpu.trt.fail("Runtime", times=2)
    with (
        segmenter(tiny_engines) as on_gpu,
        pytest.raises(BackendError, match=r"cannot use this GPU \(CUDA init.* error: 35\."),
    ):
        on_gpu.segment(scan, route=1)
    with Segmenter(tiny_engines) as best:
        with pytest.warns(EngineWarning, match="cannot use this GPU"):
            found = best.segment(scan, route=1)
        assert found.backend == "openvino"
        assert np.array_equal(found.labels, expected)


def test_openvino_answers_also_where_the_failed_engine_cannot_be_closed(
    gpu: FakeGpu, tiny_engines: Package, scan: Scan, expected: Labels
) -> None:
    with Segmenter(tiny_engines, preload=True) as best:
        gpu.trt.fail("execute_async_v3")
        # The first context is that of the run, the second that of closing the session.
        with (
            gpu.driver.fails("cuCtxPushCurrent_v2", LAUNCH_FAILED, after=1),
            pytest.warns(EngineWarning, match="could not queue the run"),
        ):
            found = best.segment(scan, route=1)
        assert found.backend == "openvino"
        assert np.array_equal(found.labels, expected)


def test_an_interrupted_run_leaves_no_work_behind(
    gpu: FakeGpu,
    proven: Segmenter,
    scan: Scan,
    expected: Labels,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its memory and graphs may not be used again while the GPU still works on them."""
    settled: list[EngineHost] = []
    synchronize, run = EngineHost.synchronize, Bucket.run

    def interrupted(bucket: Any, *arguments: Any) -> Any:
        run(bucket, *arguments)
        raise KeyboardInterrupt

    def counted(host: EngineHost) -> None:
        settled.append(host)
        synchronize(host)

    with monkeypatch.context() as during:
        during.setattr(Bucket, "run", interrupted)
        during.setattr(EngineHost, "synchronize", counted)
        with pytest.raises(KeyboardInterrupt):
            proven.segment(scan, route=1)
    assert len(settled) == 1
    assert np.array_equal(proven.segment(scan, route=1).labels, expected)


def test_a_gpu_lost_while_running_is_told_and_found_again(
    gpu: FakeGpu, proven: Segmenter, scan: Scan, expected: Labels
) -> None:
    with (
        gpu.driver.fails("cuEventSynchronize", LAUNCH_FAILED),
        pytest.raises(BackendError, match="LAUNCH_FAILED"),
    ):
        proven.segment(scan, route=1)
    assert np.array_equal(proven.segment(scan, route=1).labels, expected)


def test_a_gpu_lost_for_good_leaves_openvino_to_answer_and_to_end(
    gpu: FakeGpu, tiny_engines: Package, scan: Scan, expected: Labels
) -> None:
    with Segmenter(tiny_engines) as best:
        for route in (0, 1, 0, 1):
            assert best.segment(scan, route=route).backend == "tensorrt"
        gpu.driver.breaks(ILLEGAL_ADDRESS)
        for route in (0, 1):
            with pytest.warns(EngineWarning, match=f"not used for route {route} any more"):
                found = best.segment(scan, route=route)
            assert found.backend == "openvino"
        assert np.array_equal(found.labels, expected)
    # The process goes, and with it what could not be given back.
    gpu.driver.reset()
    gpu.trt.violations.clear()


@pytest.mark.parametrize("spoil", ["zeros", "noise", "nothing"])
def test_an_engine_that_answers_wrongly_never_answers(
    gpu: FakeGpu,
    tiny_engines: Package,
    scan: Scan,
    expected: Labels,
    spoil: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RARE_TRT_CACHE", str(tmp_path / "fresh"))
    gpu.trt.spoil = spoil
    words = "returned label 255" if spoil == "nothing" else "golden vector"
    with segmenter(tiny_engines) as on_gpu:
        for _ in range(2):
            with pytest.raises(BackendError, match=words):
                on_gpu.segment(scan, route=1)
    with Segmenter(tiny_engines) as best, pytest.warns(EngineWarning, match=words):
        assert np.array_equal(best.segment(scan, route=1).labels, expected)
    gpu.trt.spoil = ""
    assert np.array_equal(run_twice(tiny_engines, scan)[1], expected)


def test_a_run_that_writes_nothing_is_noticed_after_the_proof_too(
    gpu: FakeGpu, proven: Segmenter, scan: Scan
) -> None:
    for _ in range(2):
        proven.segment(scan, route=1)
    gpu.trt.spoil = "nothing"
    with pytest.raises(BackendError, match="returned label 255; expected 0 to 2"):
        proven.segment(scan, route=1)


# Trust


def test_the_proof_is_remembered_per_engine_driver_and_gpu(
    gpu: FakeGpu,
    tiny_engines: Package,
    scan: Scan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RARE_TRT_CACHE", str(tmp_path / "fresh"))

    def runs() -> int:
        before = gpu.trt.computed
        with segmenter(tiny_engines) as on_gpu:
            on_gpu.segment(scan, route=1)
        return gpu.trt.computed - before

    vectors = len(list(read_golden_vectors(tiny_engines, 1)))
    assert vectors >= 4
    proof = 3 * vectors
    assert [runs(), runs(), runs()] == [proof + 1, 1, 1]
    gpu.driver.set_device("Fake L4", (8, 9), total_bytes=16 << 30)
    assert runs() == 1
    monkeypatch.setattr("rare_trt.sessions.device.driver_release", lambda: "999.1")
    assert [runs(), runs()] == [proof + 1, 1]


def changed(package: Package, folder: Path, **header: Any) -> Package:
    """`package` with another header in the plan of route 1, and hashes to match."""
    (entry,) = (engine for engine in package.manifest.engines if engine.route == 1)
    from fake_tensorrt import _opened, plan_of

    values, graph = _opened(package.read(entry.file))
    plan = plan_of(values | header, graph)
    contents = {name: package.read(name) for name in package.manifest.files}
    return write_package(
        folder / "changed.rare",
        package.manifest,
        contents | {entry.file: plan},
        overwrite=True,
    )


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"host_code": True}, "host code"),
        ({"version": "10.14.0"}, "Version tag does not match"),
        ({"compute_capabilities": ["9.0"]}, "SM does not match"),
        ({"outputs": ["labels", "probabilities"]}, "its inputs and outputs are"),
        ({"dtypes": {"image": "HALF"}}, "image is of type"),
        ({"dtypes": {"labels": "INT32"}}, "labels is of type"),
        ({"locations": {"in_i": "HOST"}}, "in_i does not lie on the GPU"),
    ],
)
def test_an_engine_that_is_not_what_the_manifest_says_is_refused(
    gpu: FakeGpu,
    tiny_engines: Package,
    scan: Scan,
    tmp_path: Path,
    header: dict[str, Any],
    words: str,
) -> None:
    package = changed(tiny_engines, tmp_path, **header)
    with segmenter(package) as on_gpu, pytest.raises(BackendError, match=words):
        on_gpu.segment(scan, route=1)


def test_a_profile_other_than_the_manifests_is_refused(
    gpu: FakeGpu, tiny_engines: Package, scan: Scan, tmp_path: Path
) -> None:
    (entry,) = (engine for engine in tiny_engines.manifest.engines if engine.route == 1)
    profile = {name: [list(s) for s in shapes] for name, shapes in entry.profile.items()}
    profile["image"][2][2] += 16
    package = changed(tiny_engines, tmp_path, profile=profile)
    with segmenter(package) as on_gpu, pytest.raises(BackendError, match="its profile for image"):
        on_gpu.segment(scan, route=1)


def test_one_flipped_byte_is_refused_before_it_is_loaded(
    gpu: FakeGpu, tiny_engines: Package, scan: Scan, tmp_path: Path
) -> None:
    contents = {name: tiny_engines.read(name) for name in tiny_engines.manifest.files}
    manifest = tiny_engines.manifest
    package = write_package(tmp_path / "flipped.rare", manifest, contents, overwrite=False)
    (entry,) = (engine for engine in manifest.engines if engine.route == 1)
    path = package.folder / entry.file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    for backend in ("tensorrt", "auto"):
        on_gpu = Segmenter(package, backend)
        with on_gpu, pytest.raises(PackageError, match="tampered"):
            on_gpu.segment(scan, route=1)
    assert len(gpu.trt.live_engines) == 0


def test_a_version_compatible_engine_runs_on_a_later_release_with_its_lean_runtime(
    gpu: FakeGpu,
    tiny_package_folder: Path,
    scan: Scan,
    expected: Labels,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package, _ = build_engines(
        open_package(tiny_package_folder),
        "tensorrt",
        "fp32",
        BuilderOptions(version_compatible=True),
        this_machine(),
        out=tmp_path / "built.rare",
    )
    gpu.trt.__version__ = "10.14.0"
    advised = pytest.raises(BackendError, match=r"pip install tensorrt-lean==10\.13\.0\.35")
    with Segmenter(package, "tensorrt") as later, advised:
        later.segment(scan, route=1)
    lean = tmp_path / "libnvinfer_lean.so.10"
    lean.write_text("10.13.0.35")
    found = {"10.13.0.35": lean}
    monkeypatch.setattr("rare_trt.sessions.machine.lean_runtimes", lambda: found)
    monkeypatch.setattr("rare_trt.sessions.nvidia.lean_runtimes", lambda: found)
    gpu.trt.fail("load_runtime")
    with Segmenter(package, "tensorrt") as later:
        with pytest.raises(BackendError, match="lean runtime of TensorRT"):
            later.segment(scan, route=1)
        assert np.array_equal(later.segment(scan, route=1).labels, expected)


# Shapes


@pytest.fixture
def session(gpu: FakeGpu, tiny_engines: Package) -> Iterator[EngineSession]:
    (entry,) = (engine for engine in tiny_engines.manifest.engines if engine.route == 1)
    host = EngineHost()
    yield EngineSession(host, tiny_engines, entry, Cache())
    host.close()


def inputs_of(package: Package) -> Inputs:
    (inputs,) = next(read_golden_vectors(package, 1)).scan.inputs()
    return inputs


@pytest.mark.parametrize("name", ["image", "in_j", "out_k"])
@pytest.mark.parametrize("fault", ["large", "small", "rank", "dtype"])
def test_shapes_outside_the_profile_are_refused_before_anything_is_queued(
    gpu: FakeGpu, session: EngineSession, tiny_engines: Package, name: str, fault: str
) -> None:
    inputs = inputs_of(tiny_engines)
    low, _, high = session.entry.profile[name]
    wrong: dict[str, NDArray[Any]] = {
        "large": np.zeros((*high[:-1], high[-1] + 1), np.float32),
        "small": np.zeros((*low[:-1], low[-1] - 1), np.float32),
        "rank": inputs[name][None],
        "dtype": inputs[name].astype(np.float64),
    }
    enqueued = gpu.trt.enqueued
    with pytest.raises(ShapeError, match=f"the scan needs {name} of shape"):
        session.run({**inputs, name: wrong[fault]})
    assert gpu.trt.enqueued == enqueued
    assert session.run(inputs).any()


@pytest.mark.parametrize("name", ["in_i", "out_j"])
def test_matrices_that_do_not_fit_each_other_are_refused(
    session: EngineSession, tiny_engines: Package, name: str
) -> None:
    inputs = inputs_of(tiny_engines)
    rows, columns = inputs[name].shape
    with pytest.raises(ShapeError, match="do not fit each other"):
        session.run({**inputs, name: np.zeros((rows, columns + 8), np.float32)})


def test_a_scan_that_does_not_fit_a_static_engine_is_answered_by_openvino_alone(
    gpu: FakeGpu, tiny_package_folder: Path, scan: Scan, tmp_path: Path, fake_driver: FakeDriver
) -> None:
    """The engine stays in use for the scans that it was built for."""
    package = open_package(tiny_package_folder)
    options = BuilderOptions(static_shapes=True)
    built, _ = build_engines(
        package, "tensorrt", "fp32", options, this_machine(), out=tmp_path / "static.rare"
    )
    typical = golden_scan(built)
    assert main(["verify", str(built.folder)]) == 0
    with Segmenter(built) as best:
        assert best.segment(typical, route=1).backend == "tensorrt"
        with pytest.warns(EngineWarning, match="tensorrt fp32 cannot run this scan"):
            assert best.segment(scan, route=1, spacing_out_mm=0.5).backend == "openvino"
        assert best.segment(typical, route=1).backend == "tensorrt"


def golden_scan(package: Package) -> Scan:
    """The typical golden vector of route 1 as a scan."""
    from rare_trt.scan.nifti import scan_from_bytes

    (entry,) = (g for g in package.manifest.golden if (g.route, g.kind) == (1, "typical"))
    return scan_from_bytes(package.read(entry.scan), entry.scan)


# Threads and ends


def test_two_threads_on_one_segmenter(
    gpu: FakeGpu, proven: Segmenter, tiny_engines: Package, scan: Scan
) -> None:
    i, j, k = scan.volume.grid.shape
    scans = [scan, cropped(scan, i, j - 16, k)]
    with Segmenter(tiny_engines, "openvino") as known:
        truth = [known.segment(one, route=1).labels for one in scans]
    wrong: list[int] = []

    def work(which: int) -> None:
        for _ in range(12):
            labels = proven.segment(scans[which], route=1).labels
            if not np.array_equal(labels, truth[which]):
                wrong.append(which)

    threads = [threading.Thread(target=work, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_closed_segmenter_holds_nothing_and_can_be_closed_again(
    gpu: FakeGpu, tiny_engines: Package, scan: Scan
) -> None:
    ready = segmenter(tiny_engines, preload=True)
    assert len(gpu.trt.live_engines) == 2
    ready.segment(scan)
    ready.close()
    assert gpu.live() == (0, 0, 0)
    ready.close()
    with pytest.raises(BackendError, match="was closed; expected an open one"):
        ready.segment(scan)
    assert gpu.live() == (0, 0, 0)


def test_a_damaged_golden_vector_leaves_no_engine_loaded(
    gpu: FakeGpu,
    tiny_engines: Package,
    scan: Scan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RARE_TRT_CACHE", str(tmp_path / "fresh"))
    contents = {name: tiny_engines.read(name) for name in tiny_engines.manifest.files}
    manifest = tiny_engines.manifest
    package = write_package(tmp_path / "hurt.rare", manifest, contents, overwrite=False)
    (package.folder / manifest.golden[0].scan).write_bytes(b"")
    with segmenter(package) as on_gpu:
        for _ in range(3):
            with pytest.raises(PackageError, match="tampered"):
                on_gpu.segment(scan, route=0)
            assert len(gpu.trt.live_engines) == 0
    with pytest.raises(PackageError, match="tampered"):
        segmenter(package, preload=True)
    assert gpu.live() == (0, 0, 0)


def test_an_engine_that_does_not_fit_evicts_no_other(
    gpu: FakeGpu, tiny_engines: Package, scan: Scan, tmp_path: Path
) -> None:
    package = changed(tiny_engines, tmp_path, dtypes={"image": "HALF"})
    with segmenter(package) as on_gpu:
        on_gpu.segment(scan, route=0)
        with pytest.raises(BackendError, match="image is of type"):
            on_gpu.segment(scan, route=1)
        assert len(gpu.trt.live_engines) == 1


def test_a_session_of_a_closed_host_says_so(
    gpu: FakeGpu, session: EngineSession, tiny_engines: Package
) -> None:
    session._host.close()
    with pytest.raises(BackendError, match="was closed"):
        session.run(inputs_of(tiny_engines))


# TensorRT for RTX


def test_tensorrt_for_rtx_compiles_once_and_captures_nothing_by_hand(
    fake_driver: FakeDriver, tiny_package_folder: Path, scan: Scan, expected: Labels, tmp_path: Path
) -> None:
    with fake_gpu(fake_driver, "tensorrt_rtx") as gpu:
        package, built = build_engines(
            open_package(tiny_package_folder),
            "tensorrt-rtx",
            "fp32",
            BuilderOptions(),
            this_machine(),
            out=tmp_path / "rtx.rare",
        )
        assert built[0].entry.gpu is None
        assert "8.9" in built[0].entry.compute_capabilities
        for start in range(2):
            with Segmenter(package, "tensorrt-rtx") as on_gpu:
                for _ in range(3):
                    found = on_gpu.segment(scan, route=1)
                    assert np.array_equal(found.labels, expected)
            assert found.backend == "tensorrt-rtx"
            # The second start finds the kernels that the first one compiled.
            assert bool(gpu.trt.compiled_blobs) == bool(start)
        assert gpu.driver.calls("cuStreamBeginCapture_v2") == 0
        assert gpu.live() == (0, 0, 0)
        assert gpu.trt.violations == []


def test_tensorrt_for_rtx_is_asked_whether_an_engine_can_run(
    fake_driver: FakeDriver, tiny_package_folder: Path, scan: Scan, tmp_path: Path
) -> None:
    with fake_gpu(fake_driver, "tensorrt_rtx") as gpu:
        package, _ = build_engines(
            open_package(tiny_package_folder),
            "tensorrt-rtx",
            "fp32",
            BuilderOptions(),
            this_machine(),
            out=tmp_path / "rtx.rare",
        )
        package = changed(package, tmp_path, version="0.9")
        refused = pytest.raises(BackendError, match="cannot run it here")
        with Segmenter(package, "tensorrt-rtx") as on_gpu, refused:
            on_gpu.segment(scan, route=1)
        for method in ("create_runtime_config", "set_runtime_cache"):
            gpu.trt.fail(method)
            whole = open_package(tmp_path / "rtx.rare")
            with Segmenter(whole, "tensorrt-rtx") as on_gpu, pytest.raises(BackendError):
                on_gpu.segment(scan, route=1)
        assert gpu.live() == (0, 0, 0)
        assert gpu.trt.violations == []
