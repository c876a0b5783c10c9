"""What every test may use: real data outside the repository, the examples, a cache of its own."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fake_cuda import FakeDriver, build, why_unusable

from rare_trt.backends import Precision
from rare_trt.package.manifest import BuilderOptions, GraphEntry
from rare_trt.package.reading import Package, open_package
from rare_trt.package.writing import write_package
from rare_trt.sessions.machine import this_machine

# The networks of the tests are small: threads would wait for each other longer than they compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if TYPE_CHECKING:
    from fake_tensorrt import FakeTensorRT

REPOSITORY = Path(__file__).parents[1]
SHARED = REPOSITORY.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scans that is shared between checkouts and not part of the project."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real scans in {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def examples() -> Path:
    """The example scans that ship with the repository."""
    return REPOSITORY / "examples"


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the whole run: a compiled model is slow to make and safe to share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(
    cache_folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Keeps tests away from the user's own cache and engines."""
    monkeypatch.setenv("RARE_TRT_CACHE", str(cache_folder))
    monkeypatch.setenv("RARE_TRT_HOME", str(tmp_path_factory.getbasetemp() / "no-home"))
    yield


@pytest.fixture(scope="module")
def quick_trials() -> Iterator[None]:
    """Calibration that takes little time over timings, where a test does not ask how good they are:
    three quarters of a search are timings."""
    from rare_trt.calibration import trial

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "TIMED_SCANS", 1)
        patch.setattr(trial, "REPEATS", 2)
        patch.setattr(trial, "CACHES", 1 << 20)
        yield


@pytest.fixture(scope="session")
def tiny_package_folder() -> Path:
    """A whole package of two routes and 600 kB, written once by format version 1."""
    return REPOSITORY / "tests" / "data" / "tiny_v1.rare"


@pytest.fixture(scope="session")
def tiny_scan(examples: Path) -> Path:
    """A real scan that the small package takes."""
    return examples / "hippocampus_1mm.nii.gz"


@pytest.fixture(scope="session")
def half(tiny_package_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The small package with fp16 graphs beside its float32 ones, as packages are built today."""
    from rare_trt.calibration.fp16 import fp16_from_float32
    from rare_trt.calibration.golden import MAX_SHARE
    from rare_trt.export.graph_files import files_from_models, load_graph

    old = open_package(tiny_package_folder)
    manifest = old.manifest
    files = files_from_models(
        [
            fp16_from_float32(load_graph(old.read(g.file), old.read(g.weights)))
            for g in manifest.graphs
        ],
        "weights.bin",
    )
    graphs = [
        GraphEntry("fp16", g.route, f"graphs/fp16/route{g.route}.onnx", "graphs/fp16/weights.bin")
        for g in manifest.graphs
    ]
    contents = {name: old.read(name) for name in manifest.files}
    contents |= {graph.file: data for graph, data in zip(graphs, files.graphs, strict=True)}
    contents["graphs/fp16/weights.bin"] = files.weights
    golden = tuple(
        replace(one, max_disagreement={**one.max_disagreement, "fp16": MAX_SHARE["fp16"]})
        for one in manifest.golden
    )
    # Of the cases of tests/test_int8.py one was held out from training.
    training = replace(manifest.model.training, validation_cases=("case_002",))
    model = replace(manifest.model, training=training)
    manifest = replace(manifest, model=model, graphs=(*manifest.graphs, *graphs), golden=golden)
    folder = tmp_path_factory.mktemp("half") / "tiny.rare"
    return write_package(folder, manifest, contents, overwrite=False)


@dataclass(frozen=True)
class FakeGpu:
    """A GPU that is not there: the driver, and TensorRT on top of it."""

    driver: FakeDriver
    trt: FakeTensorRT

    def live(self) -> tuple[int, int, int]:
        """Bytes on the device, pinned bytes, handles: all zero once everything was closed."""
        gc.collect()
        driver = self.driver
        return driver.live_device_bytes(), driver.live_host_bytes(), driver.live_handles()


@pytest.fixture(scope="session")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> FakeDriver:
    """The fake CUDA driver in this process, without a device for the time being."""
    why = why_unusable()
    if why is not None:
        pytest.skip(why)
    library = build(tmp_path_factory.mktemp("fake_cuda"))
    assert library is not None
    driver = FakeDriver(library)
    driver.set_devices(0)
    return driver


@pytest.fixture
def gpu(fake_driver: FakeDriver) -> Iterator[FakeGpu]:
    """A fresh GPU with TensorRT; a test that leaves anything behind on it fails."""
    with fake_gpu(fake_driver) as machine:
        yield machine
        assert machine.trt.violations == []
        assert machine.live() == (0, 0, 0)


@contextmanager
def fake_gpu(driver: FakeDriver, module: str = "tensorrt") -> Iterator[FakeGpu]:
    """A machine with one fake GPU and a fake TensorRT."""
    from fake_tensorrt import FakeTensorRT

    driver.reset()
    driver.set_device("Fake L4", (8, 9))
    fake = FakeTensorRT(module)
    before = sys.modules.get(module)
    sys.modules[module] = fake
    # Collections look at what is made from here on alone: torch and onnx bring a million objects.
    gc.freeze()
    try:
        yield FakeGpu(driver, fake)
    finally:
        del sys.modules[module]
        if before is not None:
            sys.modules[module] = before
        gc.collect()
        gc.unfreeze()
        driver.reset()
        driver.set_devices(0)


@pytest.fixture(scope="session")
def tiny_engines(
    fake_driver: FakeDriver, tiny_package_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Package:
    """The small package with an engine for each of its two routes, built by the fake TensorRT."""
    out = tmp_path_factory.mktemp("engines") / "tiny.rare"
    return with_engines(fake_driver, open_package(tiny_package_folder), "fp32", out)


@pytest.fixture(scope="session")
def shipped_engines(fake_driver: FakeDriver, tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The shipped package with an fp16 engine for each of its four routes."""
    out = tmp_path_factory.mktemp("engines") / "hippocampus.rare"
    return with_engines(fake_driver, open_package("hippocampus"), "fp16", out)


def with_engines(driver: FakeDriver, package: Package, precision: Precision, out: Path) -> Package:
    from rare_trt.engines.engines_from_package import build_engines

    with fake_gpu(driver):
        built, _ = build_engines(
            package, "tensorrt", precision, BuilderOptions(), this_machine(), out=out
        )
    return built
