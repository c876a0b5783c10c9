"""Engines: profiles, builds with the real TensorRT for RTX, compatibility, the build plan."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from math import ceil
from pathlib import Path
from time import sleep
from typing import Any, cast

import pytest
from conftest import FakeGpu
from fake_tensorrt import FOREIGN_TIMINGS

from rare_trt import Segmenter
from rare_trt.backends import EngineBackend
from rare_trt.building.manifest_from_checkpoint import field_of_view_from_facts
from rare_trt.cli import main
from rare_trt.constants import BUCKET
from rare_trt.engines import fastest as best
from rare_trt.engines.builder import EngineBuilder
from rare_trt.engines.engines_from_package import build_engines, typed_graph_from_package
from rare_trt.engines.profiles import profile_from_route
from rare_trt.engines.rtx import RTX_CAPABILITIES
from rare_trt.engines.targets import TARGETS, Target, plan_builds
from rare_trt.errors import BackendError, OutputError, PackageError
from rare_trt.package import reading
from rare_trt.package.manifest import BuilderOptions, EngineEntry
from rare_trt.package.manifest_json import json_with_seal
from rare_trt.package.reading import Package, open_package
from rare_trt.package.signing import PRIVATE_KEY, PUBLIC_KEY
from rare_trt.package.writing import sign_package, write_package
from rare_trt.sessions.compatibility import incompatibility
from rare_trt.sessions.device import Gpu
from rare_trt.sessions.machine import Machine, this_machine, this_platform
from rare_trt.sessions.session import INPUT_NAMES, Inputs, Session
from rare_trt.storage import cache
from rare_trt.training.checkpoint import TrainingFacts

HERE = this_platform()
L4 = Gpu("NVIDIA L4", "8.9", 24 << 30, False, "580.1 CUDA 13.0")
NO_GPU = "no NVIDIA GPU can be used here"


def machine(
    gpu: Gpu | None = None, *, tensorrt: str | None = None, rtx: str | None = None
) -> Machine:
    found = {"tensorrt": tensorrt, "tensorrt-rtx": rtx}
    libraries = {name: version for name, version in found.items() if version is not None}
    return Machine(HERE, gpu, "" if gpu else NO_GPU, libraries)


@pytest.fixture(scope="module")
def package() -> Package:
    return open_package("hippocampus")


# Profiles


@pytest.mark.parametrize("route", range(4))
def test_profiles_hold_every_scan_the_package_takes(package: Package, route: int) -> None:
    entry = package.manifest.routes[route]
    shapes = profile_from_route(entry, package.manifest.model, static=False)
    assert set(shapes) == set(INPUT_NAMES)
    for low, typical, high in shapes.values():
        assert all(a <= b <= c for a, b, c in zip(low, typical, high, strict=True))
    for axis, name in enumerate("ijk"):
        assert shapes[f"in_{name}"][2][0] == entry.profile.max[axis]
        assert shapes[f"out_{name}"][2][1] == entry.profile.max[axis]
    if route:
        # The answer is finer than the scan: what a tied output dimension would make impossible.
        assert shapes["out_i"][1][0] > shapes["in_i"][1][1]


def test_maxima_are_tight(package: Package) -> None:
    """A working maximum costs memory by its volume: at most 64 times the typical one."""
    for entry in package.manifest.routes:
        for axis in range(3):
            assert entry.profile.max[axis] <= 4 * entry.profile.typical[axis]


def test_static_profiles_take_the_typical_golden_vectors(package: Package) -> None:
    """Also where the median field of view is no whole number of voxels."""
    manifest = package.manifest
    view = (48.4, 50.0, 36.0)
    facts = TrainingFacts(1, (), view, view, view, ((0.0, 1.0), (0.0, 1.0)))
    found = field_of_view_from_facts(facts, manifest.model.base_spacing_mm)
    assert found.typical == (48.0, 50.0, 36.0)
    model = replace(manifest.model, field_of_view_mm=found)
    for entry in manifest.routes:
        # As calibration/golden.py and `--at` make them.
        voxels = tuple(ceil(mm / entry.spacing_mm) for mm in found.typical)
        shapes = profile_from_route(entry, model, static=True)
        assert shapes["image"][0][2:] == tuple(ceil(n / BUCKET) * BUCKET for n in voxels)


def test_static_profiles_have_one_shape(package: Package) -> None:
    shapes = profile_from_route(package.manifest.routes[1], package.manifest.model, static=True)
    assert all(low == typical == high for low, typical, high in shapes.values())


# Builds with the real library


@pytest.fixture(scope="module")
def rtx_engines(package: Package, tmp_path_factory: pytest.TempPathFactory) -> Package:
    pytest.importorskip("tensorrt_rtx")
    out = tmp_path_factory.mktemp("rtx") / "built.rare"
    command = [sys.executable, "-m", "rare_trt.cli", "build", "--backend", "tensorrt-rtx"]
    command += ["--precision", "fp16", "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("built in") == 4
    return open_package(out)


def test_four_engines_are_built_without_a_gpu(rtx_engines: Package, package: Package) -> None:
    entries = rtx_engines.manifest.engines
    assert [entry.route for entry in entries] == [0, 1, 2, 3]
    for entry in entries:
        assert (entry.backend, entry.precision, entry.gpu) == ("tensorrt-rtx", "fp16", None)
        assert entry.compute_capabilities == RTX_CAPABILITIES
        graph = package.graph(entry.route, "fp16")
        assert entry.graph_sha256 == package.manifest.graph_sha256(graph)
        assert len(rtx_engines.read(entry.file)) > 5_000_000
    # The package it was made from has none.
    assert open_package("hippocampus").manifest.engines == ()


def test_a_second_build_builds_nothing(
    rtx_engines: Package, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(rtx_engines.folder)
    before = {path: path.stat().st_mtime_ns for path in rtx_engines.folder.rglob("*")}
    for where in (["-o", out], ["--package", out]):
        assert main(["build", "--backend", "tensorrt-rtx", "--precision", "fp16", *where]) == 0
        assert capsys.readouterr().out.count("exists already") == 4
    assert {path: path.stat().st_mtime_ns for path in rtx_engines.folder.rglob("*")} == before


@pytest.mark.slow
def test_other_options_and_precisions_stand_beside_the_first(
    rtx_engines: Package, tmp_path: Path
) -> None:
    folder = tmp_path / "more.rare"
    shutil.copytree(rtx_engines.folder, folder)
    check_builds_beside(open_package(folder), "tensorrt-rtx")


def test_other_options_and_precisions_stand_beside_the_first_on_a_fake(
    gpu: FakeGpu, half: Package, tmp_path: Path
) -> None:
    here, out = this_machine(), tmp_path / "more.rare"
    first, _ = build_engines(half, "tensorrt", "fp16", BuilderOptions(), here, out=out)
    check_builds_beside(first, "tensorrt")


def check_builds_beside(package: Package, backend: EngineBackend) -> None:
    """Builds more engines into `package`, which has one per route in fp16."""
    here, routes = this_machine(), len(package.manifest.routes)
    options = BuilderOptions(static_shapes=True, workspace_mib=64, optimization_level=1)
    more, built = build_engines(package, backend, "fp16", options, here)
    assert all(item.seconds for item in built)
    assert len(more.manifest.engines) == 2 * routes
    more, _ = build_engines(more, backend, "fp32", BuilderOptions(), here)
    assert len(more.manifest.engines) == 3 * routes
    for entry in more.manifest.engines:
        more.read(entry.file)
    # What is built again is there, and the package stays as it is, its signature too.
    again, _ = build_engines(more, backend, "fp16", options, here)
    assert again.manifest == more.manifest


def seal_anew(folder: Path, values: dict[str, Any]) -> None:
    """Makes `values`, whatever was changed in them, the manifest of the package in `folder`."""
    del values["sha256"]
    (folder / "manifest.json").write_bytes(json_with_seal(values))


def test_an_engine_of_another_graph_is_replaced(rtx_engines: Package, tmp_path: Path) -> None:
    folder = tmp_path / "stale.rare"
    shutil.copytree(rtx_engines.folder, folder)
    values = json.loads((folder / "manifest.json").read_text())
    values["engines"][2]["graph_sha256"] = "0" * 64
    seal_anew(folder, values)
    stale = open_package(folder)
    assert "another graph" in str(
        incompatibility(stale.manifest.engines[2], stale.manifest, machine())
    )
    renewed, built = build_engines(stale, "tensorrt-rtx", "fp16", BuilderOptions(), this_machine())
    assert [bool(item.seconds) for item in built] == [False, False, True, False]
    assert len(renewed.manifest.engines) == 4
    found = {path.name for path in (folder / "engines" / "tensorrt-rtx").iterdir()}
    assert found == {Path(entry.file).name for entry in renewed.manifest.engines}


@pytest.mark.parametrize("route", range(4))
def test_verify_refuses_one_flipped_byte_in_any_engine(
    rtx_engines: Package, tmp_path: Path, capsys: pytest.CaptureFixture[str], route: int
) -> None:
    folder = tmp_path / "flipped.rare"
    shutil.copytree(rtx_engines.folder, folder)
    entry = rtx_engines.manifest.engines[route]
    data = bytearray((folder / entry.file).read_bytes())
    data[route * len(data) // 4] ^= 1
    (folder / entry.file).write_bytes(data)
    assert main(["verify", str(folder)]) == 1
    error = capsys.readouterr().err
    assert entry.file in error and "damaged or tampered" in error and error.count("\n") == 1


def test_a_copy_with_other_weights_is_no_copy(package: Package, tmp_path: Path) -> None:
    contents = {name: package.read(name) for name in package.manifest.files}
    weights = package.graph(0, "fp16").weights
    contents[weights] = contents[weights][:-1] + bytes([contents[weights][-1] ^ 1])
    out = tmp_path / "copy.rare"
    write_package(out, package.manifest, contents, overwrite=False)
    with pytest.raises(OutputError, match="is not a copy of the package"):
        build_engines(package, "tensorrt-rtx", "fp16", BuilderOptions(), this_machine(), out=out)


def test_an_output_that_is_something_else_is_left_alone(package: Package, tmp_path: Path) -> None:
    other = tmp_path / "other.rare"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    for overwrite, words in ((False, "exists already"), (True, "without a package")):
        with pytest.raises(OutputError, match=words):
            build_engines(
                package,
                "tensorrt-rtx",
                "fp16",
                BuilderOptions(),
                this_machine(),
                out=other,
                overwrite=overwrite,
            )
    assert [path.name for path in other.iterdir()] == ["mine.txt"]


def test_a_graph_that_cannot_be_parsed_is_reported_with_its_route(package: Package) -> None:
    pytest.importorskip("tensorrt_rtx")
    builder = EngineBuilder("tensorrt-rtx", BuilderOptions(), this_machine())
    source = typed_graph_from_package(package, package.graph(2, "fp16"))
    with pytest.raises(BackendError, match=r"route 2: the graph cannot be parsed: .+"):
        builder.parse(replace(source, graph=b"not onnx"))
    with pytest.raises(BackendError, match=r"route 2: the optimisation profile .+ was refused"):
        shapes = profile_from_route(
            package.manifest.routes[2], package.manifest.model, static=False
        )
        low, typical, high = shapes["image"]
        builder.build(source, shapes | {"image": (high, typical, low)})


def test_options_that_rtx_does_not_support_are_refused(package: Package) -> None:
    pytest.importorskip("tensorrt_rtx")
    for options in (
        BuilderOptions(version_compatible=True),
        BuilderOptions(hardware_compatibility="ampere_plus"),
    ):
        with pytest.raises(BackendError, match="leave out --version-compatible"):
            EngineBuilder("tensorrt-rtx", options, this_machine())


# Builds with the fake TensorRT, which needs its fake GPU


def test_tensorrt_needs_a_gpu_to_build(gpu: FakeGpu, package: Package, tmp_path: Path) -> None:
    gpu.driver.set_devices(0)
    with pytest.raises(BackendError, match="builds engines only on a machine with an NVIDIA GPU"):
        build_engines(
            package,
            "tensorrt",
            "fp16",
            BuilderOptions(),
            this_machine(),
            out=tmp_path / "none.rare",
        )
    assert list(tmp_path.iterdir()) == []


def test_a_driver_too_old_for_tensorrt_is_reported_before_a_build(
    gpu: FakeGpu, package: Package, tmp_path: Path
) -> None:
    gpu.trt.fail("Builder")
    with pytest.raises(BackendError, match=r"cannot use this GPU \(CUDA init.* error: 35\."):
        build_engines(
            package,
            "tensorrt",
            "fp16",
            BuilderOptions(),
            this_machine(),
            out=tmp_path / "none.rare",
        )
    assert list(tmp_path.iterdir()) == []


def test_options_reach_the_builder(gpu: FakeGpu, tiny_package_folder: Path, tmp_path: Path) -> None:
    options = BuilderOptions(
        workspace_mib=96,
        optimization_level=5,
        hardware_compatibility="ampere_plus",
        version_compatible=True,
    )
    out = tmp_path / "built.rare"
    package, _ = build_engines(
        open_package(tiny_package_folder), "tensorrt", "fp32", options, this_machine(), out=out
    )
    trt = gpu.trt
    for config in trt.configs:
        assert config.flags_set == {
            trt.BuilderFlag.VERSION_COMPATIBLE,
            trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME,
        }
        assert config.pools == {trt.MemoryPoolType.WORKSPACE: 96 << 20}
        assert config.builder_optimization_level == 5
        assert config.hardware_compatibility_level == trt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert all(entry.options == options for entry in package.manifest.engines)
    # Timings are kept beside the package, for this library and kind of GPU.
    (kept,) = tmp_path.glob("built.tensorrt-*-sm89.timings")
    assert kept.read_bytes() == b"timings"
    kept.write_bytes(b"of another release")
    package, _ = build_engines(
        package, "tensorrt", "fp32", BuilderOptions(tf32=True), this_machine()
    )
    assert kept.read_bytes() == b"timings"
    assert trt.configs[-1].flags_set == {trt.BuilderFlag.TF32}
    # Those of another GPU under this one's name are of no use, and no harm.
    kept.write_bytes(FOREIGN_TIMINGS)
    build_engines(package, "tensorrt", "fp32", BuilderOptions(optimization_level=1), this_machine())
    assert kept.read_bytes() == b"timings"


def test_a_jetson_gets_a_workspace_limit(
    gpu: FakeGpu, tiny_package_folder: Path, tmp_path: Path
) -> None:
    gpu.driver.set_device("Fake Orin", (8, 7), integrated=True, total_bytes=8 << 30)
    build_engines(
        open_package(tiny_package_folder),
        "tensorrt",
        "fp32",
        BuilderOptions(),
        this_machine(),
        out=tmp_path / "built.rare",
    )
    assert gpu.trt.configs[0].pools == {gpu.trt.MemoryPoolType.WORKSPACE: 2 << 30}


@pytest.mark.parametrize("method", ["build_serialized_network", "parse_from_file"])
def test_a_failed_build_names_the_route_and_leaves_nothing(
    gpu: FakeGpu, tiny_package_folder: Path, tmp_path: Path, method: str
) -> None:
    gpu.trt.fail(method)
    with pytest.raises(BackendError, match=r"route 0: .* by tensorrt 10\.13\.0\.35 \("):
        build_engines(
            open_package(tiny_package_folder),
            "tensorrt",
            "fp32",
            BuilderOptions(),
            this_machine(),
            out=tmp_path / "built.rare",
        )
    assert list(tmp_path.iterdir()) == []


def test_a_build_into_the_package_itself_is_atomic(
    gpu: FakeGpu, tiny_package_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "own.rare"
    shutil.copytree(tiny_package_folder, folder)
    before = files_of(folder)

    def full(self: Path, target: Path) -> Path:
        if target.name == "manifest.json":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    rename = Path.replace
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        build_engines(open_package(folder), "tensorrt", "fp32", BuilderOptions(), this_machine())
    monkeypatch.undo()
    assert files_of(folder) == before
    package, _ = build_engines(
        open_package(folder), "tensorrt", "fp32", BuilderOptions(), this_machine()
    )
    assert len(package.manifest.engines) == 2
    with Segmenter(package, "tensorrt") as ready:
        assert set(ready._routes) == {0, 1}


def test_best_measures_warm_runs(package: Package) -> None:
    class Timed:
        runs = 0

        def run(self, inputs: Inputs) -> None:
            sleep(0.001 if self.runs >= best.WARM_UP else 0.03)
            self.runs += 1

    timed = Timed()
    # Milliseconds, and neither the first runs nor all of them together.
    assert 1.0 <= best.measure_milliseconds(cast(Session, timed), package, 0) < 20.0
    assert timed.runs == best.WARM_UP + best.RUNS


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, int]]:
    """Which (precision, route) fail their golden vectors; fp16 takes half the time of fp32."""
    found: set[tuple[str, int]] = set()
    check = best.check_golden_vectors

    def checked(session: Session, package: Package, route: int) -> None:
        if (session.precision, route) in found:
            raise BackendError(f"{session.precision} gives other labels than the golden vector")
        check(session, package, route)

    monkeypatch.setattr(best, "check_golden_vectors", checked)
    took = {"fp16": 1.0, "fp32": 2.0, "int8": 3.0}
    monkeypatch.setattr(best, "measure_milliseconds", lambda session, *_: took[session.precision])
    return found


@pytest.fixture(params=["half", pytest.param("hippocampus", marks=pytest.mark.slow)])
def in_precisions(request: pytest.FixtureRequest, half: Package) -> Package:
    """A package with graphs of several precisions: the small one, or that which ships."""
    return half if request.param == "half" else open_package(request.param)


def test_best_keeps_the_fastest_within_the_bounds(
    gpu: FakeGpu, in_precisions: Package, tmp_path: Path, failing: set[tuple[str, int]]
) -> None:
    """fp16 is the faster one here, but on route 1 it fails its golden vectors."""
    package, routes = in_precisions, range(len(in_precisions.manifest.routes))
    failing.add(("fp16", 1))
    here, out = this_machine(), tmp_path / "best.rare"
    # What was there before gives way to the fastest, but for engines of other options.
    build_engines(package, "tensorrt", "fp32", BuilderOptions(), here, out=out)
    build_engines(package, "tensorrt", "fp32", BuilderOptions(tf32=True), here, out=out)
    found, built = build_engines(package, "tensorrt", "best", BuilderOptions(), here, out=out)
    kept = {e.route: e.precision for e in found.manifest.engines if not e.options.tf32}
    assert kept == {route: "fp32" if route == 1 else "fp16" for route in routes}
    assert len(found.manifest.engines) == 2 * len(routes)
    # On route 1 the engine that is there is the fastest.
    assert {i.entry.route: bool(i.seconds) for i in built} == {
        route: route != 1 for route in routes
    }
    found_files = {path.name for path in (out / "engines" / "tensorrt").iterdir()}
    assert found_files == {Path(entry.file).name for entry in found.manifest.engines}


def test_best_that_fails_leaves_the_package_as_it_was(
    gpu: FakeGpu, in_precisions: Package, tmp_path: Path, failing: set[tuple[str, int]]
) -> None:
    package, last = in_precisions, len(in_precisions.manifest.routes) - 1
    here, out = this_machine(), tmp_path / "best.rare"
    build_engines(package, "tensorrt", "fp16", BuilderOptions(), here, out=out)
    before = files_of(tmp_path)
    failing.update({("fp16", last), ("fp32", last), ("int8", last)})
    with pytest.raises(BackendError, match="golden vector"):
        build_engines(package, "tensorrt", "best", BuilderOptions(), here, out=out)
    assert files_of(tmp_path) == before
    # The build of the second precision fails.
    failing.clear()
    shutil.rmtree(out)
    for path in tmp_path.iterdir():
        path.unlink()
    gpu.trt.fail("parse_from_file")
    with pytest.raises(BackendError, match="cannot be parsed"):
        build_engines(package, "tensorrt", "best", BuilderOptions(), here, out=out)
    assert list(tmp_path.iterdir()) == []
    assert gpu.live() == (0, 0, 0)


def test_best_needs_a_gpu(package: Package) -> None:
    with pytest.raises(BackendError, match="--precision best measures on the GPU"):
        build_engines(package, "tensorrt-rtx", "best", BuilderOptions(), machine())


# Interruptions, links, other programs


@pytest.mark.parametrize("callback", ["refresh", "update"])
def test_an_interrupt_stops_the_real_build_and_leaves_nothing(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, callback: str
) -> None:
    """TensorRT's bindings swallow what its callbacks raise; the build must end all the same."""
    pytest.importorskip("tensorrt_rtx")
    from rare_trt.engines import progress

    class Interrupted(progress.tqdm):
        pass

    def interrupt(self: object, *_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Interrupted, callback, interrupt)
    monkeypatch.setattr(progress, "tqdm", Interrupted)
    out = str(tmp_path / "never.rare")
    assert main(["build", "--backend", "tensorrt-rtx", "-o", out]) == 130
    assert list(tmp_path.iterdir()) == []


