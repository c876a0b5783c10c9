"""NIfTI scans in, whatever is wrong with them, and label files out."""

from __future__ import annotations

import gzip
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rare_trt.errors import OutputError, ScanError
from rare_trt.scan.geometry import Grid, Volume
from rare_trt.scan.nifti import Scan, label_bytes, read_scan, scan_from_bytes
from rare_trt.storage.naming import is_scan_name, stem

SHAPE = (5, 6, 7)
VOXELS = np.random.default_rng(0).integers(-300, 900, SHAPE).astype(np.int16)
LABELS = np.random.default_rng(1).integers(0, 3, SHAPE).astype(np.uint8)
OBLIQUE = np.array(
    [[0.0, -1.6, 1.8, -31.7], [0.9, 0.0, 0.0, 12.3], [0.0, 2.4, 1.2, -77.1], [0.0, 0.0, 0.0, 1.0]]
)
PLACEMENT = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "xyzt_units"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)


def nifti(
    voxels: Any = VOXELS,
    affine: Any = OBLIQUE,
    *,
    version: Any = nib.Nifti1Image,
    codes: tuple[int, int] = (1, 1),
    unit: str = "mm",
    header: Any = None,
    **fields: Any,
) -> bytes:
    """A NIfTI file with sform and qform of the given codes; `fields` go into the raw header."""
    image = version(voxels, affine, header)
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    image.header.set_xyzt_units(unit)
    data = image.to_bytes()
    size = image.header.sizeof_hdr
    raw = np.frombuffer(data[:size], image.header.structarr.dtype).copy()
    for name, value in fields.items():
        raw[name] = value
    return bytes(raw.tobytes() + data[size:])


def scan_of(data: bytes, channels: int = 1) -> Scan:
    return scan_from_bytes(data, "scan.nii", channels)


def refused(data: bytes, channels: int = 1) -> str:
    """The sentence with which `data` is refused."""
    with pytest.raises(ScanError) as error:
        scan_of(data, channels)
    assert str(error.value).startswith("scan.nii: ")
    return str(error.value)


def image_of(data: bytes, version: Any = nib.Nifti1Image) -> Any:
    return version.from_bytes(data)


# Scans in


@pytest.mark.parametrize("version", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("endianness", ["<", ">"])
def test_voxels_and_grid_are_the_files(version: Any, endianness: str) -> None:
    header = version.header_class(endianness=endianness)
    data = nifti(version=version, header=header, voxels=VOXELS.astype(f"{endianness}i2"))
    scan = scan_of(data)
    assert np.array_equal(scan.volume.voxels, VOXELS)
    np.testing.assert_allclose(scan.volume.grid.affine, OBLIQUE, atol=1e-5)
    assert scan.volume.grid.spacing_mm == pytest.approx(
        (0.9, np.hypot(1.6, 2.4), np.hypot(1.8, 1.2))
    )


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "named_wrongly.nii"])
def test_file_is_read_by_its_content(tmp_path: Path, name: str) -> None:
    """A compressed file that lost its .gz on the way is still a scan."""
    data = nifti()
    (tmp_path / name).write_bytes(data if name == "scan.nii" else gzip.compress(data))
    assert np.array_equal(read_scan(tmp_path / name).volume.voxels, VOXELS)


def test_spacing_comes_from_the_affine_and_not_from_pixdim() -> None:
    affine = np.diag([1.0, 2, 3, 1])
    scan = scan_of(nifti(affine=affine, codes=(1, 0), pixdim=[1, 9, 9, 9, 0, 0, 0, 0]))
    assert scan.volume.grid.spacing_mm == (1.0, 2.0, 3.0)


def test_sform_goes_before_qform() -> None:
    scan = scan_of(nifti(affine=np.diag([1.0, 2, 3, 1]), codes=(2, 1), srow_x=[4, 0, 0, -8]))
    assert scan.volume.grid.spacing_mm == (4.0, 2.0, 3.0)
    alone = scan_of(
        nifti(affine=np.diag([1.0, 2, 3, 1]), codes=(0, 1), srow_x=[4, 0, 0, -8], sform_code=0)
    )
    assert alone.volume.grid.spacing_mm == pytest.approx((1.0, 2.0, 3.0))


