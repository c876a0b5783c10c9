"""Several scans in one run: their flags, table, names, what is skipped and what is left out."""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from rare_trt.cli import main
from rare_trt.errors import ScanError
from rare_trt.scan.label_mark import FIRST_BYTES, holds_labels
from rare_trt.segmenter import Segmenter
from rare_trt.storage.naming import names_path

NAMES = b"index\tname\n0\tbackground\n1\tanterior hippocampus\n2\tposterior hippocampus\n"


@pytest.fixture
def scans(tmp_path: Path, examples: Path) -> Path:
    """A folder with three example scans: a, b and c."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "abc":
        shutil.copy(examples / "hippocampus_2mm.nii.gz", folder / f"{name}.nii.gz")
    return folder


def invert(path: Path) -> None:
    """Makes a scan its own negative, which is flagged."""
    image = nib.load(path)
    voxels = image.get_fdata(dtype=np.float32)
    nib.save(nib.Nifti1Image(voxels.max() - voxels, image.affine), path)


def infer(*arguments: str | Path) -> int:
    return main(["infer", *map(str, arguments)])


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The sentence of an infer that must fail before any work."""
    assert infer(*arguments) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


# Flags reach everybody.


@pytest.mark.parametrize("as_folder", [True, False])
def test_flags_of_several_scans_are_printed_counted_and_named(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], as_folder: bool
) -> None:
    folder = shared_data / "reported" / "case-1" / "in"
    inverted, noise = folder / "inverted.nii.gz", folder / "noise.nii.gz"
    assert infer(*([folder] if as_folder else [noise, inverted]), "-o", tmp_path / "out") == 0
    out, err = capsys.readouterr()
    for scan in (inverted, noise):
        assert infer(scan, "-o", tmp_path / "one.nii.gz", "--overwrite") == 0
        alone = capsys.readouterr().out.splitlines()
        flags = [line.partition("look at this: ")[2] for line in alone if "look at this" in line]
        (line,) = (line for line in out.splitlines() if line.startswith(f"{scan}: "))
        assert f"{len(flags)} flags: {'; '.join(flags)}" in line
        assert "anterior hippocampus " in line
        assert f"  {scan}: {len(flags)} flags\n" in err
    assert "flagged, look at their labels (2):" in err
    assert "2 of 2 scans segmented" in out
    assert "segmenting" not in err, "a progress bar is for terminals"


