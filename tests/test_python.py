"""Scans that other libraries hold in memory, and everything else that Python programs pass."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from operator import methodcaller
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from rare_trt import Grid, Result, Scan, Segmenter, Volume, read_channels, read_scan
from rare_trt.cli import main
from rare_trt.errors import BackendError, OutputError, ScanError


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter.load("hippocampus", "openvino")


@pytest.fixture(scope="module")
def path(examples: Path) -> Path:
    return examples / "hippocampus_2mm.nii.gz"


@pytest.fixture(scope="module")
def expected(segmenter: Segmenter, path: Path) -> Result:
    return segmenter.segment(path)


def oblique(path: Path, folder: Path) -> Path:
    """The scan turned and with its axes in another order, as int16 voxels with a slope."""
    image = nib.load(path)
    voxels = np.asarray(image.dataobj).transpose(2, 0, 1)[::-1]
    affine = image.affine[:, [2, 0, 1, 3]].copy()
    affine[:3, 3] += affine[:3, 0] * (voxels.shape[0] - 1)
    affine[:3, 0] *= -1
    c, s = np.cos(0.2), np.sin(0.2)
    turn = np.array([[c, -s, 0, 3], [s, c, 0, -7], [0, 0, 1, 11], [0, 0, 0, 1]])
    turned = nib.Nifti1Image(voxels.astype(np.int16), turn @ affine)
    turned.header.set_slope_inter(0.5, 3)
    out = folder / "oblique.nii.gz"
    nib.save(turned, out)
    return out


def same(found: Result, expected: Result) -> None:
    assert np.array_equal(found.labels, expected.labels)
    # An affine of float32 in a file moves a volume by its last digits.
    assert found.volumes_mm3 == pytest.approx(expected.volumes_mm3, rel=1e-6)
    np.testing.assert_allclose(found.grid.affine, expected.grid.affine, atol=1e-4)


@pytest.mark.parametrize("kind", ["1", "2", "mgh", "pair"])
def test_an_image_of_nibabel_is_its_file(
    segmenter: Segmenter, path: Path, tmp_path: Path, kind: str
) -> None:
    source = oblique(path, tmp_path)
    from_file = segmenter.segment(source)
    image = nib.load(source)
    if kind == "2":
        image = nib.Nifti2Image(image.dataobj, image.affine, image.header)
    if kind == "mgh":
        image = nib.MGHImage(np.asarray(image.dataobj, np.float32), image.affine)
    if kind == "pair":
        image = nib.Nifti1Pair(image.dataobj, image.affine, image.header)
    before = image.header.copy()
    found = segmenter.segment(image)
    same(found, from_file)
    assert image.header == before
    found.save(tmp_path / "labels.nii.gz")
    np.testing.assert_allclose(nib.load(tmp_path / "labels.nii.gz").affine, image.affine, atol=1e-4)


def test_the_header_of_an_image_is_validated_as_in_a_file(segmenter: Segmenter, path: Path) -> None:
    image = nib.load(path)
    metres = nib.Nifti1Image(np.asarray(image.dataobj), np.diag([0.002, 0.002, 0.002, 1]))
    metres.header.set_xyzt_units("meter")
    assert segmenter.segment(metres).grid.spacing_mm == pytest.approx((2.0, 2.0, 2.0))
    apart = nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
    apart.set_sform(image.affine, 1)
    moved = image.affine.copy()
    moved[:3, 3] += 40
    apart.set_qform(moved, 1)
    assert any("place the scan 40 mm apart" in flag for flag in segmenter.segment(apart).flags)
    with pytest.raises(ScanError, match="has no affine"):
        segmenter.segment(nib.Nifti1Image(np.asarray(image.dataobj), None))


def test_an_image_of_simpleitk_is_its_file(
    segmenter: Segmenter, path: Path, tmp_path: Path
) -> None:
    """ITK counts to the left and to the back, and NumPy has its axes in reverse."""
    sitk = pytest.importorskip("SimpleITK")
    source = oblique(path, tmp_path)
    same(segmenter.segment(sitk.ReadImage(str(source))), segmenter.segment(source))
    labels = nib.load(source)
    labels.header["intent_code"] = 1002
    nib.save(labels, tmp_path / "labels.nii.gz")
    for image, words in [
        (sitk.ReadImage(str(tmp_path / "labels.nii.gz")), "the file holds labels"),
        (sitk.Image(9, 9, sitk.sitkFloat32), "the image has 2 axes"),
        (sitk.Image([9, 9, 9], sitk.sitkVectorFloat32, 2), "2 channels"),
        (sitk.Image([9, 9, 9], sitk.sitkComplexFloat32), "expected real numbers"),
    ]:
        with pytest.raises(ScanError, match=words):
            segmenter.segment(image)


def test_an_image_of_another_format_has_any_type(segmenter: Segmenter, path: Path) -> None:
    """Headers of nibabel's other formats hold types that NIfTI's cannot."""
    image = nib.load(path)
    voxels = np.asarray(image.dataobj)
    expected = segmenter.segment(voxels.astype(np.float16), affine=image.affine)
    plain = nib.spatialimages.SpatialImage
    same(segmenter.segment(plain(voxels.astype(np.float16), image.affine)), expected)
    with pytest.raises(ScanError, match="the voxels are bool; expected real numbers"):
        segmenter.segment(plain(voxels > 3, image.affine))
    long = nib.MGHImage(np.zeros((40_000, 3, 3), np.float32), np.eye(4, dtype=np.float32))
    with pytest.raises(ScanError, match="the field of view"):
        segmenter.segment(long)


def test_an_image_of_a_class_derived_from_simpleitk(segmenter: Segmenter, path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")

    class Mine(sitk.Image):  # type: ignore[name-defined, misc]
        pass

    same(segmenter.segment(Mine(sitk.ReadImage(str(path)))), segmenter.segment(path))


def test_an_image_whose_axes_are_unknown_is_no_array(segmenter: Segmenter) -> None:
    """ITK's own images become arrays [k, j, i], and an affine beside them would be wrong."""

    class Image:
        GetSpacing = GetOrigin = GetImageDimension = lambda self: (1.0, 1.0, 1.0)

        def __array__(self, *arguments: Any, **keywords: Any) -> Any:
            return np.ones((30, 40, 50), np.float32)

    for options in ({}, {"affine": np.eye(4)}):
        with pytest.raises(TypeError, match=r"type .*test_python\.Image; expected a path"):
            segmenter.segment(Image(), **options)