@pytest.mark.parametrize(("unit", "per_mm"), [("meter", 1e-3), ("micron", 1e3), ("unknown", 1.0)])
def test_grid_is_in_mm_whatever_the_unit(unit: str, per_mm: float) -> None:
    affine = np.diag([per_mm] * 3 + [1.0]) @ OBLIQUE
    grid = scan_of(nifti(affine=affine, unit=unit)).volume.grid
    np.testing.assert_allclose(grid.affine, OBLIQUE, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("xyzt_units", [4, 5, 7, 255])
def test_a_unit_that_nifti_does_not_define_is_refused(xyzt_units: int) -> None:
    with pytest.raises(ScanError, match=f"unit of length has code {xyzt_units & 7}; expected 0"):
        scan_of(nifti(xyzt_units=xyzt_units))


def test_a_unit_of_time_is_none_of_length() -> None:
    plain, timed = (scan_of(nifti(xyzt_units=code)).volume.grid for code in (0, 0o70))
    assert np.array_equal(timed.affine, plain.affine)


@pytest.mark.parametrize("extra", [(1,), (1, 1), (1, 1, 1, 1)])
def test_trailing_single_axes_are_dropped(extra: tuple[int, ...]) -> None:
    scan = scan_of(nifti(VOXELS.reshape(SHAPE + extra)))
    assert np.array_equal(scan.volume.voxels, VOXELS)


def test_single_slice_is_a_volume() -> None:
    assert scan_of(nifti(VOXELS[:, :, :1])).volume.grid.shape == (5, 6, 1)


def test_scale_slope_and_intercept_are_applied() -> None:
    scan = scan_of(nifti(scl_slope=0.5, scl_inter=-20.0))
    np.testing.assert_allclose(scan.volume.voxels, VOXELS * 0.5 - 20.0)
    assert np.array_equal(scan_of(nifti(scl_slope=0.0, scl_inter=5.0)).volume.voxels, VOXELS)


@pytest.mark.parametrize(
    "dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.float32, np.float64]
)
def test_all_real_types_are_read(dtype: Any) -> None:
    voxels = np.abs(VOXELS % 100).astype(dtype)
    assert np.array_equal(scan_of(nifti(voxels)).volume.voxels, voxels)


def test_four_channels_for_a_package_of_four() -> None:
    four = np.stack([VOXELS + n for n in range(4)], axis=-1)
    assert np.array_equal(scan_of(nifti(four), channels=4).volume.voxels, four)
    assert "4 channels" in refused(nifti(four))
    assert "expected 4" in refused(nifti(), channels=4)
    assert "expected 4" in refused(nifti(four[..., :3]), channels=4)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (nifti(np.zeros((5, 6, 7, 20), np.int16)), "20 channels or time points"),
        (nifti(np.zeros((5, 6, 7, 1, 3), np.int16)), "5 x 6 x 7 x 1 x 3"),
        (nifti(np.zeros((5, 6), np.int16)), "5 x 6;"),
        (nifti(dim=[3, 0, 6, 7, 1, 1, 1, 1]), "0 x 6 x 7"),
        (nifti(dim=[3, -5, 6, 7, 1, 1, 1, 1]), "-5 x 6 x 7"),
        (nifti(VOXELS.astype(np.complex64)), "real numbers"),
        (nifti(np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])), "real numbers"),
        (nifti(sform_code=0, qform_code=0), "no affine"),
        (nifti(srow_x=np.nan), "finite"),
        (nifti(affine=np.diag([1.0, 2, 3, 1]), srow_x=0.0), "sizes"),
        (nifti(srow_x=[1.6, -1.6, 1.8, -31.7]), "right angles"),
        (nifti(sform_code=0, quatern_b=5.0), "not a NIfTI"),
        (nifti(scl_slope=2.0, scl_inter=np.inf), "intercept"),
        (nifti(datatype=-1), "not a NIfTI"),
        (nifti(vox_offset=-5.0), "offset"),
        (nifti(vox_offset=np.nan), "not a NIfTI"),
        (b"\x89PNG\r\n\x1a\n" * 100, "not a NIfTI"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_segmented_is_refused_in_one_sentence(data: bytes, words: str) -> None:
    sentence = refused(data)
    assert words in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers_are_counted_and_refused(value: float) -> None:
    voxels = VOXELS.astype(np.float32)
    voxels[1, 2, 3] = voxels[4, 5, 6] = value
    assert "2 of 210 voxels are NaN or infinite" in refused(nifti(voxels))


@pytest.mark.parametrize("size", [0, 1, 100, 347])
def test_file_shorter_than_a_header_is_refused(size: int) -> None:
    words = "not a NIfTI" if size else "the file is empty"
    assert words in refused(nifti()[:size])
    assert words in refused(gzip.compress(nifti()[:size]))


@pytest.mark.parametrize("size", [348, 352, 400, len(nifti()) - 1])
def test_file_without_all_its_voxels_is_refused_in_one_sentence(size: int) -> None:
    sentence = refused(nifti()[:size])
    assert "5 x 6 x 7 of int16" in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("size", [5, 15, 100, -20, -9, -1])
def test_truncated_gzip_is_refused(size: int) -> None:
    assert "gzip" in refused(gzip.compress(nifti())[:size])


@pytest.mark.parametrize("place", [30, 200, -8, -1])
def test_corrupt_gzip_is_refused(place: int) -> None:
    """A flipped byte in the stream, in the checksum or in the length."""
    data = bytearray(gzip.compress(nifti()))
    data[place] ^= 0xFF
    assert "gzip" in refused(bytes(data))


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match=r"nowhere\.nii: no such file"):
        read_scan(tmp_path / "nowhere.nii")
    with pytest.raises(ScanError, match="cannot be read"):
        read_scan(tmp_path)
    with pytest.raises(ScanError):
        read_scan(tmp_path / "file.nii" / "deeper.nii")


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.integers(0, 351), st.integers(0, 255), min_size=1, max_size=6))
def test_damaged_header_gives_a_scan_or_a_refusal(damage: dict[int, int]) -> None:
    data = bytearray(nifti())
    for place, value in damage.items():
        data[place] = value
    with warnings.catch_warnings():
        # Numbers far out of range may overflow on the way to the refusal.
        warnings.simplefilter("ignore")
        try:
            scan = scan_of(bytes(data))
        except ScanError:
            return
    assert min(scan.volume.grid.shape) >= 1
    assert np.isfinite(scan.volume.voxels).all()