def test_a_scan_without_flags_is_named_without(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    invert(scans / "b.nii.gz")
    assert infer(scans, "-o", tmp_path / "out", "--fail-on-flags") == 3
    out, err = capsys.readouterr()
    assert out.startswith(
        f"{scans / 'a.nii.gz'}: anterior hippocampus 2207 mm3, posterior hippocampus 1709 mm3; "
        "no flags\n"
    )
    assert "flagged, look at their labels (1):\n" in err
    assert "a.nii.gz" not in err


def test_fail_on_flags_is_an_exit_code_of_its_own(scans: Path, tmp_path: Path) -> None:
    a, bad = scans / "a.nii.gz", scans / "bad.nii.gz"
    flags = "--fail-on-flags"
    assert infer(scans, "-o", tmp_path / "honest", flags) == 0
    assert infer(a, "-o", tmp_path / "honest.nii.gz", flags) == 0
    invert(a)
    assert infer(scans, "-o", tmp_path / "out") == 0
    assert infer(a, "-o", tmp_path / "a.nii.gz", flags) == 3
    assert (tmp_path / "a.nii.gz").is_file()
    bad.write_bytes(b"not a scan")
    assert infer(scans, "-o", tmp_path / "some", flags) == 1


# The table.


def test_the_table_has_a_row_per_scan(scans: Path, tmp_path: Path) -> None:
    invert(scans / "b.nii.gz")
    (scans / "bad.nii.gz").write_bytes(b"not a scan")
    out, table = tmp_path / "out", tmp_path / "new" / "table.csv"
    assert infer(scans, "-o", out, "--table", table, "--report", tmp_path / "reports") == 1
    found = rows(table)
    assert [Path(row["scan"]).name for row in found] == [
        *("a.nii.gz", "b.nii.gz", "bad.nii.gz", "c.nii.gz"),
    ]
    for row in found:
        if row["status"] == "failed":
            assert row["reason"].startswith(f"{scans / 'bad.nii.gz'}: not a NIfTI file")
            assert row["route"] == row["flags"] == row["volume_mm3: anterior hippocampus"] == ""
            continue
        name = Path(row["scan"]).name.removesuffix(".nii.gz")
        report = json.loads((tmp_path / "reports" / f"{name}.json").read_text())
        assert row["labels"] == str(out / f"{name}.nii.gz")
        assert (row["status"], row["reason"], row["at_mm"]) == ("segmented", "", "")
        assert (row["route"], row["spacing_mm"]) == ("1", "2 x 2 x 2")
        assert row["computed"] == f"openvino {report['precision']}"
        assert row["flags"] == str(len(report["flags"]))
        assert row["flag_sentences"].split(" | ") == (report["flags"] or [""])
        for label, volume in report["volumes_mm3"].items():
            assert float(row[f"volume_mm3: {label}"]) == pytest.approx(volume, abs=1e-3)
        assert row["scan_sha256"] == report["scan"]["sha256"]
        for part in ("manifest", "graph", "weights"):
            assert row[f"{part}_sha256"] == report["package"][f"{part}_sha256"]
        assert float(row["seconds"]) > 0.0
    assert int(found[1]["flags"]) > 0


def test_one_scan_has_a_table_too(scans: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    assert infer(scans / "a.nii.gz", "--table", table) == 0
    (row,) = rows(table)
    assert (row["scan"], row["status"]) == (str(scans / "a.nii.gz"), "segmented")
    # Its own middle: the box is the whole scan.
    image = nib.load(scans / "b.nii.gz")
    middle = nib.affines.apply_affine(image.affine, (np.array(image.shape) - 1) / 2)
    at = ",".join(f"{x:g}" for x in middle)
    assert infer(scans / "b.nii.gz", "--table", table, "--overwrite", f"--at={at}") == 0
    (row,) = rows(table)
    assert (row["at_mm"], row["status"]) == (at, "segmented")
    bad = scans / "bad.nii.gz"
    bad.write_bytes(b"not a scan")
    assert infer(bad, "--table", table, "--overwrite") == 1
    (row,) = rows(table)
    assert (row["status"], row["reason"][: len(str(bad))]) == ("failed", str(bad))


def test_an_interrupted_run_leaves_a_whole_table(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = Segmenter.segment

    def interrupted(self: Segmenter, scan: Any, **options: Any) -> Any:
        calls.append(scan)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return segment(self, scan, **options)

    calls: list[Any] = []
    monkeypatch.setattr(Segmenter, "segment", interrupted)
    table, out = tmp_path / "table.csv", tmp_path / "out"
    assert infer(scans, "-o", out, "--table", table) == 130
    assert [row["status"] for row in rows(table)] == ["segmented", "failed", "failed"]
    assert rows(table)[2]["reason"] == "the run was interrupted before"
    assert files(out) == ["a.nii.gz", "a_dseg.tsv"]
    before = rows(table)[0]
    # Goes on where it was interrupted, to the table of a run that was not.
    assert infer(scans, "-o", out, "--table", table, "--skip-existing") == 0
    assert [row["status"] for row in rows(table)] == ["segmented"] * 3
    assert rows(table)[0] == before


def test_a_resumed_table_loses_no_row(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the folder is named, and whichever other scans a run segments."""
    monkeypatch.chdir(tmp_path)
    resume = ("-o", "out", "--table", "table.csv", "--skip-existing")
    assert infer("in", *resume) == 0
    before = rows(tmp_path / "table.csv")
    assert infer(scans, *resume) == 0
    assert infer(tmp_path / "out" / ".." / "in", *resume) == 0
    assert rows(tmp_path / "table.csv") == before
    more = tmp_path / "more"
    more.mkdir()
    shutil.copy(scans / "a.nii.gz", more / "d.nii.gz")
    assert infer("more", *resume) == 0
    first, *others = rows(tmp_path / "table.csv")
    assert (first["scan"], first["status"]) == ("more/d.nii.gz", "segmented")
    assert others == before


def test_flags_of_an_earlier_run_are_not_lost(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    invert(scans / "b.nii.gz")
    options = ("--table", tmp_path / "t.csv", "--skip-existing", "--fail-on-flags")
    assert infer(scans, "-o", tmp_path / "out", *options) == 3
    before = rows(tmp_path / "t.csv")
    for one, code in (("a", 0), ("b", 3)):
        capsys.readouterr()
        labels = tmp_path / "out" / f"{one}.nii.gz"
        assert infer(scans / f"{one}.nii.gz", "-o", labels, *options) == code
        assert ("flagged when it was segmented" in capsys.readouterr().out) is (code == 3)
    assert infer(scans, "-o", tmp_path / "out", *options) == 3
    out, err = capsys.readouterr()
    assert f"{scans / 'b.nii.gz'}: skipped, all of its outputs exist; flagged when" in out
    assert f"look at their labels (1):\n  {scans / 'b.nii.gz'}: flagged when it was" in err
    assert rows(tmp_path / "t.csv") == before


def test_a_file_that_is_no_table_is_replaced_only_on_request(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.csv"
    table.write_text("precious\n")
    options = (scans / "a.nii.gz", "-o", tmp_path / "a.nii.gz", "--table", table)
    assert "pass --overwrite" in refused(capsys, *options, "--skip-existing")
    assert infer(*options, "--skip-existing", "--overwrite") == 0
    assert rows(table)[0]["status"] == "segmented"


def test_no_cell_of_a_table_is_a_formula(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scans)
    for letter, name in zip("abc", ("=1+1", "@sum", "+x"), strict=True):
        Path(f"{letter}.nii.gz").rename(f"{name}.nii.gz")
    Path("-1.nii.gz").write_bytes(b"not a scan")
    for options in ((), ("--skip-existing",)):
        assert infer(".", "-o", tmp_path / "out", "--table", tmp_path / "t.csv", *options) == 1
        found = rows(tmp_path / "t.csv")
        assert sorted(row["scan"] for row in found) == [
            *("./+x.nii.gz", "./-1.nii.gz", "./=1+1.nii.gz", "./@sum.nii.gz"),
        ]
        assert [row["status"] for row in found].count("segmented") == 3
        assert not [c for row in found for c in row.values() if c.startswith(("=", "+", "-", "@"))]


def test_a_table_that_may_not_be_written_is_refused_before_the_work(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (scans, "-o", tmp_path / "out", "--table")
    table = tmp_path / "table.csv"
    table.write_text("precious\n")
    assert "exists already" in refused(capsys, *arguments, table)
    assert "no table of this version" in refused(capsys, *arguments, table, "--skip-existing")
    assert table.read_text() == "precious\n"
    assert "ends in .csv" in refused(capsys, *arguments, tmp_path / "table.tsv")
    assert "cannot be written" in refused(capsys, *arguments, table / "below.csv")
    both = refused(capsys, *arguments, tmp_path / "x.csv", "--report", tmp_path / "x.csv")
    assert "x.csv: is to be a file and a folder" in both
    assert "written twice" in refused(
        *(capsys, scans / "a.nii.gz", "--table", tmp_path / "x.csv"),
        *("--report", tmp_path / "x.csv"),
    )
    assert files(tmp_path) == ["in/a.nii.gz", "in/b.nii.gz", "in/c.nii.gz", "table.csv"]
    assert infer(*arguments, table, "--overwrite") == 0
    assert len(rows(table)) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' names are Unicode")
def test_a_table_is_utf_8_whatever_a_scan_is_called(scans: Path, tmp_path: Path) -> None:
    odd = scans / 'o"l\udce9, ä.nii.gz'
    (scans / "a.nii.gz").rename(odd)
    table, out = tmp_path / "table.csv", tmp_path / "out"
    for options in ((), ("--skip-existing",)):
        assert infer(scans, "-o", out, "--table", table, *options) == 0
        (row,) = (row for row in rows(table) if ", " in row["scan"])
        assert row["scan"] == f'{scans}/o"l\\udce9, ä.nii.gz'
        assert row["status"] == "segmented"


# Names of outputs.


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ("sub-01_desc-hippocampus_dseg.nii.gz", "sub-01_desc-hippocampus_dseg.tsv"),
        ("x_dseg.nii", "x_dseg.tsv"),
        ("x.nii.gz", "x_dseg.tsv"),
        ("x_labels.nii", "x_labels_dseg.tsv"),
        ("dseg.nii.gz", "dseg_dseg.tsv"),
    ],
)
def test_label_names_stand_beside_labels_as_in_bids(labels: str, names: str) -> None:
    assert names_path(Path("folder", labels)) == Path("folder", names)


def test_a_bids_name_gets_bids_label_names(shared_data: Path, tmp_path: Path) -> None:
    scan = shared_data / "reported" / "case-11" / "sub-01_desc-crop_T1w.nii.gz"
    assert infer(scan, "-o", tmp_path / "sub-01_desc-hippocampus_dseg.nii.gz") == 0
    assert files(tmp_path) == [
        "sub-01_desc-hippocampus_dseg.nii.gz",
        "sub-01_desc-hippocampus_dseg.tsv",
    ]


@pytest.mark.parametrize("as_folder", [True, False])
def test_outputs_in_folders_have_the_scans_name(
    scans: Path, tmp_path: Path, as_folder: bool
) -> None:
    out, reports, pictures = (tmp_path / name for name in ("out", "reports", "pictures"))
    if not as_folder:
        for folder in (out, reports, pictures):
            folder.mkdir()
    inputs = [scans] if as_folder else [scans / "a.nii.gz"]
    assert infer(*inputs, "-o", out, "--report", reports, "--picture", pictures) == 0
    for name in "abc" if as_folder else "a":
        assert (out / f"{name}.nii.gz").is_file()
        assert (out / f"{name}_dseg.tsv").is_file()
        assert json.loads((reports / f"{name}.json").read_text())["backend"] == "openvino"
        assert (pictures / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("option", "name"), [("--report", "r.json"), ("--picture", "p.png")])
def test_reports_and_pictures_of_several_do_not_go_into_one_file(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, name: str
) -> None:
    sentence = refused(capsys, scans, "-o", tmp_path / "out", option, tmp_path / name)
    assert f"{name}: names a file; expected a folder for several scans" in sentence
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("several", [True, False])
def test_label_names_that_deleted_labels_left_are_no_obstacle(
    scans: Path, tmp_path: Path, several: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    inputs = [scans] if several else [scans / "a.nii.gz"]
    names = out / "a_dseg.tsv"
    names.write_bytes(NAMES)
    assert infer(*inputs, "-o", out) == 0
    assert (out / "a.nii.gz").is_file()
    # Somebody else's file stays.
    for content in (NAMES.replace(b"anterior", b"front of the"), b"index\tname\tcolor\n"):
        (out / "a.nii.gz").unlink()
        names.write_bytes(content)
        assert infer(*inputs, "-o", out) == 1
        assert "a_dseg.tsv: exists already" in capsys.readouterr().err
        assert names.read_bytes() == content
        assert not (out / "a.nii.gz").exists()
        assert infer(*inputs, "-o", out, "--overwrite") == 0
        assert names.read_bytes() == NAMES


# Labels and scans are distinguished by their headers.


def test_a_scan_beside_its_labels_is_segmented(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """x.nii.gz is the scan and x.nii its labels, by their own headers."""
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(shared_data / "reported" / "case-5" / "in" / "x.nii.gz", folder)
    assert infer(folder / "x.nii.gz", "-o", folder / "x.nii") == 0
    assert infer(folder, "-o", tmp_path / "out") == 0
    out, err = capsys.readouterr()
    line = "x.nii.gz: anterior hippocampus 2064 mm3, posterior hippocampus 1442 mm3; no flags\n"
    assert line in out
    assert f"{folder / 'x.nii'}: holds labels, as its header states" in err
    with gzip.open(tmp_path / "out" / "x.nii.gz") as labels:
        assert labels.read() == (folder / "x.nii").read_bytes()


@pytest.mark.parametrize("version", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_the_first_bytes_show_whether_a_file_holds_labels(
    tmp_path: Path, version: Any, order: str, suffix: str
) -> None:
    voxels = np.random.default_rng(0).integers(0, 255, (40, 40, 40), np.uint8)
    for name in ("label", "none", "estimate"):
        header = version.header_class(endianness=order)
        header.set_intent(name)
        path = tmp_path / f"{name}{suffix}"
        nib.save(version(voxels, np.eye(4), header), path)
        # Whatever follows is not read: here it is cut off.
        path.write_bytes(path.read_bytes()[:FIRST_BYTES])
        assert holds_labels(path) is (name == "label")


def test_no_file_that_cannot_be_read_holds_labels(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nii")
    (tmp_path / "empty.nii").touch()
    (tmp_path / "damaged.nii.gz").write_bytes(b"\x1f\x8bnothing")
    (tmp_path / "text.nii").write_text("hello " * 200)
    for name in ("pipe.nii", "empty.nii", "damaged.nii.gz", "text.nii", "absent.nii", "."):
        assert holds_labels(tmp_path / name) is False


def test_labels_named_as_a_scan_are_refused(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = scans / "labels.nii.gz"
    assert infer(scans / "a.nii.gz", "-o", labels) == 0
    capsys.readouterr()
    assert f"{labels}: the file holds labels" in refused(capsys, labels)
    with Segmenter.load() as segmenter, pytest.raises(ScanError, match="the file holds labels"):
        segmenter.segment(labels)
    assert infer(scans / "a.nii.gz", labels, "-o", tmp_path / "out") == 1
    assert f"{labels}: the file holds labels" in capsys.readouterr().err
    only = tmp_path / "only"
    only.mkdir()
    shutil.copy(labels, only)
    sentence = refused(capsys, only, "-o", tmp_path / "x")
    assert f"{only}: a folder without scans (its 1 NIfTI files hold labels" in sentence


# Folders.


def test_complete_scans_are_skipped_and_unfinished_ones_done_again(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, reports = tmp_path / "out", tmp_path / "reports"
    arguments = (scans, "-o", out, "--report", reports, "--skip-existing")
    assert infer(*arguments) == 0
    whole = files(tmp_path)
    (out / "b.nii.gz").unlink()
    (reports / "c.json").unlink()
    before = (out / "a.nii.gz").stat().st_mtime_ns
    capsys.readouterr()
    assert infer(*arguments) == 0
    printed = capsys.readouterr().out
    assert f"{scans / 'a.nii.gz'}: skipped, all of its outputs exist\n" in printed
    assert "2 of 3 scans segmented" in printed
    assert "1 skipped" in printed
    assert files(tmp_path) == whole
    assert (out / "a.nii.gz").stat().st_mtime_ns == before
    assert infer(*arguments) == 0
    assert "0 of 3 scans segmented" in capsys.readouterr().out


def test_skip_existing_replaces_nothing_of_others(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, reports, pictures = (tmp_path / name for name in ("out", "reports", "pictures"))
    out.mkdir()
    reports.mkdir()
    pictures.mkdir()
    others = (out / "a.nii.gz", reports / "b.json", pictures / "c.png")
    for path in others:
        path.write_bytes(b"precious")
    options = ("--report", reports, "--picture", pictures, "--skip-existing")
    assert infer(scans, "-o", out, *options) == 1
    captured = capsys.readouterr()
    assert "0 of 3 scans" in captured.out
    for path in others:
        assert f"{path}: exists already" in captured.err
        assert path.read_bytes() == b"precious"


def test_one_complete_scan_is_skipped(scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan = scans / "a.nii.gz"
    assert infer(scan, "--skip-existing") == 0
    capsys.readouterr()
    assert infer(scan, "--skip-existing") == 0
    assert capsys.readouterr().out == f"{scan}: skipped, all of its outputs exist\n"
    scan.with_name("a_labels_dseg.tsv").unlink()
    assert infer(scan, "--skip-existing") == 0
    assert scan.with_name("a_labels_dseg.tsv").read_bytes() == NAMES


@pytest.fixture
def tree(scans: Path) -> Iterator[Path]:
    """The folder of scans, two of them in folders below, with links in circles."""
    below = scans / "sub-01" / "anat"
    below.mkdir(parents=True)
    (scans / "b.nii.gz").rename(below / "b.nii.gz")
    (scans / "sub-02").mkdir()
    (scans / "c.nii.gz").rename(scans / "sub-02" / "b.nii.gz")
    (below / "up").symlink_to(scans)
    (scans / "sub-03").symlink_to(scans / "sub-02")
    (scans / ".hidden").mkdir()
    shutil.copy(scans / "a.nii.gz", scans / ".hidden")
    yield scans


def test_folders_below_are_searched_on_request(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shallow = tmp_path / "shallow"
    assert infer(tree, "-o", shallow) == 0
    assert files(shallow) == ["a.nii.gz", "a_dseg.tsv"]
    assert "folders (3): --recursive segments their scans" in capsys.readouterr().err
    # Outputs inside are no inputs, the next time either.
    out = tree / "out"
    for _ in range(2):
        options = ("--report", out / "reports", "--overwrite")
        assert infer(tree, "-o", out, "--recursive", *options) == 0
        err = capsys.readouterr().err
        assert files(out) == [
            *("a.nii.gz", "a_dseg.tsv", "reports/a.json"),
            *("reports/sub-01/anat/b.json", "reports/sub-02/b.json"),
            *("sub-01/anat/b.nii.gz", "sub-01/anat/b_dseg.tsv"),
            *("sub-02/b.nii.gz", "sub-02/b_dseg.tsv"),
        ]
        for link in ("sub-01/anat/up", "sub-03"):
            assert f"{tree / link}: a link to a folder that is searched already" in err
    assert f"{out}: outputs are written there" in err


def test_everything_that_is_left_out_is_named(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("notes.txt", "a.json", "b.json", "LICENCE"):
        (scans / name).touch()
    assert infer(scans, "-o", tmp_path / "out") == 0
    assert (
        f"rare-trt: left out (1):\n  {scans}: files that are not named as scans "
        "(.json: 2, .txt: 1, no ending: 1)\n" in capsys.readouterr().err
    )


def test_a_missing_folder_is_called_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not a label file of the wrong name."""
    missing = tmp_path / "missing"
    sentence = refused(capsys, missing, "-o", tmp_path / "out")
    assert f"{missing}: no such file" in sentence


def test_a_folder_without_scans_is_called_what_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    (folder / "below").mkdir(parents=True)
    assert "but with folders: --recursive searches them" in refused(capsys, folder, "-o", out)
    sentence = refused(capsys, folder, "-o", out, "--recursive")
    assert "a folder without scans (.nii, .nii.gz, .mgz, .mgh): check the path" in sentence
    (folder / "below" / "IM0001").write_bytes(bytes(128) + b"DICM" + bytes(100))
    sentence = refused(capsys, folder / "below", "-o", out)
    assert "a folder of DICOM files; expected NIfTI scans (.nii or .nii.gz)" in sentence
    assert "dcm2niix" in sentence
    assert sentence == refused(capsys, folder / "below", "-o", out, "--recursive")
