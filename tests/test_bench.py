"""`rare-trt bench`: what it measures adds up, and it refuses what it cannot measure."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import FakeGpu

from rare_trt import Segmenter, read_scan
from rare_trt.bench.benchmark import STAGES, bench, peak_host_bytes, warm_runs
from rare_trt.bench.figures import Bench, BenchScan, Repeats
from rare_trt.bench.machine_load import MAX_LOAD, load_of_others, require_quiet
from rare_trt.bench.scans import package_scans
from rare_trt.cli import main, parser
from rare_trt.errors import BackendError, RareTrtError, ScanError
from rare_trt.package.reading import Package, open_package

FEW = Repeats(cold=1, rounds=2, turns=2)


@pytest.fixture(scope="module")
def package(tiny_package_folder: Path) -> Package:
    return open_package(tiny_package_folder)


@pytest.fixture(scope="module")
def found(package: Package, cache_folder: Path) -> Bench:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RARE_TRT_CACHE", str(cache_folder))
        return bench(package, "openvino", (), (), FEW, anyway=True)


def test_every_route_is_measured_on_several_shapes(package: Package, found: Bench) -> None:
    routes = [entry.index for entry in package.manifest.routes]
    assert [warm.route for warm in found.warm] == routes
    assert [cold.route for cold in found.cold] == routes
    for warm in found.warm:
        shapes = {scan.shape for scan in found.scans if scan.route == warm.route}
        assert len(shapes) == len(warm.scans) >= 4
        assert warm.first_call.runs == FEW.rounds
        assert warm.new_shape is not None
        assert warm.new_shape.runs == FEW.rounds * (len(shapes) - 1)
        assert warm.repeated.runs == FEW.rounds * FEW.turns * len(shapes)
        assert len(warm.round_p50) == FEW.rounds
        assert warm.repeated.p50 <= warm.repeated.p90 <= warm.repeated.p99
        assert list(warm.stages) == [*STAGES, "other"]


def test_stages_add_up_to_the_whole(package: Package, tmp_path: Path) -> None:
    scan = package.folder / "golden" / "route0_typical.nii.gz"
    shown = BenchScan(scan.name, 0, (36, 48, 38), (1.0, 1.0, 1.0))
    runs = warm_runs(package, "openvino", {0: ["fp32"]}, [(scan, shown)], 9, 0, tmp_path / "out")
    assert [run.kind for run in runs] == ["first call"] + ["repeated"] * 8
    assert set(runs[0].stages) == {*STAGES, "load"}
    # The stages lie inside the whole, and hold nearly all of it.
    shares = [sum(run.stages.values()) / run.milliseconds for run in runs]
    assert max(shares) <= 1.0
    assert np.median(shares) > 0.5


def test_memory_is_that_of_a_process_of_its_own(found: Bench) -> None:
    for warm in found.warm:
        assert warm.host_bytes is not None
        # Python, numpy and OpenVINO alone take some tens of MiB.
        assert 50 << 20 < warm.host_bytes < 4 << 30
        assert warm.device_bytes == 0


def test_memory_is_unknown_where_the_system_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self: "Name: python")
    assert peak_host_bytes() is None


def test_scans_are_real_and_lie_in_the_field_of_view(package: Package, tmp_path: Path) -> None:
    view = package.manifest.model.field_of_view_mm
    spacing = {entry.index: entry.spacing_mm for entry in package.manifest.routes}
    for path in package_scans(package, tmp_path / "scans"):
        volume = read_scan(path).volume
        assert set(volume.grid.spacing_mm) == {spacing[int(path.name[5])]}
        assert (np.array(volume.grid.extent_mm) <= view.max).all()
        assert (np.array(volume.grid.extent_mm) >= view.min).all()
        assert len(np.unique(volume.voxels)) > 50


def test_the_command_writes_tables_and_json(
    tiny_package_folder: Path,
    tiny_scan: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "bench.json"
    asked = ["bench", str(tiny_package_folder), str(tiny_scan), "--backend", "openvino"]
    asked += ["--precision", "fp32", "--anyway", "--json", str(out)]
    options = parser().parse_args(asked)
    options.repeats = FEW
    assert options.run(options) == 0
    values = json.loads(out.read_text())
    assert set(values) == set(Bench.__dataclass_fields__)
    (warm,) = values["warm"]
    assert (warm["route"], warm["backend"], warm["precision"]) == (0, "openvino", "fp32")
    assert warm["new_shape"] is None
    assert set(values["machine"]) == {"platform", "cpu", "threads", "gpu", "libraries"}
    assert "other processes take" in values["load"]
    printed = capsys.readouterr().out
    assert "| 0 | openvino fp32 |" in printed
    assert values["machine"]["cpu"] in printed
    assert main(asked) == 1
    assert "bench.json: exists already" in capsys.readouterr().err


def test_precisions_take_turns_and_are_refused_where_none_has_them(package: Package) -> None:
    with pytest.raises(
        BackendError, match=r"precision int8 is not on offer here .* offers fp32: choose"
    ):
        bench(package, "openvino", ("int8",), (), FEW, anyway=True)
    with (
        Segmenter(package, "openvino", precision="fp16") as segmenter,
        pytest.raises(BackendError, match=r"route 0 cannot run in fp16 on this machine .*\(fp32\)"),
    ):
        segmenter.segment(package.folder / "golden" / "route0_typical.nii.gz")


def test_a_precision_asked_for_is_what_answers(examples: Path) -> None:
    scan = examples / "hippocampus_2mm.nii.gz"
    for precision in ("fp32", "fp16"):
        with Segmenter.load("hippocampus", "openvino", precision=precision) as segmenter:
            assert segmenter.segment(scan).precision == precision


def test_scans_of_one_name_are_refused(package: Package, tiny_scan: Path, tmp_path: Path) -> None:
    other = tmp_path / tiny_scan.name
    other.write_bytes(tiny_scan.read_bytes())
    with pytest.raises(ScanError, match="two scans have this name"):
        bench(package, "openvino", (), (tiny_scan, other), FEW, anyway=True)


def test_an_unknown_precision_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "--precision", "fp8"])
    assert "'fp8' is not a precision; expected some of fp32" in capsys.readouterr().err


@pytest.fixture
def busy() -> Iterator[None]:
    """A process that keeps one CPU busy."""
    code = "print(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.kill()


def test_a_loaded_machine_is_refused(busy: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert load_of_others() > MAX_LOAD
    with pytest.raises(RareTrtError, match=r"expected at most 0\.1 for timings .* pass --anyway"):
        require_quiet(anyway=False)
    assert "other processes take" in require_quiet(anyway=True)
    assert main(["bench"]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_an_engine_times_its_copies_apart(gpu: FakeGpu, tiny_engines: Package) -> None:
    scan = tiny_engines.folder / "golden" / "route0_typical.nii.gz"
    with Segmenter(tiny_engines, "tensorrt") as segmenter:
        first = segmenter.segment(scan)
        held = segmenter.device_bytes
        again = segmenter.segment(scan)
        assert segmenter.device_bytes == held > 0
    assert first.backend == again.backend == "tensorrt"
    assert {"inputs", "graph", "labels"} <= set(again.timings_ms)
    assert np.array_equal(first.labels, again.labels)