def test_refusal_is_all_that_a_bad_file_prints(tmp_path: Path) -> None:
    """The reader below must not write lines of its own between the user's."""
    (tmp_path / "bad.nii").write_bytes(b"no scan " * 100)
    code = (
        "import sys; from pathlib import Path; from rare_trt.errors import ScanError\n"
        "from rare_trt.scan.nifti import read_scan\n"
        "try: read_scan(Path(sys.argv[1]))\n"
        "except ScanError: print('refused')"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "bad.nii")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("refused\n", "")


# Real edge cases


def edge_outcomes(folder: Path) -> dict[str, Scan | str]:
    """What each file gives: a scan, or the sentence that refuses it without the file's name."""
    outcomes: dict[str, Scan | str] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            outcomes[path.relative_to(folder).as_posix()] = read_scan(path)
        except ScanError as error:
            assert str(error).startswith(f"{path}: ")
            outcomes[path.relative_to(folder).as_posix()] = str(error)[len(f"{path}: ") :]
    return outcomes


@pytest.fixture(scope="module")
def edge(shared_data: Path) -> dict[str, Scan | str]:
    outcomes = edge_outcomes(shared_data / "nifti_edge")
    assert len(outcomes) > 50
    return outcomes


def test_every_edge_case_is_a_scan_or_one_sentence(edge: dict[str, Scan | str]) -> None:
    wordy = {name for name, found in edge.items() if isinstance(found, str) and "\n" in found}
    assert not wordy


@pytest.mark.parametrize(
    ("name", "shape", "spacing_mm"),
    [
        ("nibabel/anatomical.nii", (33, 41, 25), (2.0, 2.0, 2.0)),
        ("nibabel/reoriented_anat_moved.nii", (21, 26, 22), (4.0, 4.0, 4.0)),
        ("nibabel/standard.nii.gz", (4, 5, 7), (1.0, 3.0, 2.0)),
        ("nifti_rs/zstat1.nii.gz", (64, 64, 21), (4.0, 4.0, 6.0)),
        ("niivue/strokez.nii.gz", (157, 189, 156), (1.0, 1.0, 1.0)),
        ("rii/avg152T1_LR_nifti2.nii.gz", (91, 109, 91), (2.0, 2.0, 2.0)),
        ("rii/with_extension.nii.gz", (161, 191, 151), (1.0, 1.0, 1.0)),
    ],
)
def test_edge_case_is_read(
    edge: dict[str, Scan | str],
    name: str,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
) -> None:
    scan = edge[name]
    assert isinstance(scan, Scan)
    assert scan.volume.voxels.shape == shape
    assert scan.volume.grid.spacing_mm == pytest.approx(spacing_mm, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nibabel/functional.nii", "20 channels or time points"),
        ("nibabel/resampled_anat_moved.nii", "153 of 1071 voxels are NaN or infinite"),
        ("nibabel/nifti1.hdr", "its magic is"),
        ("nifti_rs/minimal.nii", "no affine"),
        ("nifti_rs/rgb/3D.nii", "real numbers"),
        ("nifti_rs/fuzz_artifacts/crash-1.nii", "not a NIfTI file"),
        ("niivue/complex.nii.gz", "real numbers"),
        ("niivue/shear.nii.gz", "18.5 degrees off right angles"),
        ("rii/5D_small.nii", "1 x 2 x 3 x 1 x 3"),
        ("rii/not-nifti.nii", "not a NIfTI file"),
    ],
)
def test_edge_case_is_refused(edge: dict[str, Scan | str], name: str, words: str) -> None:
    sentence = edge[name]
    assert isinstance(sentence, str)
    assert words in sentence