def test_a_link_out_of_the_package_is_never_written_or_removed_through(
    gpu: FakeGpu, tiny_package_folder: Path, tmp_path: Path
) -> None:
    own, victim = tmp_path / "own.rare", tmp_path / "victim"
    shutil.copytree(tiny_package_folder, own)
    victim.mkdir()
    (own / "engines").symlink_to(victim)
    with pytest.raises(PackageError, match="lies behind one"):
        build_engines(open_package(own), "tensorrt", "fp32", BuilderOptions(), this_machine())
    assert list(victim.iterdir()) == []
    (own / "engines").unlink()
    built, _ = build_engines(
        open_package(own), "tensorrt", "fp32", BuilderOptions(), this_machine()
    )
    # An engine to be replaced, of an older release, behind a link.
    shutil.move(str(own / "engines" / "tensorrt"), victim / "tensorrt")
    (own / "engines" / "tensorrt").symlink_to(victim / "tensorrt")
    values = json.loads((own / "manifest.json").read_text())
    for engine in values["engines"]:
        engine["library"] = "10.3.0"
    seal_anew(own, values)
    before = files_of(victim)
    with pytest.raises(PackageError, match="lies behind one"):
        build_engines(open_package(own), "tensorrt", "fp32", BuilderOptions(), this_machine())
    assert files_of(victim) == before
    assert built.manifest.engines


