"""FreeSurfer's .mgh and .mgz: read as NIfTI is, and refused as NIfTI is."""

from __future__ import annotations

import gzip
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from serving import Running, running

from rare_trt import Segmenter, read_scan
from rare_trt.cli import main
from rare_trt.errors import OutputError, ScanError
from rare_trt.evaluation.cases import find_cases, load_cases
from rare_trt.scan.intensity import IntensityRule
from rare_trt.scan.mgh import MAX_FOOTER
from rare_trt.scan.nifti import scan_from_bytes
from rare_trt.storage.naming import names_path

SHAPE = (4, 5, 6)
VOXELS = np.random.default_rng(0).integers(0, 250, SHAPE).astype(np.uint8)
AFFINE = np.array([[-1.0, 0, 0, 20], [0, 0, 1, -30], [0, -1, 0, 40], [0, 0, 0, 1]])

# Where the header's fields begin, in bytes.
VERSION, DIMS, TYPE, GOOD, DELTA, MDC, CENTRE, START = 0, 4, 20, 28, 30, 42, 78, 284


def mgh(voxels: NDArray[Any] = VOXELS, affine: NDArray[Any] = AFFINE) -> bytes:
    """An uncompressed file as nibabel writes it: header, voxels and 20 bytes of acquisition."""
    data: bytes = nib.MGHImage(voxels, affine).to_bytes()
    return data


def changed(at: int, kind: str, *values: float) -> bytes:
    """A file with other values at byte `at`, of struct's type `kind`."""
    data = bytearray(mgh())
    struct.pack_into(f">{kind}", data, at, *values)
    return bytes(data)


def refused(data: bytes, channels: int = 1) -> str:
    """Why `data` is refused, in one sentence, plain and compressed."""
    with pytest.raises(ScanError) as caught:
        scan_from_bytes(data, "scan", channels)
    text = str(caught.value)
    assert text.startswith("scan: ")
    assert "\n" not in text
    return text


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "int32", "float32"])
@pytest.mark.parametrize("compressed", [False, True])
def test_voxels_and_place_are_those_of_nibabel(kind: str, compressed: bool) -> None:
    data = mgh(VOXELS.astype(kind))
    scan = scan_from_bytes(gzip.compress(data) if compressed else data, "scan")
    known = nib.MGHImage.from_bytes(data)
    assert scan.volume.voxels.dtype == np.dtype(kind).newbyteorder(">")
    assert np.array_equal(scan.volume.voxels, np.asarray(known.dataobj))
    assert np.array_equal(scan.volume.grid.affine, known.affine)
    assert scan.remarks == ()
    assert not scan.volume.voxels.flags.writeable


def test_channels_are_the_frames() -> None:
    stacked = np.stack([VOXELS, 250 - VOXELS], axis=-1)
    scan = scan_from_bytes(mgh(stacked), "scan", channels=2)
    assert np.array_equal(scan.volume.voxels, stacked)
    assert "has 2 channels or time points; expected 1" in refused(mgh(stacked))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (changed(GOOD, "h", 0), "the header has no affine (goodRASFlag is 0)"),
        (changed(TYPE, "i", 5), "its data type has the code 5, not 0, 1, 3, 4 or 10"),
        (changed(DIMS, "i", 0), "it has 0 x 5 x 6 voxels in 1 frames"),
        (changed(DIMS, "i", -4), "it has -4 x 5 x 6 voxels"),
        (changed(DIMS, "4i", 2000, 2000, 2000, 1), "expected at most 4294967296"),
        (changed(DELTA, "f", float("nan")), "the affine has non-finite numbers"),
        (changed(DELTA, "f", 0.0), "expected three sizes of"),
        (changed(MDC, "9f", *[0.0] * 9), "expected three sizes of"),
        (changed(MDC, "3f", -0.8, 0.6, 0.6), "off right angles"),
        (changed(CENTRE, "f", 1e9), "from the world's origin"),
        (changed(VERSION, "i", 2), "not a NIfTI file that can be read"),
        (changed(DELTA, "f", 3e38), "the affine has non-finite numbers"),
        (mgh()[:200], "it ends after 200 of the header's 284 bytes"),
        (mgh(np.full(SHAPE, np.nan, np.float32)), "120 of 120 voxels are NaN or infinite"),
    ],
)
def test_headers_that_make_no_sense_are_refused(data: bytes, words: str) -> None:
    assert words in refused(data)
    assert words in refused(gzip.compress(data))