def test_byte_order_does_not_matter_for_real_files(edge: dict[str, Scan | str]) -> None:
    big, little = edge["rii/big.nii.gz"], edge["rii/little.nii.gz"]
    assert isinstance(big, Scan)
    assert isinstance(little, Scan)
    assert np.array_equal(big.volume.voxels, little.volume.voxels)
    np.testing.assert_allclose(big.volume.grid.affine, little.volume.grid.affine, atol=1e-4)


def test_all_integer_and_float_types_of_one_image_are_the_same_scan(
    edge: dict[str, Scan | str],
) -> None:
    found = [scan for name, scan in edge.items() if name.startswith("nifti_rs/27/")]
    scans = [scan for scan in found if isinstance(scan, Scan)]
    assert len(scans) == len(found) == 10
    for scan in scans:
        assert scan.volume.voxels.shape == (3, 3, 3)
        assert np.array_equal(scan.volume.voxels, scans[0].volume.voxels)


# Labels out


def labels_of(scan: Scan, labels: NDArray[np.uint8] = LABELS, compressed: bool = False) -> bytes:
    return label_bytes(labels, scan, scan.volume.grid, compressed)


@pytest.mark.parametrize("codes", [(1, 1), (2, 0), (0, 1), (4, 3)])
@pytest.mark.parametrize("unit", ["mm", "micron"])
@pytest.mark.parametrize("version", [nib.Nifti1Image, nib.Nifti2Image])
def test_labels_keep_the_scans_place_bit_for_bit(
    codes: tuple[int, int], unit: str, version: Any
) -> None:
    """Also where sform and qform disagree, and whichever of them is the scan's."""
    data = nifti(codes=codes, unit=unit, version=version, qoffset_x=55.5)
    source = image_of(data, version)
    scan = scan_of(data)
    found = image_of(labels_of(scan), version)
    assert found.header["sizeof_hdr"] == source.header["sizeof_hdr"]
    for field in PLACEMENT:
        assert found.header[field].tobytes() == source.header[field].tobytes(), field
    assert found.header["pixdim"][:4].tobytes() == source.header["pixdim"][:4].tobytes()
    assert np.array_equal(found.affine, source.affine)
    assert np.array_equal(scan_of(labels_of(scan)).volume.grid.affine, scan.volume.grid.affine)


@pytest.mark.parametrize("extra", [(), (1,)])
def test_labels_are_plain_uint8_in_three_dimensions(extra: tuple[int, ...]) -> None:
    data = nifti(
        VOXELS.reshape(SHAPE + extra), scl_slope=2.0, scl_inter=7.0, cal_max=900.0, cal_min=-5.0
    )
    found = image_of(labels_of(scan_of(data)))
    stored = np.asarray(found.dataobj)
    assert stored.dtype == np.uint8
    assert found.shape == SHAPE
    assert np.array_equal(stored, LABELS)
    assert found.header.get_slope_inter() in ((1.0, 0.0), (None, None))
    assert (found.header["cal_max"], found.header["cal_min"]) == (0.0, 0.0)


def test_intent_and_timing_do_not_come_along() -> None:
    data = nifti(
        intent_code=3, intent_p1=9.0, toffset=3.0, slice_code=1, slice_end=6, slice_duration=0.1
    )
    header = image_of(labels_of(scan_of(data))).header
    assert header.get_intent() == ("label", (), "rare-trt labels")
    for field in ("intent_p1", "toffset", "slice_code", "slice_end", "slice_duration", "dim_info"):
        assert header[field] == 0, field


@pytest.mark.parametrize("version", [nib.Nifti1Image, nib.Nifti2Image])
def test_free_text_of_the_header_does_not_come_along(version: Any) -> None:
    """Every text field, used or not by the standard: each can hold a patient's name."""
    fields = version.header_class.template_dtype.fields.items()
    texts = [name for name, (kind, *_) in fields if kind.kind == "S" and kind.itemsize > 4]
    assert {"descrip", "aux_file", "intent_name"} <= set(texts)
    for text in texts:
        name: Any = {text: b"DOE^JANE"}
        data = nifti(version=version, **name)
        assert b"DOE^JANE" in data
        assert b"DOE^JANE" not in labels_of(scan_of(data)), text


