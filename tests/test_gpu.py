"""The same promises on a real GPU with a real TensorRT. Skipped where there is none.

The fakes of the other tests cannot stand beside a real driver in one process, so on such a machine
those are skipped and these run.
"""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from fake_cuda import REAL_GPU, why_unusable

from rare_trt import Scan, Segmenter, read_scan
from rare_trt.backends import ENGINE_BACKENDS, EngineBackend
from rare_trt.cli import main
from rare_trt.engines.engines_from_package import build_engines
from rare_trt.errors import BackendError
from rare_trt.evaluation.dice import dice
from rare_trt.package.manifest import BuilderOptions
from rare_trt.package.reading import Package, open_package
from rare_trt.sessions.machine import this_machine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(why_unusable() != REAL_GPU, reason="no NVIDIA GPU in this machine"),
]


@pytest.fixture(scope="module", params=ENGINE_BACKENDS)
def backend(request: pytest.FixtureRequest) -> EngineBackend:
    chosen: EngineBackend = request.param
    if chosen not in this_machine().libraries:
        pytest.skip(f"{chosen} is not installed")
    return chosen


@pytest.fixture(scope="module")
def package(backend: EngineBackend, tmp_path_factory: pytest.TempPathFactory) -> Package:
    out = tmp_path_factory.mktemp("gpu") / "built.rare"
    built, _ = build_engines(
        open_package("hippocampus"), backend, "fp16", BuilderOptions(), this_machine(), out=out
    )
    return built


@pytest.fixture(scope="module")
def scan(examples: Path) -> Scan:
    return read_scan(examples / "hippocampus_1mm.nii.gz")


@pytest.mark.parametrize("route", range(4))
@pytest.mark.parametrize("spacing_out_mm", [None, 0.5])
def test_every_route_answers_as_openvino_does(
    package: Package, backend: EngineBackend, scan: Scan, route: int, spacing_out_mm: float | None
) -> None:
    with Segmenter(package, "openvino") as known, Segmenter(package, backend) as on_gpu:
        truth = known.segment(scan, route=route, spacing_out_mm=spacing_out_mm).labels
        for _ in range(4):  # the first run settles, the second captures, later ones replay
            found = on_gpu.segment(scan, route=route, spacing_out_mm=spacing_out_mm)
            assert found.backend == backend
            assert np.mean(dice(found.labels, truth, 3)) >= 0.999


def test_verify_finds_nothing_wrong(package: Package, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(package.folder)]) == 0
    assert "tensorrt" in capsys.readouterr().out


def test_two_threads_on_one_segmenter(package: Package, backend: EngineBackend, scan: Scan) -> None:
    wrong: list[str] = []
    with Segmenter(package, backend) as on_gpu:
        truth = {route: on_gpu.segment(scan, route=route).labels for route in (0, 1)}

        def work(route: int) -> None:
            for _ in range(20):
                if not np.array_equal(on_gpu.segment(scan, route=route).labels, truth[route]):
                    wrong.append(f"route {route}")

        threads = [threading.Thread(target=work, args=(route,)) for route in truth]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_memory_is_bounded_and_given_back(
    package: Package, backend: EngineBackend, scan: Scan
) -> None:
    driver = pytest.importorskip("cuda.bindings.driver")

    def free() -> int:
        status, available, _ = driver.cuMemGetInfo()
        assert int(status) == 0
        return int(available)

    def cycle() -> None:
        with Segmenter(package, backend, preload=True) as on_gpu:
            for route in range(4):
                on_gpu.segment(scan, route=route)

    driver.cuInit(0)
    _, context = driver.cuDevicePrimaryCtxRetain(0)
    driver.cuCtxPushCurrent(context)
    try:
        cycle()  # the libraries keep what they load once
        before = free()
        for _ in range(5):
            cycle()
        assert before - free() < 16 << 20
    finally:
        driver.cuCtxPopCurrent()
        driver.cuDevicePrimaryCtxRelease(0)


def test_a_limit_too_small_is_told(package: Package, backend: EngineBackend, scan: Scan) -> None:
    with (
        Segmenter(package, backend, gpu_memory_limit=1 << 20) as tight,
        pytest.raises(BackendError, match="raise it"),
    ):
        tight.segment(scan)