def test_truncated_files_are_refused_wherever_they_end() -> None:
    whole = mgh()
    end = START + VOXELS.size
    for cut in range(0, end, 7):
        refused(whole[:cut])
        refused(gzip.compress(whole[:cut]))
    compressed = gzip.compress(whole)
    for cut in range(len(compressed)):
        refused(compressed[:cut])
    damaged = bytearray(compressed)
    damaged[-5] ^= 1
    assert "gzip" in refused(bytes(damaged))
    # The acquisition's parameters may be missing: FreeSurfer writes them after the voxels.
    assert np.array_equal(scan_from_bytes(whole[:end], "scan").volume.voxels, VOXELS)


def test_what_lies_behind_the_voxels_is_bounded() -> None:
    voxels = mgh()[: START + VOXELS.size]
    allowed = voxels + bytes(MAX_FOOTER)
    for data in (allowed, gzip.compress(allowed)):
        assert np.array_equal(scan_from_bytes(data, "scan").volume.voxels, VOXELS)
    assert "copy it again" in refused(allowed + b"\0")
    assert "more bytes than" in refused(gzip.compress(allowed + b"\0"))
    bomb = changed(DIMS, "4i", 1000, 1000, 1000, 1)
    assert "compressed ones cannot contain" in refused(gzip.compress(bomb))


def test_voxel_sizes_that_are_stated_twice_are_flagged() -> None:
    data = bytearray(changed(DELTA, "3f", 2.0, 2.0, 2.0))
    directions = [0.5 * value for value in struct.unpack_from(">9f", data, MDC)]
    struct.pack_into(">9f", data, MDC, *directions)
    scan = scan_from_bytes(bytes(data), "scan")
    assert scan.volume.grid.spacing_mm == (1.0, 1.0, 1.0)
    (remark,) = scan.remarks
    assert "voxels of 1 x 1 x 1 mm in one, of 2 x 2 x 2 mm in the other" in remark


def test_an_empty_file_is_called_empty() -> None:
    for data in (b"", gzip.compress(b"")):
        assert refused(data) == "scan: the file is empty; expected a scan: copy or export it again"


def test_the_module_is_imported_for_such_files_only(examples: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from rare_trt import read_scan; "
        f"read_scan(Path({str(examples / 'hippocampus_2mm.nii.gz')!r})); "
        "print('rare_trt.scan.mgh' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


# Labels

# Orders and directions of the axes, and a turn that leaves them oblique.
TURNS = {
    "as stored": np.eye(4),
    "coronal": np.array([[-1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]]),
    "flipped": np.diag([-1.0, -1.0, 1.0, 1.0]),
    "sagittal": np.array([[0.0, 0, -1, 0], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]]),
}


@pytest.fixture(scope="module")
def segmenter() -> Any:
    with Segmenter.load("hippocampus", "openvino") as loaded:
        yield loaded


@pytest.mark.parametrize("turn", TURNS)
def test_labels_lie_on_the_scans_own_grid(
    segmenter: Segmenter, examples: Path, tmp_path: Path, turn: str
) -> None:
    """And are those of the same voxels in a NIfTI file."""
    image = nib.as_closest_canonical(nib.load(examples / "hippocampus_2mm.nii.gz"))
    wanted = nib.io_orientation(TURNS[turn])
    back = nib.orientations.ornt_transform(np.array([[0, 1], [1, 1], [2, 1]]), wanted)
    image = image.as_reoriented(back)
    voxels = np.asarray(image.dataobj).astype(np.float32)
    nib.save(nib.MGHImage(voxels, image.affine), tmp_path / "scan.mgz")
    nib.save(nib.Nifti1Image(voxels, image.affine), tmp_path / "scan.nii.gz")
    result = segmenter.segment(tmp_path / "scan.mgz")
    result.save(tmp_path / "labels.nii.gz")
    labels, scan = nib.load(tmp_path / "labels.nii.gz"), nib.load(tmp_path / "scan.mgz")
    assert labels.shape == scan.shape
    np.testing.assert_allclose(labels.affine, scan.affine, atol=1e-5)
    assert np.array_equal(labels.affine, result.scan.volume.grid.affine)
    assert labels.header["sform_code"] == labels.header["qform_code"] == 1
    np.testing.assert_allclose(labels.get_qform(), scan.affine, atol=1e-3)
    known = segmenter.segment(tmp_path / "scan.nii.gz")
    assert result.labels.any()
    assert np.array_equal(result.labels, known.labels)
    assert np.array_equal(np.asarray(labels.dataobj), result.labels)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with running("--socket", tmp_path_factory.mktemp("socket") / "s") as started:
        yield started


