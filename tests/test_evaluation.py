"""`rare-trt evaluate`: its measurements, tables and plot."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.quaternions import angle_axis2mat
from PIL import Image

from rare_trt import Grid, Segmenter, Volume, read_scan
from rare_trt.cli import main
from rare_trt.evaluation.cases import Case, CaseFiles, load_cases
from rare_trt.evaluation.dice import dice
from rare_trt.evaluation.measurements import (
    TILT_AXIS,
    Acquisition,
    Measurement,
    RejectedScan,
    acquisitions,
    labels_at,
    labels_on,
    measure,
)
from rare_trt.evaluation.simulation import reslice_labels, rotated_grid
from rare_trt.evaluation.summary import Summary, dice_png, interval, summaries, summaries_csv
from rare_trt.evaluation.surfaces import mean_surface_distance_mm
from rare_trt.package.reading import open_package
from rare_trt.scan.intensity import IntensityRule


@pytest.fixture(scope="module")
def case(examples: Path) -> Case:
    files = CaseFiles("one", examples / "hippocampus_1mm.nii.gz", examples / "truth/1mm.nii.gz")
    return load_cases([files], 1, 3, IntensityRule())[0]


def measured(segmenter: Segmenter, cases: list[Case], made: list[Acquisition]) -> list[Measurement]:
    """The rows of scans that must not be rejected."""
    rows: list[Measurement] = []
    for scan in measure(segmenter, cases, made):
        assert not isinstance(scan, RejectedScan)
        rows += scan
    return rows


def test_distance_between_surfaces_is_in_millimetres() -> None:
    truth = np.zeros((20, 20, 20), bool)
    truth[5:15, 5:15, 5:15] = True
    assert mean_surface_distance_mm(truth, truth, (1.0, 1.0, 1.0)) == 0.0
    # One point against another: 3 voxels of 2 mm.
    one, other = np.zeros((2, 20, 20, 20), bool)
    one[4, 4, 4] = other[7, 4, 4] = True
    assert mean_surface_distance_mm(one, other, (2.0, 1.0, 1.0)) == pytest.approx(6.0)
    # Two planes face to face, whichever is called found.
    one[:, :, :], other[:, :, :] = False, False
    one[4], other[9] = True, True
    for pair in ((one, other), (other, one)):
        assert mean_surface_distance_mm(*pair, (0.5, 1.0, 1.0)) == pytest.approx(2.5)
    assert np.isnan(mean_surface_distance_mm(one, np.zeros_like(one), (1.0, 1.0, 1.0)))


def test_labels_are_looked_up_in_the_world() -> None:
    grid = Grid((4, 4, 4), np.diag([2.0, 2.0, 2.0, 1.0]))
    labels = np.arange(64, dtype=np.uint8).reshape(4, 4, 4)
    fine = grid.subdivide((2, 2, 2))
    assert (labels_at(labels, grid, fine) == np.kron(labels, np.ones((2, 2, 2)))).all()
    beyond = grid.box((-1, 0, 0), (6, 4, 4))
    found = labels_at(labels, grid, beyond)
    assert (found[1:5] == labels).all()
    assert (found[[0, 5]] == 0).all()


def test_rotated_labels_are_compared_by_majority_vote(case: Case) -> None:
    """The manual label rotated and back: single points would cost perfect labels more."""
    rotated = rotated_grid(case.grid, angle_axis2mat(np.radians(20.0), TILT_AXIS), whole=True)
    labels = reslice_labels(case.labels, case.grid, rotated, 3)
    by_share = dice(labels_on(labels, rotated, case.grid, 3), case.labels, 3)
    by_point = dice(labels_at(labels, rotated, case.grid), case.labels, 3)
    assert min(by_share) > 0.97
    assert all(share > point for share, point in zip(by_share, by_point, strict=True))
    assert (labels_on(case.labels, case.grid, case.grid, 3) == case.labels).all()


def test_the_interval_holds_the_mean_and_narrows_with_the_cases() -> None:
    rng = np.random.default_rng(0)
    few, many = rng.normal(0.9, 0.02, 20), rng.normal(0.9, 0.02, 500)
    widths = []
    for values in (few, many):
        low, high = interval(values)
        assert low < values.mean() < high
        assert interval(values) == (low, high)
        widths.append(high - low)
        # Two standard errors to either side.
        assert high - low == pytest.approx(4 * values.std() / np.sqrt(len(values)), rel=0.15)
    assert widths[1] < 0.4 * widths[0]


def test_a_row_is_measured_on_the_runtimes_labels(case: Case, examples: Path) -> None:
    """The plain scan and its 2 mm average, computed here from the public interface alone."""
    made = {one.name: one for one in acquisitions(1.0)}
    truth = read_scan(examples / "truth/1mm.nii.gz").volume.voxels.astype(np.uint8)
    with Segmenter.load("hippocampus") as segmenter:
        rows = measured(segmenter, [case], [made["1 mm"]])
        result = segmenter.segment(examples / "hippocampus_1mm.nii.gz")
    expected = dice(result.labels, truth, 3)
    assert [row.label for row in rows] == ["anterior hippocampus", "posterior hippocampus"]
    assert [row.dice for row in rows] == pytest.approx(expected, abs=1e-9)
    assert [row.own_dice for row in rows] == pytest.approx(expected, abs=1e-9)
    assert [row.volume_mm3 for row in rows] == pytest.approx(list(result.volumes_mm3.values()))
    assert [row.expected_mm3 for row in rows] == [(truth == 1).sum(), (truth == 2).sum()]
    assert all(0.0 < row.surface_mm < 1.0 and row.milliseconds > 0.0 for row in rows)
    assert {row.route for row in rows} == {0}


def test_every_acquisition_keeps_scan_and_truth_in_place(case: Case) -> None:
    """An image of the labels themselves, scanned every way, still lies over the labels."""
    painted = replace(case, voxels=(case.labels > 0)[None].astype(np.float32) * 1000.0)
    made = acquisitions(1.0)
    assert len({one.name for one in made}) == len(made)
    for one in made:
        volume, truth = one.make(painted, np.random.default_rng(0))
        bright = volume.voxels[..., 0]
        if one.name.startswith("offset"):
            bright = bright - bright.min()
        found = labels_at((bright > 500.0).astype(np.uint8), volume.grid, truth.grid)
        both = 2.0 * ((found > 0) & (truth.labels > 0)).sum()
        overlap = both / ((found > 0).sum() + (truth.labels > 0).sum())
        coarse = max(volume.grid.spacing_mm)
        assert overlap > (0.85 if coarse <= 2 else 0.7 if coarse <= 4 else 0.5), one.name
        assert truth.labels.shape == truth.grid.shape


def test_labels_that_are_not_found_are_counted(case: Case) -> None:
    """A scan in which nothing can be found: distances are left out and counted."""
    with Segmenter.load("hippocampus") as segmenter:
        [plain] = [one for one in acquisitions(1.0) if one.name == "1 mm"]
        rows = measured(segmenter, [case, case], [plain])
    rows[1] = replace(rows[1], dice=0.0, surface_mm=float("nan"), volume_mm3=0.0)
    [found] = summaries(rows)
    assert (found.not_found, found.cases, found.routes) == (1, 2, (0,))
    assert found.surface_mm == pytest.approx(np.mean([rows[i].surface_mm for i in (0, 2, 3)]))
    assert found.lowest_dice == pytest.approx(rows[0].dice / 2)
    assert found.label_dice["posterior hippocampus"] == pytest.approx(rows[3].dice / 2)
    part = found.label_volume_error["posterior hippocampus"]
    assert part == pytest.approx((rows[3].volume_mm3 / rows[3].expected_mm3 - 2.0) / 2)
    header = summaries_csv([found]).decode().splitlines()[0].split(",")
    assert "dice anterior hippocampus" in header
    assert "volume_error posterior hippocampus" in header


@pytest.fixture(scope="module")
def two_cases(examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two crops, one of them under the name of a case held out from training."""
    folder = tmp_path_factory.mktemp("data")
    for part, source in (("images", "hippocampus_1mm.nii.gz"), ("labels", "truth/1mm.nii.gz")):
        (folder / part).mkdir()
        image = nib.load(examples / source)
        nib.save(image, folder / part / "hippocampus_292.nii.gz")
        nib.save(image.slicer[2:], folder / part / "hippocampus_001.nii.gz")
    return folder


