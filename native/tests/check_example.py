"""Checks that the example program returns the labels of Python:  check_example.py PROGRAM

Some scans are scaled by their header, have a qform only, are in metres, or have permuted axes.
Labels that cannot be written must be an error.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np

from rare_trt import Segmenter
from rare_trt.package.reading import SHIPPED
from rare_trt.result import Result
from rare_trt.scan.geometry import Triple

REPOSITORY = Path(__file__).parents[2]
PACKAGE = SHIPPED / "hippocampus.rare"


def main(program: str) -> None:
    with tempfile.TemporaryDirectory() as folder, Segmenter.load(PACKAGE, "openvino") as segmenter:
        for scan, points in scans(Path(folder)):
            labels = scan.with_name(f"labels_{scan.name}")
            command = [program, str(PACKAGE), str(scan), str(labels), *map(str, sum(points, ()))]
            subprocess.run(command, check=True)
            known = segmenter.segment(scan, at=points or None)
            found = nib.nifti1.load(labels)
            assert np.array_equal(np.asarray(found.dataobj), known.labels), scan.name
            assert np.allclose(found.affine, nib.nifti1.load(scan).affine, atol=1e-4), scan.name
            assert found.header["descrip"].item() == b"", scan.name
            assert found.header.get_intent() == known_intent(known), scan.name
        check_refusals(program, Path(folder))


def check_refusals(program: str, folder: Path) -> None:
    """Checks that labels that cannot be written are an error and leave no file."""
    there, full = folder / "labels_hippocampus_1mm.nii.gz", folder / "full.nii.gz"
    assert "exists already" in refusal(program, folder, there)
    labels = folder / "other.nii.gz"
    assert "holds labels" in refusal(program, folder, labels, scan="labels_hippocampus_1mm.nii.gz")
    assert not labels.exists()
    assert "cannot be written" in refusal(program, folder, folder / "none" / "labels.nii.gz")
    assert "cannot be written" in refusal(program, folder, full, most_bytes=100)
    assert not full.exists(), "half a label file was left behind"
    assert "this program reads NIfTI" in refusal(program, folder, full, scan="norm.mgz")


def known_intent(result: Result) -> object:
    """The intent of the label file that Python writes."""
    (data, _) = result.files(Path("labels.nii")).values()
    return nib.nifti1.Nifti1Image.from_bytes(data).header.get_intent()


def refusal(
    program: str,
    folder: Path,
    labels: Path,
    most_bytes: int = -1,
    scan: str = "hippocampus_1mm.nii.gz",
) -> str:
    """The error of the program, which must exit with 1; files may have `most_bytes` (-1: any)."""
    limits = (most_bytes, resource.RLIM_INFINITY)
    # Python ignores SIGXFSZ, and so does its child: writing fails as on a full disk.
    done = subprocess.run(
        [program, str(PACKAGE), str(folder / scan), str(labels)],
        capture_output=True,
        text=True,
        restore_signals=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits),
    )
    assert done.returncode == 1, done.stderr
    return done.stderr


def scans(folder: Path) -> Iterator[tuple[Path, list[Triple]]]:
    """Scans as files, each with the points of its boxes."""
    for path in sorted((REPOSITORY / "examples").glob("*.nii.gz")):
        copy = folder / path.name
        copy.write_bytes(path.read_bytes())
        yield copy, []
    image = nib.nifti1.load(REPOSITORY / "examples" / "hippocampus_1mm.nii.gz")
    voxels, affine = np.asarray(image.dataobj), image.affine

    def saved(name: str, image: nib.nifti1.Nifti1Image) -> Path:
        image.header["descrip"] = b"somebody's name"
        image.to_filename(folder / name)
        return folder / name

    scaled = nib.nifti1.Nifti1Image((voxels / voxels.max() * 3.7 + 0.2).astype(np.float64), affine)
    scaled.header.set_data_dtype(np.int16)
    yield saved("scaled.nii.gz", scaled), []
    placed = nib.nifti1.Nifti1Image(voxels, affine)
    placed.set_sform(None, 0)
    placed.set_qform(affine, 1)
    yield saved("qform.nii", placed), []
    turned = nib.nifti1.Nifti1Image(voxels.transpose(2, 0, 1)[::-1], affine[:, [2, 0, 1, 3]])
    yield saved("turned.nii.gz", turned), []
    metres = nib.nifti1.Nifti1Image(voxels, np.diag([1e-3, 1e-3, 1e-3, 1]) @ affine)
    metres.header.set_xyzt_units("meter")
    yield saved("metres.nii.gz", metres), []
    head = np.random.default_rng(0).integers(0, 30, (100, 100, 100)).astype(voxels.dtype)
    i, j, k = voxels.shape
    head[30 : 30 + i, 20 : 20 + j, 40 : 40 + k] = voxels
    moved = affine.copy()
    moved[:3, 3] -= affine[:3, :3] @ (30, 20, 40)
    x, y, z = (moved[:3, :3] @ (30 + i / 2, 20 + j / 2, 40 + k / 2) + moved[:3, 3]).tolist()
    yield saved("head.nii.gz", nib.nifti1.Nifti1Image(head, moved)), [(x, y, z)]
    two = nib.nifti1.Nifti1Image(head, moved)
    yield saved("two.nii.gz", two), [(x, y, z), (x - 8, y, z + 3)]


if __name__ == "__main__":
    main(sys.argv[1])