def test_extensions_do_not_come_along() -> None:
    header = nib.Nifti1Header()
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"DOE^JANE"))
    data = nifti(header=header)
    assert b"DOE^JANE" in data
    found = labels_of(scan_of(data))
    assert b"DOE^JANE" not in found
    assert found == labels_of(scan_of(nifti()))


@pytest.mark.parametrize("version", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("endianness", ["<", ">"])
def test_version_stays_whatever_the_byte_order(version: Any, endianness: str) -> None:
    header = version.header_class(endianness=endianness)
    scan = scan_of(nifti(version=version, header=header, voxels=VOXELS.astype(f"{endianness}i2")))
    found = labels_of(scan)
    assert isinstance(image_of(found, version), version)
    assert np.array_equal(scan_of(found).volume.voxels, LABELS)


def test_same_labels_give_the_same_bytes_in_any_memory_order() -> None:
    for compressed in (False, True):
        plain = labels_of(scan_of(nifti()), LABELS, compressed)
        fortran = labels_of(scan_of(nifti()), np.asfortranarray(LABELS), compressed)
        assert plain == fortran
        assert plain[:2] == (b"\x1f\x8b" if compressed else b"\x5c\x01")
    assert gzip.decompress(plain) == labels_of(scan_of(nifti()))


def test_scan_is_left_as_it_was() -> None:
    scan = scan_of(nifti(descrip=b"kept", cal_max=900.0, scl_slope=2.0))
    before = scan.header.binaryblock
    labels_of(scan)
    label_bytes(LABELS, scan, scan.volume.grid.box((0, 0, 0), SHAPE), False)
    assert scan.header.binaryblock == before


@pytest.mark.parametrize("codes", [(1, 1), (2, 0), (0, 1), (4, 3)])
@pytest.mark.parametrize(("unit", "per_mm"), [("mm", 1.0), ("meter", 1e-3)])
def test_labels_on_a_finer_grid_lie_there_in_mm(
    codes: tuple[int, int], unit: str, per_mm: float
) -> None:
    affine = np.diag([per_mm] * 3 + [1.0]) @ OBLIQUE
    scan = scan_of(nifti(affine=affine, codes=codes, unit=unit))
    fine = scan.volume.grid.subdivide((2, 1, 3))
    labels = LABELS.repeat(2, axis=0).repeat(3, axis=2)
    data = label_bytes(labels, scan, fine, False)
    found = scan_of(data)
    assert np.array_equal(found.volume.voxels, labels)
    np.testing.assert_allclose(found.volume.grid.affine, fine.affine, atol=1e-5)
    header = image_of(data).header
    assert header.get_xyzt_units()[0] == "mm"
    assert header.get_zooms() == pytest.approx(fine.spacing_mm, rel=1e-5)
    assert int(header["sform_code"]) == (codes[0] or codes[1])
    # Readers that look at the qform first must find the same place, or none.
    if int(header["qform_code"]):
        np.testing.assert_allclose(header.get_qform(), fine.affine, atol=1e-4)


@pytest.mark.parametrize("header", [nib.Nifti1Header, nib.Nifti2Header])
@pytest.mark.parametrize("signs", [(-1, 1, 1), (1, 1, 1), (-1, -1, 1)])
def test_labels_of_a_scan_made_in_memory_have_a_place(
    header: Any, signs: tuple[int, int, int]
) -> None:
    """Also where its grid is the one that nibabel makes up for a header without codes."""
    affine = np.diag([*signs, 1.0])
    scan = Scan(Volume(VOXELS, Grid(SHAPE, affine)), header())
    np.testing.assert_array_equal(scan_of(labels_of(scan)).volume.grid.affine, affine)


# Names


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.nii", "a"), ("a.b.nii.gz", "a.b"), ("A.NII.GZ", "A"), ("sub-1_T1w.nii", "sub-1_T1w")],
)
def test_stem_is_the_name_without_the_endings(name: str, expected: str) -> None:
    assert is_scan_name(Path("folder.d") / name)
    assert stem(Path("folder.d") / name) == expected


@pytest.mark.parametrize("name", ["a.gz", "a.nii.zip", "a", "nii", "a.hdr"])
def test_other_names_are_no_scans(name: str) -> None:
    assert not is_scan_name(Path(name))
    with pytest.raises(OutputError, match="expected a name"):
        stem(Path(name))