def test_a_package_changed_by_another_program_meanwhile_is_left_alone(
    gpu: FakeGpu, tiny_package_folder: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.rare"
    shutil.copytree(tiny_package_folder, own)
    opened = open_package(own)
    build_engines(open_package(own), "tensorrt", "fp32", BuilderOptions(), this_machine())
    before = files_of(own)
    with pytest.raises(OutputError, match="was changed by another program meanwhile"):
        options = BuilderOptions(tf32=True)
        build_engines(opened, "tensorrt", "fp32", options, this_machine())
    assert files_of(own) == before


def test_a_folder_that_cannot_be_written_is_reported_before_a_build(
    gpu: FakeGpu, tiny_package_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for out in (None, tmp_path / "new.rare"):
        with pytest.raises(OutputError, match="cannot be written to"):
            build_engines(
                open_package(tiny_package_folder),
                "tensorrt",
                "fp32",
                BuilderOptions(),
                this_machine(),
                out=out,
            )
    assert gpu.trt.configs == []


def test_the_package_can_be_named_by_a_dot(
    gpu: FakeGpu, tiny_package_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own.rare"
    shutil.copytree(tiny_package_folder, own)
    monkeypatch.chdir(own)
    assert main(["build", "--package", ".", "--backend", "tensorrt", "--precision", "fp32"]) == 0
    assert len(open_package(own).manifest.engines) == 2


@pytest.mark.parametrize(
    ("version", "fits"),
    [
        ("8.6.2", False),
        ("10.2.0", False),
        ("10.3.0", True),
        ("11.4.1", True),
        ("11.0.0rc1", True),
        ("12.0", False),
    ],
)
def test_releases_of_tensorrt_that_are_not_supported_are_named(
    gpu: FakeGpu, tiny_package_folder: Path, tmp_path: Path, version: str, fits: bool
) -> None:
    gpu.trt.__version__ = version
    here = this_machine()
    assert ("tensorrt" in here.libraries) == fits
    out = tmp_path / "x.rare"
    package = open_package(tiny_package_folder)
    if fits:
        built, _ = build_engines(package, "tensorrt", "fp32", BuilderOptions(), here, out=out)
        assert built.manifest.engines[0].library == version.removesuffix("rc1")
    else:
        with pytest.raises(BackendError, match=rf"tensorrt {version} is installed; expected 10\.3"):
            build_engines(package, "tensorrt", "fp32", BuilderOptions(), here, out=out)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--workspace", "0"],
        ["--workspace", "99999999999999999999"],
        ["--workspace", "much"],
        ["--overwrite"],
        ["--data", "x"],
        ["checkpoint", "--data", "x", "-o", "y.rare", "--plan"],
        ["mine.rare"],
    ],
)
def test_wrong_usage_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["build", *arguments])
    assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


