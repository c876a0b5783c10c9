"""The command line as its users meet it: outputs, exit codes, one sentence per error."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from rare_trt.cli import main
from rare_trt.overlay import PANEL_PIXELS
from rare_trt.package.reading import open_package
from rare_trt.segmenter import Segmenter

DIRTY = b"SMITH^JOHN 1961"


@pytest.fixture
def scan(tmp_path: Path, examples: Path) -> Path:
    """An example scan in a folder of its own."""
    path = tmp_path / "in" / "scan.nii.gz"
    path.parent.mkdir()
    shutil.copy(examples / "hippocampus_2mm.nii.gz", path)
    return path


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Runs a command that must fail: exit 1 and one line on stderr, which is returned."""
    assert main([str(argument) for argument in arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("rare-trt: ")
    assert err.count("\n") == 1
    return err


def test_one_scan_writes_beside_itself(scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["infer", str(scan)]) == 0
    assert files(scan.parent) == ["scan.nii.gz", "scan_labels.nii.gz", "scan_labels_dseg.tsv"]
    source, labels = nib.load(scan), nib.load(scan.with_name("scan_labels.nii.gz"))
    assert labels.shape == source.shape
    assert labels.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(labels.affine, source.affine)
    assert set(np.unique(labels.dataobj)) == {0, 1, 2}
    names = scan.with_name("scan_labels_dseg.tsv").read_text().splitlines()
    assert names == [
        "index\tname",
        "0\tbackground",
        "1\tanterior hippocampus",
        "2\tposterior hippocampus",
    ]
    assert "route 1" in capsys.readouterr().out


@pytest.mark.parametrize("orientation", ["LPS", "PIR", "oblique"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_labels_keep_shape_affine_and_order(scan: Path, orientation: str, suffix: str) -> None:
    image = nib.load(scan)
    if orientation == "oblique":
        turn = np.eye(4)
        turn[:3, :3] = nib.eulerangles.euler2mat(0.2, -0.3, 0.1)
        image = nib.Nifti1Image(np.asarray(image.dataobj), turn @ image.affine, image.header)
    else:
        target = nib.orientations.axcodes2ornt(orientation)
        image = image.as_reoriented(
            nib.orientations.ornt_transform(nib.io_orientation(image.affine), target)
        )
    path = scan.with_name(f"turned{suffix}")
    nib.save(image, path)
    out = scan.with_name(f"out{suffix}")
    assert main(["infer", str(path), "-o", str(out)]) == 0
    labels = nib.load(out)
    assert labels.shape == image.shape
    np.testing.assert_array_equal(labels.affine, nib.load(path).affine)
    for code in ("sform_code", "qform_code"):
        assert labels.header[code] == nib.load(path).header[code]
    # The same anatomy as straight on, whatever the order.
    assert main(["infer", str(scan), "-o", str(scan.with_name("straight.nii.gz"))]) == 0
    straight = np.asarray(nib.load(scan.with_name("straight.nii.gz")).dataobj)
    found = np.asarray(nib.as_closest_canonical(labels).dataobj)
    np.testing.assert_array_equal(found, straight)


def test_nothing_that_could_name_a_patient_or_mislead_a_viewer_is_kept(scan: Path) -> None:
    image = nib.load(scan)
    header = image.header
    for field in ("descrip", "aux_file", "intent_name", "db_name"):
        header[field] = DIRTY
    header["cal_max"], header["intent_code"] = 900.0, 3
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", DIRTY))
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine, header), scan)
    assert DIRTY in gzip.decompress(scan.read_bytes())
    out = scan.with_name("out.nii.gz")
    assert main(["infer", str(scan), "-o", str(out)]) == 0
    assert DIRTY not in gzip.decompress(out.read_bytes())
    labels = nib.load(out).header
    assert (labels["cal_max"], *labels.get_intent()) == (0.0, "label", (), "rare-trt labels")
    assert labels.get_slope_inter() in ((1.0, 0.0), (None, None))


def test_report_and_picture(scan: Path, tmp_path: Path) -> None:
    report, picture = tmp_path / "out" / "r.json", tmp_path / "out" / "p.png"
    arguments = ["infer", str(scan), "-o", str(tmp_path / "out/l.nii.gz"), "--spacing-out", "1"]
    assert main([*arguments, "--report", str(report), "--picture", str(picture)]) == 0
    values = json.loads(report.read_text())
    assert values["backend"] == "openvino"
    entries = open_package("hippocampus").manifest.calibration
    precisions = [v.arithmetic for entry in entries if entry.route == 1 for v in entry.variants]
    assert values["precision"] in precisions
    assert values["scan"]["sha256"] == sha256(scan.read_bytes()).hexdigest()
    assert set(values["versions"]) == {"rare-trt", "openvino", "numpy", "nibabel"}
    assert values["route"]["route"] == 1
    assert values["route"]["resampled"] is False
    assert values["flags"] == []
    assert {"read", "prepare", "plan", "graph", "labels"} <= set(values["timings_ms"])
    assert all(len(values["package"][key]) == 64 for key in values["package"] if "sha256" in key)
    labels = np.asarray(nib.load(tmp_path / "out/l.nii.gz").dataobj)
    for label, volume in enumerate(values["volumes_mm3"].values(), start=1):
        assert volume == pytest.approx((labels == label).sum(), rel=1e-6)
    with Image.open(picture) as image:
        pixels = np.asarray(image)
    orange, blue = (230, 159, 0), (86, 180, 233)
    for colour in (orange, blue):
        # The legend shows the pure colour; the planes show it over the scan.
        assert (pixels == colour).all(axis=-1).any()
    planes = pixels[: 3 * PANEL_PIXELS].reshape(-1, 3).astype(int)
    assert len(np.unique(planes)) > 100, "the scan is there"
    assert (np.ptp(planes, axis=1) > 30).sum() > 3000, "the labels are there"


def test_several_scans_go_into_a_folder_under_their_own_names(
    scan: Path, tmp_path: Path, examples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(examples / "hippocampus_1mm.nii.gz", scan.with_name("other.nii.gz"))
    scan.with_name("bad.nii").write_bytes(b"not a scan")
    out = tmp_path / "out"
    assert main(["infer", str(scan.parent), "-o", str(out)]) == 1
    assert files(out) == ["other.nii.gz", "other_dseg.tsv", "scan.nii.gz", "scan_dseg.tsv"]
    captured = capsys.readouterr()
    assert "2 of 3 scans" in captured.out
    assert "not segmented (1)" in captured.err
    assert "bad.nii: not a NIfTI file" in captured.err
    # Without --overwrite each existing output is a failure of its own.
    before = {name: (out / name).stat().st_mtime_ns for name in files(out)}
    assert main(["infer", str(scan.parent), "-o", str(out)]) == 1
    assert {name: (out / name).stat().st_mtime_ns for name in files(out)} == before


@pytest.mark.parametrize("name", ["labels.nii.gz", "labels.nii", "there.txt"])
def test_several_scans_do_not_go_into_what_names_a_file(
    scan: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = scan.with_name("other.nii.gz")
    shutil.copy(scan, other)
    (tmp_path / "there.txt").write_text("kept")
    assert main(["infer", str(scan), str(other), "-o", str(tmp_path / name), "--overwrite"]) == 1
    assert "expected a folder for several scans" in capsys.readouterr().err
    assert not (tmp_path / name).is_dir()


def test_scans_of_a_folder_are_segmented_as_each_alone(
    scan: Path, tmp_path: Path, examples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reading and writing in parallel mixes up no scans, and hides no failure."""
    for name in ("first", "other", "third"):
        shutil.copy(examples / "hippocampus_1mm.nii.gz", scan.with_name(f"{name}.nii.gz"))
    for name in ("a", "p", "z"):
        scan.with_name(f"{name}.nii").write_bytes(b"not a scan")
    out = tmp_path / "out"
    (out / "third.nii.gz").mkdir(parents=True)
    assert main(["infer", str(scan.parent), "-o", str(out), "--overwrite"]) == 1
    captured = capsys.readouterr()
    assert "3 of 7 scans" in captured.out
    for bad in ("a.nii", "p.nii", "third.nii.gz: cannot be written", "z.nii"):
        assert bad in captured.err
    for name in ("scan", "first", "other"):
        alone = tmp_path / f"{name}.nii.gz"
        assert main(["infer", str(scan.with_name(f"{name}.nii.gz")), "-o", str(alone)]) == 0
        assert (out / f"{name}.nii.gz").read_bytes() == alone.read_bytes()


def test_a_scan_too_large_for_memory_is_reported_and_the_others_are_segmented(
    scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        shutil.copy(scan, scan.with_name(f"{name}.nii.gz"))
    scan.unlink()
    segment = Segmenter.segment

    def once_too_large(self: Segmenter, scan: Any, **options: Any) -> Any:
        if len(sizes) == 1:
            sizes.append(0)
            raise MemoryError("Unable to allocate 3.2 GiB")
        sizes.append(1)
        return segment(self, scan, **options)

    sizes: list[int] = []
    monkeypatch.setattr(Segmenter, "segment", once_too_large)
    out = tmp_path / "out"
    assert main(["infer", str(scan.parent), "-o", str(out)]) == 1
    assert files(out) == ["a.nii.gz", "a_dseg.tsv", "c.nii.gz", "c_dseg.tsv"]
    err = capsys.readouterr().err
    b = scan.with_name("b.nii.gz")
    assert f"{b}: not enough memory (Unable to allocate 3.2 GiB)" in err


def test_labels_beside_scans_are_no_scans(
    scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["infer", str(scan)]) == 0
    scan.with_name("._scan.nii.gz").write_bytes(b"what some systems leave beside a file")
    assert main(["infer", str(scan.parent), "-o", str(tmp_path / "out")]) == 0
    labels = scan.with_name("scan_labels.nii.gz")
    assert f"{labels}: holds labels, as its header states" in capsys.readouterr().err
    assert files(tmp_path / "out") == ["scan.nii.gz", "scan_dseg.tsv"]


def test_an_uncompressed_scan_is_not_taken_for_its_own_labels(scan: Path, tmp_path: Path) -> None:
    """x.nii and its labels x.nii.gz in one folder: x.nii is the scan, every time."""
    plain = scan.with_name("plain.nii")
    nib.save(nib.load(scan), plain)
    scan.unlink()
    assert main(["infer", str(plain.parent), "-o", str(plain.parent)]) == 0
    assert files(plain.parent) == ["plain.nii", "plain.nii.gz", "plain_dseg.tsv"]
    assert main(["infer", str(plain.parent), "-o", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again/plain.nii.gz").read_bytes() == (
        plain.with_name("plain.nii.gz").read_bytes()
    )


def test_one_file_is_never_two_outputs(scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = scan.with_name("x.nii.gz")
    again = scan.parent / ".." / scan.parent.name / "x.nii.gz"
    assert "written twice: name" in refused(capsys, "infer", scan, "-o", out, "--report", again)
    other = scan.with_name("other")
    other.mkdir()
    shutil.copy(scan, other)
    two = (scan, other / "scan.nii.gz")
    sentence = refused(capsys, "infer", *two, "-o", scan.parent / "labels")
    assert f"for {two[0]} and {two[1]}: rename one of them" in sentence
    shutil.rmtree(other)
    assert "ends in .png" in refused(capsys, "infer", scan, "-o", out, "--picture", "p.jpg")
    assert files(scan.parent) == ["scan.nii.gz"]


def test_a_path_that_cannot_be_used_gets_one_sentence(
    scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = scan.with_name("x" * 300 + ".nii.gz")
    assert "x" * 300 in refused(capsys, "infer", long)
    assert "cannot be written" in refused(capsys, "infer", scan, "-o", scan / "sub" / "l.nii.gz")
    assert files(scan.parent) == ["scan.nii.gz"]


def test_links_in_a_circle_get_one_sentence(
    scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = scan.with_name("loop.nii.gz")
    loop.symlink_to(loop.name)
    assert "loop.nii.gz: exists already" in refused(capsys, "infer", scan, "-o", loop)
    assert "loop.nii.gz: cannot be read" in refused(capsys, "infer", loop, "-o", tmp_path / "l.nii")
    # One among several scans does not keep the others from being segmented.
    assert main(["infer", str(scan.parent), "-o", str(tmp_path / "out")]) == 1
    assert "1 of 2 scans" in capsys.readouterr().out
    assert files(tmp_path / "out") == ["scan.nii.gz", "scan_dseg.tsv"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' names are Unicode")
def test_a_name_that_cannot_be_printed_is_no_fault(scan: Path) -> None:
    """In a process of its own, because a captured output prints whatever it is given."""
    odd = Path(os.fsdecode(bytes(scan.parent) + b"/ol\xe9.nii.gz"))
    scan.rename(odd)
    command = [sys.executable, "-m", "rare_trt.cli", "infer", str(odd)]
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"/ol\\udce9_labels.nii.gz (openvino" in done.stdout
    assert odd.with_name("ol\udce9_labels.nii.gz").is_file()


def test_spacing_out_and_forced_route(scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = scan.with_name("fine.nii.gz")
    assert main(["infer", str(scan), "-o", str(out), "--spacing-out", "1", "--route", "0"]) == 0
    labels = nib.load(out)
    assert labels.shape == tuple(2 * n for n in nib.load(scan).shape)
    assert nib.affines.voxel_sizes(labels.affine) == pytest.approx((1, 1, 1))
    printed = capsys.readouterr().out
    assert "route 0 (as requested)" in printed
    assert "the route was forced" in printed


def test_an_existing_output_stays_without_overwrite(
    scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = scan.with_name("labels.nii.gz")
    out.write_text("precious")
    assert "exists already" in refused(capsys, "infer", scan, "-o", out)
    assert out.read_text() == "precious"
    assert main(["infer", str(scan), "-o", str(out), "--overwrite"]) == 0
    assert nib.load(out).shape == nib.load(scan).shape


def test_the_scan_itself_is_never_an_output(scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = scan.read_bytes()
    assert "is an input" in refused(capsys, "infer", scan, "-o", scan, "--overwrite")
    assert scan.read_bytes() == before


def changed(scan: Path, kind: str) -> tuple[str, ...]:
    """The arguments of an infer that must be refused."""
    image = nib.load(scan)
    voxels = np.asarray(image.dataobj).copy()
    bad = scan.with_name(f"{kind}.nii.gz")
    if kind == "absent":
        return (str(bad),)
    if kind == "text":
        bad.write_text("hello")
    elif kind == "truncated":
        bad.write_bytes(scan.read_bytes()[:-500])
    elif kind == "checksum":
        data = bytearray(scan.read_bytes())
        data[-8] ^= 1
        bad.write_bytes(data)
    elif kind == "folder":
        bad.mkdir()
    elif kind == "4d":
        nib.save(nib.Nifti1Image(np.stack([voxels] * 3, -1), image.affine), bad)
    elif kind == "nan":
        voxels[2, 3, 4] = np.nan
        nib.save(nib.Nifti1Image(voxels, image.affine), bad)
    elif kind == "constant":
        nib.save(nib.Nifti1Image(np.full_like(voxels, 7), image.affine), bad)
    elif kind == "no affine":
        header = nib.Nifti1Header()
        header.set_data_shape(voxels.shape)
        header.set_data_dtype(np.float32)
        nib.save(nib.Nifti1Image(voxels, None, header), bad)
        raw = bytearray(gzip.decompress(bad.read_bytes()))
        raw[252:256] = bytes(4)
        bad.write_bytes(gzip.compress(raw))
    elif kind == "whole head":
        nib.save(nib.Nifti1Image(np.tile(voxels, (4, 4, 4)), image.affine), bad)
    elif kind == "coarse":
        nib.save(nib.Nifti1Image(voxels[:3, :3, :3], np.diag([15.0, 15, 15, 1])), bad)
    elif kind == "sheared":
        affine = image.affine.copy()
        affine[0, 1] = 0.5
        nib.save(nib.Nifti1Image(voxels, affine), bad)
    return (str(bad),)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("absent", "no such file"),
        ("text", "not a NIfTI file"),
        ("truncated", "gzip stream is damaged"),
        ("checksum", "gzip stream is damaged"),
        ("folder", "a folder without scans (.nii"),
        ("4d", "3 channels or time points"),
        ("nan", "1 of "),
        ("constant", "no contrast"),
        ("no affine", "no affine"),
        ("whole head", "field of view"),
        ("coarse", "voxel spacing is 15 x 15 x 15"),
        ("sheared", "off right angles"),
    ],
)
def test_a_scan_that_cannot_be_segmented_gets_one_sentence_and_writes_nothing(
    scan: Path, capsys: pytest.CaptureFixture[str], kind: str, words: str
) -> None:
    arguments = changed(scan, kind)
    before = files(scan.parent)
    sentence = refused(capsys, "infer", *arguments)
    assert words in sentence
    assert kind in sentence, "the sentence names the file"
    assert files(scan.parent) == before


def test_a_whole_head_is_refused_and_the_way_out_works(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real head: refused whole, and segmented in a box around the right hippocampus."""
    head = next((shared_data / "ixi_t1_2mm").glob("*_T1.nii.gz"))
    structures = nib.load(head.with_name(head.name.replace("_T1", "_T1_DLMUSE")))
    assert "--at X,Y,Z" in refused(capsys, "infer", head, "-o", tmp_path / "l.nii.gz")
    assert files(tmp_path) == []
    here = np.argwhere(np.asarray(structures.dataobj) == 47).mean(axis=0)
    x, y, z = nib.affines.apply_affine(structures.affine, here).tolist()
    out = tmp_path / "l.nii.gz"
    assert main(["infer", str(head), "-o", str(out), f"--at={x},{y},{z}"]) == 0
    labels = nib.load(out)
    assert labels.shape == nib.load(head).shape
    found = np.asarray(labels.dataobj) > 0
    assert nib.affines.apply_affine(labels.affine, np.argwhere(found)).mean(
        axis=0
    ) == pytest.approx((x, y, z), abs=6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--package", "nowhere"], "no such package"),
        (["--route", "7"], "route 7"),
        (["--at=900,0,0"], "outside the scan"),
        (["--spacing-out", "-1"], "output spacing is -1 mm"),
        (["--spacing-out", "0.01"], "gives labels at 0.5 to 10 mm"),
        (["--spacing-out", "inf"], "output spacing is inf mm"),
        (["--spacing-out", "nan"], "output spacing is nan mm"),
        (["-o", "labels.txt"], "ends in .nii"),
    ],
)
def test_wrong_options_get_one_sentence(
    scan: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(scan.parent)
    assert words in refused(capsys, "infer", scan, *arguments)
    assert files(scan.parent) == ["scan.nii.gz"]


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["infer"], ["infer", "x", "--at", "1,2"], ["infer", "x", "--route", "y"], ["fly"]),
        *(["serve", "--port", "0", "--max-upload", x] for x in ("abc", "nan", "0")),
        *(["build", "--workspace", x] for x in ("abc", "0", "1.5")),
    ],
)
def test_wrong_usage_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    # argparse's own sentence would name a function.
    assert "invalid _positive" not in (said := capsys.readouterr().err)
    assert "invalid mebibytes" not in said


def test_info_says_what_the_package_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    for words in ("anterior hippocampus", "0.5 to 10 mm", "CC BY-SA 4.0", "fp32"):
        assert words in printed


def test_a_closed_pipe_ends_the_command_silently() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "rare_trt.cli", "info"], stdout=closed, stderr=subprocess.PIPE
        )
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_failure_to_print_is_reported() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "rare_trt.cli", "info"], stdout=full, stderr=subprocess.PIPE
        )
    assert done.returncode == 1
    assert b"No space left on device" in done.stderr