@pytest.mark.parametrize(
    ("affine", "named"),
    [
        ("sideways", "is 'sideways'"),
        ([[1, 0], [2]], r"shape \(2,\)"),
        (np.eye(4) * 1j, r"1\.j"),
        (np.eye(3), r"shape \(3, 3\)"),
        (np.full((4, 4), np.nan), "nan nan"),
    ],
)
def test_an_affine_that_is_none_is_named(
    segmenter: Segmenter, path: Path, affine: Any, named: str
) -> None:
    voxels = np.asarray(nib.load(path).dataobj)
    with pytest.raises(ScanError, match=named) as caught:
        segmenter.segment(voxels, affine=affine)
    assert "expected a 4x4 matrix of numbers" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_output_replaces_another_one(expected: Result, tmp_path: Path) -> None:
    labels = tmp_path / "labels.nii.gz"
    for options in (
        {"report": str(labels)},
        {"picture": tmp_path / "labels_dseg.tsv"},
        {"report": tmp_path / "x", "picture": tmp_path / "." / "x"},
    ):
        with pytest.raises(OutputError, match="is to be written twice"):
            expected.save(labels, **options, overwrite=True)
    assert list(tmp_path.iterdir()) == []


def test_arrays_and_tensors_come_with_their_affine(
    segmenter: Segmenter, path: Path, expected: Result
) -> None:
    torch = pytest.importorskip("torch")
    image = nib.load(path)
    voxels, affine = np.asarray(image.dataobj, np.float32), image.affine
    same(segmenter.segment(voxels, affine=affine), expected)
    same(segmenter.segment(voxels, affine=affine.tolist()), expected)
    same(segmenter.segment(np.asfortranarray(voxels)[..., None], affine=affine), expected)
    same(segmenter.segment(voxels.astype(">f8"), affine=affine), expected)
    tensor = torch.from_numpy(voxels).requires_grad_()
    same(segmenter.segment(tensor, affine=torch.from_numpy(affine)), expected)
    # Half the precision, not half the range: sums over voxels would be infinite.
    for half in (tensor.bfloat16(), (voxels / voxels.max() * 6e4).astype(np.float16)):
        found = segmenter.segment(half, affine=affine)
        agreed = (found.labels == expected.labels).mean()
        assert agreed > 0.99