# Compatibility


def entry_of(**changes: object) -> EngineEntry:
    package = open_package("hippocampus")
    graph = package.graph(0, "fp16")
    shapes = profile_from_route(package.manifest.routes[0], package.manifest.model, static=False)
    entry = EngineEntry(
        backend="tensorrt",
        precision="fp16",
        route=0,
        file="engines/x.engine",
        graph_sha256=package.manifest.graph_sha256(graph),
        library="10.13.0.35",
        platform=HERE,
        gpu="NVIDIA L4",
        compute_capabilities=("8.9",),
        options=BuilderOptions(),
        profile=shapes,
    )
    return replace(entry, **changes)


FITTING = machine(L4, tensorrt="10.13.0.35", rtx="1.7.1.116")
OTHER_ADA = replace(L4, name="NVIDIA RTX 4090")
HOPPER = replace(L4, name="NVIDIA H100", compute_capability="9.0")


@pytest.mark.parametrize(
    ("changes", "where", "words"),
    [
        ({}, FITTING, None),
        ({"graph_sha256": "0" * 64}, FITTING, "another graph"),
        ({"platform": "linux-sparc"}, FITTING, "built for linux-sparc"),
        ({}, machine(L4), "tensorrt is not installed"),
        ({}, machine(L4, tensorrt="10.14.0"), "this machine has 10.14.0"),
        ({"library": "10.14.0"}, FITTING, "built with tensorrt 10.14.0"),
        ({}, machine(None, tensorrt="10.13.0.35"), NO_GPU),
        ({}, machine(OTHER_ADA, tensorrt="10.13.0.35"), "built on NVIDIA L4"),
        ({}, machine(HOPPER, tensorrt="10.13.0.35"), "NVIDIA H100 has 9.0"),
        ({"gpu": None, "backend": "tensorrt-rtx", "library": "1.7.1.116"}, FITTING, None),
        (
            {"gpu": None, "backend": "tensorrt-rtx", "library": "1.6.0"},
            FITTING,
            "built with tensorrt-rtx 1.6.0",
        ),
        (
            {"options": BuilderOptions(hardware_compatibility="same_compute_capability")},
            machine(OTHER_ADA, tensorrt="10.13.0.35"),
            None,
        ),
        (
            {"options": BuilderOptions(hardware_compatibility="same_compute_capability")},
            machine(HOPPER, tensorrt="10.13.0.35"),
            "NVIDIA H100 has 9.0",
        ),
        (
            {"options": BuilderOptions(hardware_compatibility="ampere_plus")},
            machine(HOPPER, tensorrt="10.13.0.35"),
            None,
        ),
        (
            {"options": BuilderOptions(version_compatible=True)},
            machine(L4, tensorrt="10.14.0"),
            "pip install tensorrt-lean==10.13.0.35",
        ),
        (
            {"options": BuilderOptions(version_compatible=True)},
            replace(machine(L4, tensorrt="10.14.0"), lean_runtimes={"10.13.0.35": Path("lean.so")}),
            None,
        ),
        (
            {"options": BuilderOptions(version_compatible=True)},
            machine(L4, tensorrt="10.9.0"),
            "built with tensorrt 10.13.0.35",
        ),
        (
            {"options": BuilderOptions(version_compatible=True)},
            machine(L4, tensorrt="11.0.0rc1"),
            "built with tensorrt 10.13.0.35",
        ),
    ],
)
def test_the_obstacle_of_an_engine_that_cannot_run_is_named(
    changes: dict[str, object], where: Machine, words: str | None
) -> None:
    found = incompatibility(entry_of(**changes), open_package("hippocampus").manifest, where)
    if words is None:
        assert found is None
    else:
        assert found is not None and words in found