def test_scans_folders_and_a_server_take_them(
    server: Running, examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = nib.load(examples / "hippocampus_2mm.nii.gz")
    voxels = np.asarray(image.dataobj).astype(np.float32)
    scans = tmp_path / "scans"
    scans.mkdir()
    for name in ("one.mgz", "two.mgh"):
        nib.save(nib.MGHImage(voxels, image.affine), scans / name)
    assert main(["infer", str(scans / "one.mgz")]) == 0
    known = (scans / "one_labels.nii.gz").read_bytes()
    (scans / "one_labels.nii.gz").unlink()
    (scans / "one_labels_dseg.tsv").unlink()
    for number, options in enumerate(([], ["--server", server.address])):
        out = tmp_path / f"out{number}"
        assert main(["infer", str(scans), "-o", str(out), *options]) == 0
        for name in ("one.nii.gz", "two.nii.gz"):
            assert (out / name).read_bytes() == known
    capsys.readouterr()
    assert main(["infer", str(scans / "one.mgz"), "-o", str(tmp_path / "labels.mgz")]) == 1
    assert "labels.mgz: expected a name that ends in .nii or .nii.gz" in capsys.readouterr().err
    with pytest.raises(OutputError):
        names_path(Path("labels.mgh"))


def test_labelled_scans_may_be_such_files(examples: Path, tmp_path: Path) -> None:
    for part, source in (("images", "hippocampus_1mm.nii.gz"), ("labels", "truth/1mm.nii.gz")):
        image = nib.load(examples / source)
        (tmp_path / part).mkdir()
        voxels = np.asarray(image.dataobj).astype(np.float32)
        nib.save(nib.MGHImage(voxels, image.affine), tmp_path / part / "a.mgz")
        if part == "labels":
            nib.save(image, tmp_path / part / "b.nii.gz")
        else:
            nib.save(nib.MGHImage(voxels, image.affine), tmp_path / part / "b.mgh")
    cases = load_cases(find_cases(tmp_path), 1, 3, IntensityRule())
    assert [case.name for case in cases] == ["a", "b"]
    assert np.array_equal(cases[0].labels, cases[1].labels)
    assert cases[0].labels.any()


def test_a_freesurfer_head_is_segmented_on_its_own_grid(
    segmenter: Segmenter, shared_data: Path, tmp_path: Path
) -> None:
    path = shared_data / "freesurfer_norm_aseg" / "norm.mgz"
    known = nib.load(path)
    scan = read_scan(path)
    assert np.array_equal(scan.volume.voxels, np.asarray(known.dataobj))
    with pytest.raises(ScanError, match="pass --at X,Y,Z"):
        segmenter.segment(scan)
    # Around its own label of the left hippocampus.
    parts = nib.load(shared_data / "freesurfer_norm_aseg" / "aparc.a2009s+aseg.mgz")
    truth = np.asarray(parts.dataobj) == 17
    x, y, z = nib.affines.apply_affine(parts.affine, np.argwhere(truth).mean(axis=0)).tolist()
    result = segmenter.segment(scan, at=(x, y, z))
    result.save(tmp_path / "labels.nii.gz")
    labels = nib.load(tmp_path / "labels.nii.gz")
    assert labels.shape == known.shape == (256, 256, 256)
    np.testing.assert_allclose(labels.affine, known.affine, atol=1e-5)
    assert np.array_equal(labels.affine, scan.volume.grid.affine)
    found = np.asarray(labels.dataobj) > 0
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.6