def test_no_other_library_is_imported_for_a_file(path: Path) -> None:
    code = (
        "import sys; from rare_trt import Segmenter; Segmenter.load().segment(sys.argv[1]); "
        "print([n for n in ('rare_trt.scan.arrays', 'SimpleITK', 'torch') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "[]", done.stderr


class Unrelated:
    """An object that is no scan."""


@pytest.mark.parametrize(
    ("scan", "options", "words"),
    [
        ({}, {}, "the scan is of the type dict; expected a path"),
        (None, {}, "the scan is of the type NoneType; expected a path"),
        (b"scan.nii", {}, "the scan is of the type bytes; expected a path"),
        ([1, 2], {}, "the scan is of the type list of int; expected a path"),
        (Unrelated(), {}, r"the scan is of the type .*Unrelated; expected a path"),
        (np.zeros((9, 9, 9)), {}, "expected affine=, the 4x4 matrix"),
        ("path", {"affine": np.eye(4)}, "affine goes with an array"),
        ("image", {"affine": np.eye(4)}, "affine goes with an array"),
        ("scan", {"affine": np.eye(4)}, "affine goes with an array"),
        ("path", {"route": "auto"}, "route is 'auto'; expected a whole number or None"),
        ("path", {"route": 1.0}, "route is 1.0; expected a whole number or None"),
        ("path", {"spacing_out_mm": "1"}, "spacing_out_mm is '1'; expected a number or None"),
    ],
)
def test_a_wrong_type_gets_one_sentence(
    segmenter: Segmenter, path: Path, scan: Any, options: dict[str, Any], words: str
) -> None:
    if isinstance(scan, str):
        scan = {"path": path, "image": nib.load(path), "scan": read_scan(path)}[scan]
    with pytest.raises(TypeError, match=words) as refused:
        segmenter.segment(scan, **options)
    assert "\n" not in str(refused.value)


def test_reading_takes_paths_only(segmenter: Segmenter) -> None:
    for wrong in (np.zeros((19, 3)), 5, {}, [1]):
        with pytest.raises(TypeError, match="the files are of the type"):
            segmenter.read(wrong)


@pytest.mark.parametrize(
    ("voxels", "affine", "words"),
    [
        (np.ones((9, 9, 9)), [1, 2], r"the affine has shape \(2,\)"),
        (np.ones((9, 9, 9)), "eye", r"the affine has shape \(\)"),
        (np.ones((9, 9, 9)), np.ones((4, 4)), "the last row 0 0 0 1"),
        (np.ones((9, 9, 9)), np.zeros((4, 4)) + np.diag([0, 0, 0, 1]), "voxels of 0 x 0 x 0"),
        (np.ones((9, 9, 9), bool), np.eye(4), "the voxels are bool"),
        (np.ones((9, 9)), np.eye(4), "the voxels have shape 9 x 9"),
        (np.full((9, 9, 9), np.nan), np.eye(4), "729 of 729 voxels are NaN"),
    ],
)
def test_a_wrong_array_gets_one_sentence(
    segmenter: Segmenter, voxels: Any, affine: Any, words: str
) -> None:
    with pytest.raises(ScanError, match=words):
        segmenter.segment(voxels, affine=affine)


def test_numbers_of_numpy_are_numbers(segmenter: Segmenter, path: Path, tmp_path: Path) -> None:
    grid = read_scan(path).volume.grid
    centre = grid.world_mm((np.array(grid.shape) - 1) / 2)
    plain = segmenter.segment(
        path, route=1, at=tuple(centre.tolist()), spacing_out_mm=1.5, strict=False
    )
    limited = Segmenter.load(
        "hippocampus", "openvino", memory_limit=np.int64(2**33), gpu_memory_limit=np.uint64(2**30)
    )
    found = limited.segment(
        path, route=np.int8(1), at=centre, spacing_out_mm=np.float32(1.5), strict=np.bool_(False)
    )
    same(found, plain)
    found.save(tmp_path / "l.nii.gz", report=tmp_path / "r.json")
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["at_mm"] == centre.tolist()
    assert report["route"]["route"] == 1
    volume = Volume(read_scan(path).volume.voxels, Grid(np.array(grid.shape), grid.affine))
    same(
        segmenter.segment(Scan(volume), at=centre.astype(np.float32)[None]),
        plain_at(segmenter, path, centre),
    )


def plain_at(segmenter: Segmenter, path: Path, point: Any) -> Result:
    x, y, z = point.astype(np.float32).tolist()
    return segmenter.segment(path, at=(x, y, z))


def test_paths_are_texts_everywhere(
    segmenter: Segmenter, path: Path, expected: Result, tmp_path: Path
) -> None:
    same(segmenter.segment(str(path)), expected)
    same(segmenter.segment([str(path)]), expected)
    same(segmenter.segment(segmenter.read(str(path))), expected)
    same(segmenter.segment(read_scan(str(path))), expected)
    same(
        segmenter.segment(
            read_channels([str(path)]).volume.voxels[..., 0], affine=nib.load(path).affine
        ),
        expected,
    )
    names = [str(tmp_path / name) for name in ("l.nii", "r.json", "p.png")]
    expected.save(names[0], report=names[1], picture=names[2])
    contents = expected.files(names[0], report=names[1], picture=names[2])
    assert sorted(map(str, contents)) == sorted([*names, str(tmp_path / "l_dseg.tsv")])
    assert all(one.is_file() for one in contents)


def test_a_result_is_read_by_names(segmenter: Segmenter, expected: Result) -> None:
    names = segmenter.package.manifest.model.labels[1:]
    assert list(expected.volumes_mm3) == list(names)
    assert expected.flags == []
    text = repr(expected)
    assert 7 <= len(text.splitlines()) <= 12
    for name, volume in expected.volumes_mm3.items():
        assert f"{name}" in text
        assert f"{volume:.0f} mm3" in text
    assert str(expected.route) in text
    forced = segmenter.segment(expected.scan, route=0)
    assert "the route was forced" in forced.flags
    assert "the route was forced" in repr(forced)


def test_a_segmenter_shows_its_package(segmenter: Segmenter) -> None:
    shown = repr(segmenter)
    assert shown.startswith("Segmenter('hippocampus' in ")
    assert str(segmenter.package.folder) in shown


def test_a_segmenter_and_a_result_are_pickled(
    segmenter: Segmenter, path: Path, expected: Result
) -> None:
    one = Segmenter(segmenter.package, "openvino", precision="fp32", memory_limit=2**33)
    again = pickle.loads(pickle.dumps(one))
    assert again.segment(path).precision == "fp32"
    same(pickle.loads(pickle.dumps(expected)), expected)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        there = pool.submit(methodcaller("segment", path), segmenter).result()
    same(there, expected)
    one.close()
    with pytest.raises(BackendError, match="the segmenter was closed"):
        pickle.dumps(one)


@pytest.mark.parametrize(
    "use",
    [
        lambda closed, path: closed.segment(path),
        lambda closed, path: closed.segment("no such file"),
        lambda closed, path: closed.warm(),
    ],
)
def test_a_closed_segmenter_raises_one_error(path: Path, use: Callable[..., Any]) -> None:
    """Without a warning for every backend that cannot open it either."""
    closed = Segmenter.load("hippocampus")
    closed.segment(path)
    closed.close()
    closed.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BackendError, match="the segmenter was closed; expected an open one"):
            use(closed, path)


def test_the_command_line_leaves_the_callers_process_as_it_was(
    path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = """
import sys, warnings
from rare_trt.cli import main
warnings.simplefilter("ignore")
before = warnings.showwarning, list(warnings.filters), sys.stdout.errors
assert main(["infer", sys.argv[1], "-o", sys.argv[2]]) == 0
assert main(["infer", "no such file"]) == 1
assert (warnings.showwarning, warnings.filters, sys.stdout.errors) == before
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "l.nii.gz")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    before = warnings.showwarning
    assert main(["infer", str(tmp_path / "none.nii.gz")]) == 1
    assert warnings.showwarning is before