# The build plan


def test_the_plan_lists_the_backends_that_can_build_here() -> None:
    def backends(where: Machine, options: BuilderOptions | None = None) -> dict[str, str]:
        plans = plan_builds(where, options or BuilderOptions())
        return {plan.target.name: ",".join(plan.backends) for plan in plans}

    nothing = backends(machine())
    assert set(nothing.values()) == {""}
    rtx_only = backends(machine(rtx="1.7.1.116"))
    x86 = {target.name for target in TARGETS if target.platform == HERE}
    capable = {t.name for t in TARGETS if t.compute_capability in RTX_CAPABILITIES}
    assert {name for name, found in rtx_only.items() if found} == x86 & capable
    on_l4 = backends(machine(L4, tensorrt="10.13.0"))
    assert {name for name, found in on_l4.items() if found} == {"this machine"}
    same = BuilderOptions(hardware_compatibility="same_compute_capability")
    ada = {t.name for t in TARGETS if t.compute_capability == "8.9"} & x86
    found = backends(machine(L4, tensorrt="10.13.0"), same)
    assert {name for name, can in found.items() if can} == {"this machine"} | ada
    ampere = BuilderOptions(hardware_compatibility="ampere_plus")
    found = backends(machine(L4, tensorrt="10.13.0"), ampere)
    assert {name for name, can in found.items() if can} == {"this machine"} | x86