def test_the_command_writes_tables_and_a_plot_of_held_out_cases(
    two_cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["evaluate", "--data", str(two_cases), "-o", str(out)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "1 cases, held out from training" in printed
    rows = list(csv.DictReader((out / "cases.csv").read_text().splitlines()))
    assert {row["case"] for row in rows} == {"hippocampus_292"}
    names = [one.name for one in acquisitions(1.0)]
    assert len(rows) == 2 * len(names)
    summary = list(csv.DictReader((out / "summary.csv").read_text().splitlines()))
    assert [row["acquisition"] for row in summary] == names
    by_name = {row["acquisition"]: row for row in summary}
    assert float(by_name["1 mm"]["dice"]) > float(by_name["8 mm"]["dice"]) > 0.5
    assert by_name["4 mm"]["routes"] == "2"
    # Zeros around a scan change nothing.
    assert by_name["twice the extent, zeros"]["dice"] == by_name["1 mm"]["dice"]
    with Image.open(out / "dice.png") as picture:
        assert picture.width > 800
    before = (out / "cases.csv").read_bytes()
    assert main(arguments) == 1
    assert "exists already" in capsys.readouterr().err
    assert (out / "cases.csv").read_bytes() == before


def test_without_held_out_cases_all_are_used_and_it_is_reported(
    two_cases: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = tmp_path / "data"
    shutil.copytree(two_cases, data)
    for part in ("images", "labels"):
        (data / part / "hippocampus_292.nii.gz").rename(data / part / "hippocampus_002.nii.gz")
    monkeypatch.setattr(
        "rare_trt.evaluation.measurements.acquisitions", lambda base: acquisitions(base)[:1]
    )
    assert main(["evaluate", "--data", str(data), "-o", str(tmp_path / "out")]) == 0
    assert "2 cases, some of them perhaps training cases" in capsys.readouterr().out


def crops(data: Path, into: Path, *, first: int) -> Path:
    """The scans of `data` from slice `first` of each axis on, as cases of other names."""
    for part in ("images", "labels"):
        (into / part).mkdir(parents=True)
        image = nib.load(data / part / "hippocampus_292.nii.gz")
        nib.save(image, into / part / "hippocampus_002.nii.gz")
        small = image.slicer[first:, first:, first:]
        nib.save(small, into / part / "hippocampus_004.nii.gz")
    return into


def test_rejected_scans_are_listed_and_the_others_measured(
    two_cases: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A crop that is large enough, and is not once it is 4 mm tighter."""
    image = nib.load(two_cases / "images/hippocampus_292.nii.gz")
    least = open_package("hippocampus").manifest.model.field_of_view_mm.min
    first = min(int(n - mm) - 6 for n, mm in zip(image.shape, least, strict=True))
    data, out = crops(two_cases, tmp_path / "data", first=first), tmp_path / "out"
    tighter = "4 mm tighter on every side"
    some = [one for one in acquisitions(1.0) if one.name in ("1 mm", "2 mm", tighter)]
    monkeypatch.setattr("rare_trt.evaluation.measurements.acquisitions", lambda base: some)
    assert main(["evaluate", "--data", str(data), "-o", str(out)]) == 0
    [line] = [x for x in capsys.readouterr().out.splitlines() if x.startswith(f"{tighter}: ")]
    assert f"1 of 2 rejected, the first as hippocampus_004 ({tighter}): " in line
    rows = list(csv.DictReader((out / "cases.csv").read_text().splitlines()))
    assert {r["case"] for r in rows if r["acquisition"] == tighter} == {"hippocampus_002"}
    assert {r["case"] for r in rows if r["acquisition"] == "1 mm"} == {
        "hippocampus_002",
        "hippocampus_004",
    }


def test_where_all_scans_are_rejected_nothing_is_written(
    two_cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    for part in ("images", "labels"):
        (data / part).mkdir(parents=True)
        image = nib.load(two_cases / part / "hippocampus_292.nii.gz")
        nib.save(image.slicer[:5, :5, :5], data / part / "hippocampus_292.nii.gz")
    assert main(["evaluate", "--data", str(data), "-o", str(out)]) == 1
    assert "scans was segmented: hippocampus_292 (1 mm): " in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("shape", [(35, 50, 8), (3, 2, 1)])
def test_every_acquisition_is_made_of_thin_scans_too(case: Case, shape: tuple[int, ...]) -> None:
    i, j, k = shape
    thin = replace(
        case,
        voxels=case.voxels[:, :i, :j, :k],
        labels=case.labels[:i, :j, :k],
        grid=case.grid.box((0, 0, 0), (i, j, k)),
    )
    for one in acquisitions(1.0):
        volume, truth = one.make(thin, np.random.default_rng(0))
        assert min(volume.voxels.shape) > 0
        assert truth.labels.shape == truth.grid.shape


def test_the_picture_shows_several_packages() -> None:
    one = Summary(
        *("1 mm", "spacing", (0,), 3, 0.9, 0.88, 0.91, 0.87, {"a": 0.9}, 0.9, 0.4, 0, 0.01),
        *({"a": 0.01}, 20.0),
    )
    other = replace(one, acquisition="noise", group="robustness")
    picture = dice_png({"ours": [one, other], "U-Net": [one, other]})
    assert picture.startswith(b"\x89PNG")
    assert picture != dice_png({"ours": [one, other]})


def test_a_scan_made_in_memory_needs_no_header(examples: Path) -> None:
    from rare_trt import Scan

    read = read_scan(examples / "hippocampus_2mm.nii.gz")
    made = Scan(Volume(read.volume.voxels, read.volume.grid))
    with Segmenter.load("hippocampus") as segmenter:
        assert (segmenter.segment(made).labels == segmenter.segment(read).labels).all()