def test_this_machine_as_a_target() -> None:
    assert Target.from_machine(machine()) is None
    here = Target.from_machine(FITTING)
    assert here is not None
    assert (here.gpu, here.compute_capability, here.tensorrt) == ("NVIDIA L4", "8.9", "10.13.0.35")


def test_plan_prints_a_line_per_target_and_a_reason_where_nothing_can_be_built(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["build", "--plan"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for target in TARGETS:
        (line,) = (line for line in lines if line.split()[0] == target.name)
        assert "tensorrt" in line


def test_damaged_engines_do_not_hide_in_the_manifest(rtx_engines: Package, tmp_path: Path) -> None:
    folder = tmp_path / "unnamed.rare"
    shutil.copytree(rtx_engines.folder, folder)
    values = json.loads((folder / "manifest.json").read_text())
    del values["files"][values["engines"][0]["file"]]
    seal_anew(folder, values)
    with pytest.raises(PackageError, match="is named but not among the files"):
        open_package(folder)


# Engines for a package that ships with rare-trt lie in the user's own folder


@pytest.fixture
def installed(
    half: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Package, Path]:
    """A small package in an installation that cannot be written to, and this user's folder."""
    shipped, home = tmp_path / "site-packages" / "packages", tmp_path / "home"
    shutil.copytree(half.folder, shipped / "tiny.rare")
    for path in (*shipped.rglob("*"), shipped):
        path.chmod(0o555 if path.is_dir() else 0o444)
    monkeypatch.setattr(reading, "SHIPPED", shipped)
    monkeypatch.setenv("RARE_TRT_HOME", str(home))
    return open_package("tiny"), home


def test_engines_for_a_shipped_package_lie_outside_the_installation(
    gpu: FakeGpu,
    installed: tuple[Package, Path],
    tiny_scan: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    package, home = installed
    before = files_of(package.folder.parent)
    assert main(["build", "--package", "tiny", "--precision", "fp16"]) == 0
    folder = home / "engines" / package.manifest_sha256
    assert capsys.readouterr().out.splitlines()[-1] == str(folder)
    assert files_of(package.folder.parent) == before
    assert folder.stat().st_mode & 0o077 == 0
    # Every command finds them by the package's name.
    found = open_package("tiny")
    assert [entry.precision for entry in found.manifest.engines] == ["fp16", "fp16"]
    assert found.manifest_sha256 == package.manifest_sha256
    assert main(["info", "tiny"]) == 0
    shown = capsys.readouterr().out
    assert str(folder) in shown and shown.count("runs here") == 2
    assert main(["doctor", "tiny"]) == 0
    assert "tensorrt fp16  runs" in capsys.readouterr().out
    assert main(["verify", "tiny"]) == 0
    assert capsys.readouterr().out.count("tensorrt fp16") == 2
    out = tmp_path / "labels.nii.gz"
    command = ["infer", str(tiny_scan), "-o", str(out), "--package", "tiny"]
    assert main([*command, "--backend", "tensorrt", "--report", str(tmp_path / "r.json")]) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["backend"], report["precision"]) == ("tensorrt", "fp16")
    # A second build builds nothing, another precision stands beside the first.
    capsys.readouterr()
    assert main(["build", "--package", "tiny", "--precision", "fp16"]) == 0
    assert capsys.readouterr().out.count("exists already") == 2
    assert main(["build", "--package", "tiny", "--precision", "fp32"]) == 0
    assert len(open_package("tiny").manifest.engines) == 4
    open_package("tiny").check()
    # A copy takes them along, and finds all in itself.
    assert main(["build", "--package", "tiny", "-o", str(tmp_path / "copy.rare")]) == 0
    copy = open_package(tmp_path / "copy.rare")
    assert len(copy.manifest.engines) == 4 and copy.engines_folder is None
    copy.check()
    assert files_of(package.folder.parent) == before


def test_own_engines_that_are_replaced_are_removed(
    gpu: FakeGpu, installed: tuple[Package, Path]
) -> None:
    package, _ = installed
    here = this_machine()
    first, _ = build_engines(package, "tensorrt", "fp32", BuilderOptions(), here)
    gpu.trt.__version__ = "10.14.1"
    second, built = build_engines(first, "tensorrt", "fp32", BuilderOptions(), this_machine())
    assert all(item.seconds for item in built) and len(second.manifest.engines) == 2
    assert {entry.library for entry in second.manifest.engines} == {"10.14.1"}
    second.check()


def test_best_keeps_the_fastest_of_the_users_own_engines(
    gpu: FakeGpu, installed: tuple[Package, Path], failing: set[tuple[str, int]]
) -> None:
    package, home = installed
    here, before = this_machine(), files_of(package.folder)
    first, _ = build_engines(package, "tensorrt", "fp32", BuilderOptions(), here)
    found, _ = build_engines(first, "tensorrt", "best", BuilderOptions(), here)
    assert [entry.precision for entry in found.manifest.engines] == ["fp16", "fp16"]
    found.check()
    folder = home / "engines" / package.manifest_sha256
    assert len(list(folder.rglob("*.engine"))) == 2
    assert files_of(package.folder) == before


def test_engines_never_meet_another_package(gpu: FakeGpu, installed: tuple[Package, Path]) -> None:
    package, home = installed
    build_engines(package, "tensorrt", "fp32", BuilderOptions(), this_machine())
    folder = home / "engines" / package.manifest_sha256
    # The package is another one after an update: its engines are built anew.
    manifest = package.folder / "manifest.json"
    values = json.loads(manifest.read_text())
    values["created_with"] = "rare-trt 9.9"
    for path in (manifest, package.folder):
        path.chmod(0o755)
    seal_anew(package.folder, values)
    updated = open_package("tiny")
    assert updated.manifest.engines == ()
    # Nor are the old ones used under the new one's name.
    shutil.copytree(folder, home / "engines" / updated.manifest_sha256)
    with pytest.raises(PackageError, match=r"its engines are not those of the package.+remove"):
        open_package("tiny")


def test_own_engines_that_are_damaged_or_not_private_are_refused(
    gpu: FakeGpu, installed: tuple[Package, Path], tiny_scan: Path
) -> None:
    package, home = installed
    built, _ = build_engines(package, "tensorrt", "fp32", BuilderOptions(), this_machine())
    folder = home / "engines" / package.manifest_sha256
    remedy = f"remove {folder} and build the engines again"
    engine = folder / built.manifest.engines[0].file
    data = engine.read_bytes()
    engine.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(PackageError, match=f"damaged or tampered with: {remedy}"):
        open_package("tiny").check()
    with (
        Segmenter.load("tiny", "tensorrt") as segmenter,
        pytest.raises(PackageError, match="damaged or tampered"),
    ):
        segmenter.segment(tiny_scan)
    engine.write_bytes(data)
    (folder / "other.engine").write_bytes(b"?")
    with pytest.raises(PackageError, match="the manifest does not name it"):
        open_package("tiny").check()
    (folder / "other.engine").unlink()
    manifest = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(manifest[:-10])
    with pytest.raises(PackageError, match=remedy):
        open_package("tiny")
    (folder / "manifest.json").write_bytes(manifest)
    folder.chmod(0o777)
    for attempt in (
        lambda: open_package("tiny"),
        lambda: build_engines(package, "tensorrt", "fp16", BuilderOptions(), this_machine()),
    ):
        with pytest.raises((PackageError, OutputError), match="others may write to it"):
            attempt()
    folder.chmod(0o700)
    assert len(open_package("tiny").manifest.engines) == 2


def test_a_failed_build_leaves_nothing_in_the_users_folder(
    gpu: FakeGpu, installed: tuple[Package, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    package, home = installed

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        build_engines(package, "tensorrt", "fp32", BuilderOptions(), this_machine())
    assert not home.exists()


def test_a_user_without_a_home_reads_what_to_set(
    gpu: FakeGpu, installed: tuple[Package, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless(name: str) -> Path:
        raise RuntimeError("could not determine the home directory")

    monkeypatch.delenv("RARE_TRT_HOME")
    monkeypatch.setattr(cache, "user_data_path", homeless)
    package = open_package("tiny")
    assert package.manifest.engines == ()
    with pytest.raises(OutputError, match="set RARE_TRT_HOME, or name a copy"):
        build_engines(package, "tensorrt", "fp32", BuilderOptions(), this_machine())
    assert gpu.trt.configs == []


def test_a_signature_stays_valid_beside_own_engines(
    gpu: FakeGpu, installed: tuple[Package, Path], tmp_path: Path
) -> None:
    package, _ = installed
    package.folder.chmod(0o755)
    for command in (PRIVATE_KEY, PUBLIC_KEY):
        subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    sign_package("tiny", tmp_path / "key.pem")
    signed = open_package("tiny", require_signature=tmp_path / "public.pem")
    build_engines(signed, "tensorrt", "fp32", BuilderOptions(), this_machine())
    again = open_package("tiny", require_signature=tmp_path / "public.pem")
    assert len(again.manifest.engines) == 2


def test_the_installation_is_not_calibrated_in_place(
    installed: tuple[Package, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", "tiny", "--data", "x"]) == 1
    assert "is part of the installation" in capsys.readouterr().err
