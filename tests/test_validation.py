"""The input gate: what each file comes to, how much it may cost, and what no damage gets past."""

from __future__ import annotations

import gzip
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from rare_trt import read_scan
from rare_trt.cli import main
from rare_trt.errors import ScanError
from rare_trt.scan.nifti import scan_from_bytes
from rare_trt.scan.validation import MAX_BYTES, parse_header

SHAPE = (4, 5, 6)
VOXELS = np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)

# Bytes. The base of a process that has imported the runtime is about 200 MB.
LARGEST_RSS = 2 << 30

FOV = "the field of view is"
HEADER = "not a NIfTI file that can be read"
DICOM = f"{HEADER} (it is a DICOM file)"
HALF = f"{HEADER} (its magic is"
START = f"{HEADER} (it begins with"
CHANNELS = "channels or time points"
PLANE = "expected three axes"
NO_AFFINE = "the header has no affine"

# Every edge case of the shared scans, and how its refusal begins or what it says; None: labels.
EDGE: dict[str, str | None] = {
    "nifti_edge/nibabel/analyze.hdr": HALF,
    "nifti_edge/nibabel/anatomical.nii": None,
    "nifti_edge/nibabel/example4d.nii.gz": f"2 {CHANNELS}",
    "nifti_edge/nibabel/example_nifti2.nii.gz": f"2 {CHANNELS}",
    "nifti_edge/nibabel/functional.nii": f"20 {CHANNELS}",
    "nifti_edge/nibabel/nifti1.hdr": HALF,
    "nifti_edge/nibabel/nifti2.hdr": HALF,
    "nifti_edge/nibabel/reoriented_anat_moved.nii": None,
    "nifti_edge/nibabel/resampled_anat_moved.nii": "153 of 1071 voxels are NaN or infinite",
    "nifti_edge/nibabel/standard.nii.gz": FOV,
    **{
        f"nifti_edge/nifti_rs/27/{kind}{bits}.nii": FOV
        for kind, sizes in (
            ("uint", (8, 16, 32, 64)),
            ("int", (8, 16, 32, 64)),
            ("float", (32, 64)),
        )
        for bits in sizes
    },
    "nifti_edge/nifti_rs/complex/complex32.nii": PLANE,
    "nifti_edge/nifti_rs/complex/complex64.nii": PLANE,
    "nifti_edge/nifti_rs/f32.nii.gz": FOV,
    "nifti_edge/nifti_rs/fuzz_artifacts/crash-08123ef33416bd6f0c5fa63d44b681b8581d62a0": START,
    "nifti_edge/nifti_rs/fuzz_artifacts/crash-1.nii": START,
    "nifti_edge/nifti_rs/fuzz_artifacts/crash-98aa054390f8d3f932f190dc22ef62c6ff2d6619": START,
    "nifti_edge/nifti_rs/fuzz_artifacts/crash-d03c6346fe83a026738f6b8cd2a9335a3f8cb158": START,
    "nifti_edge/nifti_rs/fuzz_artifacts/crash-ed7d46344d7efb3b9f0c374d66d2e02f66cc447d.nii": START,
    "nifti_edge/nifti_rs/minimal.hdr": HALF,
    "nifti_edge/nifti_rs/minimal.hdr.gz": HALF,
    "nifti_edge/nifti_rs/minimal.img": START,
    "nifti_edge/nifti_rs/minimal.img.gz": START,
    "nifti_edge/nifti_rs/minimal.nii": NO_AFFINE,
    "nifti_edge/nifti_rs/minimal.nii.gz": NO_AFFINE,
    "nifti_edge/nifti_rs/minimal2.hdr": HALF,
    "nifti_edge/nifti_rs/minimal2.img.gz": START,
    "nifti_edge/nifti_rs/minimal_extended_hdr.nii": PLANE,
    "nifti_edge/nifti_rs/rgb/3D.nii": "the voxels are RGB colours",
    "nifti_edge/nifti_rs/rgb/4D.nii": f"2 {CHANNELS}",
    "nifti_edge/nifti_rs/rgba/4D.nii": f"2 {CHANNELS}",
    "nifti_edge/nifti_rs/zstat1.nii.gz": FOV,
    "nifti_edge/niivue/complex.nii.gz": "the voxels are complex64",
    "nifti_edge/niivue/ct_perfusion_rgb.nii.gz": "the voxels are RGB colours",
    "nifti_edge/niivue/low_res.nii.gz": FOV,
    "nifti_edge/niivue/minimal.nii.gz": NO_AFFINE,
    "nifti_edge/niivue/pcasl.nii.gz": f"10 {CHANNELS}",
    "nifti_edge/niivue/ras.hdr": HALF,
    "nifti_edge/niivue/ras.img": START,
    "nifti_edge/niivue/shear.nii.gz": "18.5 degrees off right angles",
    "nifti_edge/niivue/spmMotor.nii.gz": FOV,
    "nifti_edge/niivue/strokez.nii.gz": FOV,
    "nifti_edge/rii/5D_small.nii": "1 x 2 x 3 x 1 x 3",
    "nifti_edge/rii/5D_zeros.nii.gz": "256 x 256 x 170 x 1 x 3",
    "nifti_edge/rii/air.hdr.gz": HALF,
    "nifti_edge/rii/air.img.gz": START,
    "nifti_edge/rii/air2.hdr.gz": HALF,
    "nifti_edge/rii/air2.img.gz": START,
    "nifti_edge/rii/avg152T1_LR_nifti.nii.gz": FOV,
    "nifti_edge/rii/avg152T1_LR_nifti2.nii.gz": FOV,
    "nifti_edge/rii/big.nii.gz": FOV,
    "nifti_edge/rii/little.nii.gz": FOV,
    "nifti_edge/rii/not-nifti.nii": START,
    "nifti_edge/rii/with_extension.nii.gz": FOV,
    "dicom_files/MR_small.dcm": DICOM,
    "dicom_files/MR_small_RLE.dcm": DICOM,
    "dicom_files/MR_small_bigendian.dcm": DICOM,
    "dicom_files/MR_small_expb.dcm": DICOM,
    "dicom_files/MR_small_implicit.dcm": DICOM,
    "dicom_files/MR_small_jp2klossless.dcm": DICOM,
    "dicom_files/MR_small_jpeg_ls_lossless.dcm": DICOM,
    "dicom_files/MR_small_padded.dcm": DICOM,
    "dicom_files/MR_truncated.dcm": DICOM,
    "dicom_files/decimal_rescale.dcm": DICOM,
    "dicom_files/niivue_enhanced_mr_vida.dcm": DICOM,
    "dicom_files/philips_mprage.dcm.gz": DICOM,
    "dicom_files/siemens_dwi_0.dcm.gz": HEADER,
    "dicom_files/slicethickness_empty_string.dcm": DICOM,
}


def header_bytes(size: int = 348, **fields: object) -> bytes:
    """A NIfTI header of a sound scan of SHAPE, with `fields` changed, and its four extra bytes."""
    kind = nib.Nifti1Header if size == 348 else nib.Nifti2Header
    header = kind()
    header.set_data_dtype(np.int16)
    header.set_data_shape(SHAPE)
    header.set_sform(np.diag([1.0, 2.0, 3.0, 1.0]), 1)
    header.set_zooms((1.0, 2.0, 3.0))
    header["vox_offset"] = header.single_vox_offset
    header["magic"] = header.single_magic
    header["scl_slope"], header["scl_inter"] = 1.0, 0.0
    for name, value in fields.items():
        header[name] = value
    return bytes(header.binaryblock) + bytes(4)


def nifti(voxels: bytes = VOXELS.tobytes(order="F"), size: int = 348, **fields: object) -> bytes:
    return header_bytes(size, **fields) + voxels


def refused(data: bytes, channels: int = 1) -> str:
    with pytest.raises(ScanError) as error:
        scan_from_bytes(data, "scan", channels)
    sentence = str(error.value)
    assert sentence.startswith("scan: ")
    assert "\n" not in sentence
    return sentence[len("scan: ") :]


def process(path: Path, out: Path) -> tuple[int, str, str, int]:
    """Exit status, both outputs and the largest memory of `rare-trt infer` as a process."""
    code = (
        "import sys; from rare_trt.cli import main\n"
        "status = main(['infer', sys.argv[1], '-o', sys.argv[2]])\n"
        # getrusage would count what the parent had when it started this process.
        "lines = open('/proc/self/status').read().splitlines()\n"
        "peak = next(int(x.split()[1]) * 1024 for x in lines if x.startswith('VmHWM'))\n"
        "print('peak', peak); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    out_lines, peak = done.stdout.rsplit("peak ", 1)
    return done.returncode, out_lines, done.stderr, int(peak)


# Every file


def test_the_table_is_of_every_file(shared_data: Path) -> None:
    found = {
        path.relative_to(shared_data).as_posix()
        for folder in ("nifti_edge", "dicom_files")
        for path in (shared_data / folder).rglob("*")
        if path.is_file()
    }
    assert found == set(EDGE)


@pytest.mark.parametrize("name", EDGE)
def test_every_edge_case_ends_in_labels_or_one_sentence(
    shared_data: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = EDGE[name]
    out = tmp_path / "labels.nii.gz"
    status = main(["infer", str(shared_data / name), "-o", str(out)])
    _, stderr = capsys.readouterr()
    left = sorted(path.name for path in tmp_path.iterdir())
    if words is None:
        # Whole heads small and coarse enough to pass for a crop: with what training saw in the
        # package they are remarked on (tests/test_seen.py).
        assert (status, stderr) == (0, "")
        assert left == ["labels.nii.gz", "labels_dseg.tsv"]
        scan, labels = nib.load(shared_data / name), nib.load(out)
        assert labels.shape == scan.shape
        np.testing.assert_array_equal(labels.affine, scan.affine)
    else:
        assert status == 1
        assert stderr.startswith(f"rare-trt: {shared_data / name}: ")
        assert words in stderr
        assert stderr.count("\n") == 1
        assert left == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "nifti_edge/nibabel/anatomical.nii",
        "nifti_edge/nifti_rs/fuzz_artifacts/crash-1.nii",
        "nifti_edge/niivue/shear.nii.gz",
        "nifti_edge/niivue/strokez.nii.gz",
        "nifti_edge/rii/5D_zeros.nii.gz",
        "nifti_edge/rii/avg152T1_LR_nifti2.nii.gz",
        "nifti_edge/rii/with_extension.nii.gz",
        "dicom_files/niivue_enhanced_mr_vida.dcm",
        "dicom_files/philips_mprage.dcm.gz",
    ],
)
def test_edge_cases_as_processes_stay_small(shared_data: Path, tmp_path: Path, name: str) -> None:
    status, _, stderr, peak = process(shared_data / name, tmp_path / "labels.nii.gz")
    assert status == (0 if EDGE[name] is None else 1)
    assert "Traceback" not in stderr
    assert stderr.count("\n") == status
    assert peak < LARGEST_RSS


# What a file may cost


def zeros_behind(start: bytes, zeros: int) -> bytes:
    """A gzip stream of `start` and then `zeros` zeros, made without holding them.

    Its checksum is wrong, but nobody who reads as far as that has been careful.
    """
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = bytes(1 << 24)
    first = squeeze.compress(start) + squeeze.flush(zlib.Z_FULL_FLUSH)
    # After a full flush the same bytes are compressed to the same bytes.
    again = squeeze.compress(piece) + squeeze.flush(zlib.Z_FULL_FLUSH)
    head = gzip.compress(b"")[:10]
    return b"".join([head, first, again * (zeros // len(piece)), squeeze.flush(), bytes(8)])


def test_bombs_are_refused_small(tmp_path: Path) -> None:
    """Ten gigabytes of zeros in ten megabytes: behind a sound header, one that admits to them, and
    none."""
    long = {"dim": [3, 2048, 2048, 1200, 1, 1, 1, 1]}
    bombs = {
        "behind a sound scan": (nifti(), "more bytes than the 592"),
        "declared": (header_bytes(**long), "expected at most 4294967296"),
        "no header": (b"", "not a NIfTI file"),
    }
    for name, (start, words) in bombs.items():
        path = tmp_path / f"{name}.nii.gz"
        path.write_bytes(zeros_behind(start, 10 << 30))
        assert path.stat().st_size < 12 << 20
        status, _, stderr, peak = process(path, tmp_path / "labels.nii.gz")
        assert status == 1
        assert words in stderr
        assert stderr.count("\n") == 1
        assert peak < 512 << 20


def peak_bytes(data: bytes) -> int:
    """How much memory refusing `data` takes at its peak, beyond what is held before."""

    def held(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    # The peak begins anew: what ran before may have taken more.
    Path("/proc/self/clear_refs").write_text("5")
    before = held("VmRSS")
    refused(data)
    return held("VmHWM") - before


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}, f"expected at most {MAX_BYTES}"),
        ({"dim": [3, 2000, 2000, 300, 1, 1, 1, 1], "scl_slope": 2.0}, "expected at most"),
        ({"dim": [3, 1024, 1024, 1024, 1, 1, 1, 1]}, "its header declares 2147484000"),
        ({"dim": [7, *[32767] * 7]}, "32767 x 32767 x 32767 x 32767"),
    ],
)
def test_huge_sizes_are_refused_from_the_header(fields: dict[str, object], words: str) -> None:
    """Stored bytes and decoded ones count; sizes are multiplied without overflow."""
    assert words in refused(nifti(**fields))
    assert peak_bytes(nifti(**fields)) < 64 << 20


def test_sizes_of_64_bits_do_not_overflow() -> None:
    """Products that are 0 or small in 64 bits."""
    for dim in ([1 << 32, 1 << 32, 1], [1 << 62, 4, 1], [3, 6148914691236517206, 1]):
        data = nifti(size=540, dim=[3, *dim, 1, 1, 1, 1])
        assert "expected at most" in refused(data)


def test_compressed_bytes_that_cannot_hold_what_is_declared_take_no_memory() -> None:
    data = gzip.compress(nifti(dim=[3, 1000, 1000, 1000, 1, 1, 1, 1]))
    assert "cannot contain" in refused(data)
    assert peak_bytes(data) < 64 << 20


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    """A pipe would be waited for, and a device never ends."""
    os.mkfifo(tmp_path / "pipe.nii")
    for path in (tmp_path / "pipe.nii", Path("/dev/zero"), tmp_path):
        with pytest.raises(ScanError, match="cannot be read"):
            read_scan(path)


def test_a_file_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse.nii"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ScanError, match=f"{MAX_BYTES + 1} bytes; expected at most {MAX_BYTES}"):
        read_scan(path)


# Gzip


def test_every_truncation_is_refused(examples: Path) -> None:
    """At every hundredth of the file, and at each of its last bytes: checksum and length."""
    data = (examples / "hippocampus_2mm.nii.gz").read_bytes()
    cuts = {len(data) * part // 100 for part in range(100)} | set(range(len(data) - 40, len(data)))
    for cut in cuts:
        refused(data[:cut])
    plain = gzip.decompress(data)
    for cut in {len(plain) * part // 100 for part in range(100)}:
        refused(plain[:cut])


@pytest.mark.parametrize(
    "behind",
    [b"\0", b"more", gzip.compress(b"\0"), gzip.compress(nifti())],
    ids=["zero", "text", "member", "scan"],
)
def test_nothing_may_lie_behind_a_scan(behind: bytes) -> None:
    assert "gzip" in refused(gzip.compress(nifti()) + behind)
    assert "its header declares" in refused(nifti() + behind)


def test_several_members_are_one_stream() -> None:
    """As RFC 1952 has it, wherever they are cut; each has its own checksum."""
    data = nifti()
    for cut in (0, 4, 348, 400, len(data)):
        members = gzip.compress(data[:cut]) + gzip.compress(data[cut:])
        assert np.array_equal(scan_from_bytes(members, "scan").volume.voxels, VOXELS)
        assert "gzip" in refused(members[:-1])
    damaged = bytearray(gzip.compress(data[:400]))
    damaged[-5] ^= 1
    assert "gzip" in refused(bytes(damaged) + gzip.compress(data[400:]))


def test_gzip_inside_gzip_is_no_scan() -> None:
    assert "it begins with" in refused(gzip.compress(gzip.compress(nifti())))


def test_wrong_checksum_and_length_are_refused() -> None:
    data = gzip.compress(nifti())
    body, crc, size = data[:-8], *struct.unpack("<II", data[-8:])
    assert "Incorrect checksum" in refused(body + struct.pack("<II", crc ^ 1, size))
    assert "Incorrect checksum" in refused(body + struct.pack("<II", crc, size + 1))


# Headers


@pytest.mark.parametrize("size", [348, 540])
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dim": [0, 4, 5, 6, 1, 1, 1, 1]}, "it has 0 axes"),
        ({"dim": [8, 4, 5, 6, 1, 1, 1, 1]}, "it has 8 axes"),
        ({"bitpix": 8}, "int16 of 8 bits"),
        ({"datatype": 1}, "single bits"),
        ({"datatype": 1536}, "float128"),
        ({"datatype": 0}, "unknown code 0"),
        ({"vox_offset": 0}, "the offset 0"),
        ({"vox_offset": 348}, "the offset 348"),
        ({"scl_slope": np.inf}, "slope of inf"),
        ({"scl_slope": 2.0, "scl_inter": np.nan}, "intercept of nan"),
        ({"sform_code": 6}, "codes 6 and 0"),
        ({"sform_code": -1}, "codes -1 and 0"),
        ({"srow_x": [1e30, 0, 0, 0]}, "1e+30"),
        ({"srow_x": [1e-20, 0, 0, 0]}, "expected three sizes of 0.0001 to 10000 mm"),
        ({"srow_y": [0, 2, 0, 1e9]}, "1e+09 mm from the world's origin"),
        ({"srow_x": [1, 0, 1, 0]}, "degrees off right angles"),
    ],
)
def test_headers_that_make_no_sense_are_refused(
    size: int, fields: dict[str, object], words: str
) -> None:
    assert words in refused(nifti(size=size, **fields))


def test_a_half_voxel_offset_is_refused() -> None:
    assert "the offset 352.5" in refused(nifti(vox_offset=352.5))


@pytest.mark.parametrize(
    ("slope", "inter", "factor", "offset"),
    [(1, 0, 1, 0), (0, 7, 1, 0), (np.nan, 7, 1, 0), (-0.5, 3, -0.5, 3), (2, 0, 2, 0)],
)
def test_slopes_of_zero_and_nan_say_that_nothing_is_scaled(
    slope: float, inter: float, factor: float, offset: float
) -> None:
    scan = scan_from_bytes(nifti(scl_slope=slope, scl_inter=inter), "scan")
    np.testing.assert_array_equal(scan.volume.voxels, VOXELS * factor + offset)


def test_scaling_that_overflows_is_refused() -> None:
    voxels = np.full(SHAPE, 1e300)
    voxels[0, 0, 0] = 0.0
    data = nifti(voxels.tobytes(), datatype=64, bitpix=64, scl_slope=1e30)
    with np.errstate(over="ignore"):
        assert "119 of 120 voxels are NaN or infinite" in refused(data)


@pytest.mark.parametrize("step", [0, 7, -16, 1 << 20])
def test_an_extension_must_end_before_the_voxels(step: int) -> None:
    """Extensions are never read, only stepped over."""
    head = bytearray(header_bytes(vox_offset=400))
    head[348] = 1
    good = bytes(head) + struct.pack("<ii", 48, 6) + bytes(40) + VOXELS.tobytes(order="F")
    assert np.array_equal(scan_from_bytes(good, "scan").volume.voxels, VOXELS)
    bad = bytes(head) + struct.pack("<ii", step, 6) + bytes(40) + VOXELS.tobytes(order="F")
    assert f"an extension of {step} bytes" in refused(bad)


# Two places


def placed(sform: np.ndarray, qform: np.ndarray, codes: tuple[int, int]) -> bytes:
    image = nib.Nifti1Image(VOXELS, sform)
    image.set_sform(sform, codes[0])
    image.set_qform(qform, codes[1])
    return bytes(image.to_bytes())


STRAIGHT = np.diag([1.0, 2.0, 3.0, 1.0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (np.diag([-1.0, 1, 1, 1]), "one is the mirror image of the other"),
        (np.diag([1.0, 1, 1.2, 1]), "voxels of 1 x 2 x 3 mm in one, of 1 x 2 x 3.6 mm"),
        (np.diag([-1.0, -1, 1, 1]), "they turn the voxel axes to different sides"),
    ],
)
def test_two_places_that_lead_to_two_answers_are_refused(change: np.ndarray, words: str) -> None:
    assert words in refused(placed(STRAIGHT, change @ STRAIGHT, (1, 1)))


def test_a_mirror_image_is_refused_whatever_the_codes() -> None:
    assert "mirror" in refused(placed(STRAIGHT, np.diag([1.0, 1, -1, 1]) @ STRAIGHT, (4, 1)))


def test_other_differences_take_the_sform_and_say_so_where_it_matters() -> None:
    moved, turned = STRAIGHT.copy(), np.diag([-1.0, -1, 1, 1]) @ STRAIGHT
    moved[0, 3] = 30.0
    grown = np.diag([1.1, 1.1, 1.1, 1.0]) @ STRAIGHT
    sizes = "voxels of 1 x 2 x 3 mm in one, of 1.1 x 2.2 x 3.3 mm in the other"
    for qform, codes, words in (
        (grown, (4, 1), (f"sform and qform differ in scale ({sizes}); the sform was taken",)),
        (moved, (1, 1), ("sform and qform place the scan 30 mm apart; the sform was taken",)),
        (moved, (4, 1), ()),
        (turned, (4, 1), ("sform and qform place the scan 16 mm apart; the sform was taken",)),
        (turned, (1, 0), ()),
        (STRAIGHT, (1, 1), ()),
    ):
        scan = scan_from_bytes(placed(STRAIGHT, qform, codes), "scan")
        np.testing.assert_array_equal(scan.volume.grid.affine, STRAIGHT)
        assert scan.remarks == words


def test_a_doubtful_place_is_among_the_flags(examples: Path, tmp_path: Path) -> None:
    image = nib.load(examples / "hippocampus_2mm.nii.gz")
    moved = image.affine.copy()
    moved[2, 3] += 25.0
    image.set_sform(image.affine, 1)
    image.set_qform(moved, 1)
    nib.save(image, tmp_path / "scan.nii.gz")
    report = tmp_path / "report.json"
    assert main(["infer", str(tmp_path / "scan.nii.gz"), "--report", str(report)]) == 0
    sentence = "sform and qform place the scan 25 mm apart; the sform was taken"
    assert sentence in json.loads(report.read_text())["flags"]


@pytest.mark.parametrize("size", [348, 540])
@pytest.mark.parametrize(
    ("pixdim", "units", "stated"),
    [
        ([1.0, 2.0, 3.0], 2, None),
        # Rounding, and the sign by which some programs mark a flipped axis.
        ([1.00001, 2.0, 2.9999], 2, None),
        ([-1.0, 2.0, 3.0], 2, None),
        ([0.5, 1.0, 1.5], 2, "0.5 x 1 x 1.5"),
        ([1.0, 2.0, 3.06], 2, "1 x 2 x 3.06"),
        ([0.0, 2.0, 3.0], 2, "0 x 2 x 3"),
        ([np.nan, 2.0, 3.0], 2, "nan x 2 x 3"),
        # Millimetres beside an sform in metres.
        ([1.0, 2.0, 3.0], 1, "1000 x 2000 x 3000"),
    ],
)
def test_voxel_sizes_that_are_stated_twice_are_compared(
    size: int, pixdim: list[float], units: int, stated: str | None
) -> None:
    """pixdim beside an sform, without a qform: other programs count volumes by it."""
    sform = np.diag([1.0, 2.0, 3.0, 1.0])
    if units == 1:
        sform[:3] /= 1000.0
    rows = {f"srow_{axis}": row for axis, row in zip("xyz", sform, strict=False)}
    data = nifti(size=size, pixdim=[1.0, *pixdim, 1, 1, 1, 1], xyzt_units=units, **rows)
    scan = scan_from_bytes(data, "scan")
    np.testing.assert_allclose(scan.volume.grid.spacing_mm, (1.0, 2.0, 3.0))
    if stated is None:
        assert scan.remarks == ()
    else:
        (remark,) = scan.remarks
        assert remark == (
            f"sform and pixdim differ in scale (voxels of 1 x 2 x 3 mm in one, of {stated} mm in "
            "the other); the sform was taken"
        )


def test_a_scale_of_two_percent_between_sform_and_qform_is_a_remark() -> None:
    grown = np.diag([1.02, 1.02, 1.02, 1.0]) @ STRAIGHT
    (remark,) = scan_from_bytes(placed(STRAIGHT, grown, (1, 1)), "scan").remarks
    assert "of 1.02 x 2.04 x 3.06 mm in the other" in remark


def test_labels_state_one_voxel_size_where_the_scan_states_two(
    examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = nib.load(examples / "hippocampus_2mm.nii.gz")
    image.set_qform(None, 0)
    image.header["pixdim"][1:4] = 1.0
    scan, labels = tmp_path / "scan.nii.gz", tmp_path / "labels.nii.gz"
    nib.save(image, scan)
    # nibabel corrects pixdim as it saves.
    data = bytearray(gzip.decompress(scan.read_bytes()))
    data[80:92] = struct.pack("<3f", 1.0, 1.0, 1.0)
    scan.write_bytes(gzip.compress(bytes(data)))
    assert main(["infer", str(scan), "-o", str(labels)]) == 0
    assert "sform and pixdim differ in scale" in capsys.readouterr().out
    header = nib.load(labels).header
    assert header["qform_code"] == 0
    assert header.get_zooms() == (2.0, 2.0, 2.0)
    strict = ["infer", str(scan), "-o", str(tmp_path / "strict.nii.gz"), "--strict"]
    assert main(strict) == 1
    assert "of 1 x 1 x 1 mm in the other" in capsys.readouterr().err


def test_honest_headers_state_one_geometry(shared_data: Path) -> None:
    """Over all shared scans: rounding is no contradiction."""
    folders = ("hippocampus", "heads_2mm", "heads_elderly_2mm", "ixi_t1_2mm", "nifti_space48")
    paths = [path for name in folders for path in (shared_data / name).rglob("*.nii.gz")]
    assert len(paths) > 500
    for path in paths:
        with gzip.open(path) as file:
            start = file.read(544)
        channels = max(1, int(nib.load(path).header["dim"][4]))
        assert parse_header(start, channels).remarks == (), path


# Voxels


def test_voxels_of_one_value_are_refused(examples: Path, tmp_path: Path) -> None:
    image = nib.load(examples / "hippocampus_2mm.nii.gz")
    flat = nib.Nifti1Image(np.full(image.shape, 7, np.int16), image.affine)
    nib.save(flat, tmp_path / "flat.nii")
    from rare_trt import Segmenter

    with Segmenter.load() as segmenter, pytest.raises(ScanError, match="no contrast"):
        segmenter.segment(tmp_path / "flat.nii")


def test_validated_voxels_cannot_be_changed_unnoticed() -> None:
    """They are looked at once: so nothing may write to them afterwards."""
    for slope in (1.0, 2.0):
        for data in (nifti(scl_slope=slope), gzip.compress(nifti(scl_slope=slope))):
            scan = scan_from_bytes(data, "scan")
            assert scan.validated is scan.volume.voxels
            with pytest.raises(ValueError, match="read-only"):
                scan.volume.voxels[0, 0, 0] = 1


def test_stored_voxels_are_not_copied() -> None:
    """A scan without scaling takes the memory of its bytes alone."""
    data = nifti()
    voxels = scan_from_bytes(data, "scan").volume.voxels
    assert np.shares_memory(voxels, np.frombuffer(data, np.uint8))


def test_voxels_are_looked_at_once(examples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came through the gate is not looked at again, and what did not is."""
    import rare_trt.segmenter as module
    from rare_trt import Scan, Segmenter, Volume

    path = examples / "hippocampus_2mm.nii.gz"
    scan = read_scan(path)
    looked: list[int] = []
    check = module.check_voxels

    def counted(voxels: np.ndarray, channels: int) -> None:
        looked.append(voxels.size)
        check(voxels, channels)

    monkeypatch.setattr(module, "check_voxels", counted)
    with Segmenter.load() as segmenter:
        segmenter.segment(path)
        segmenter.segment(scan)
        assert looked == []
        segmenter.segment(Scan(Volume(scan.volume.voxels.copy(), scan.volume.grid), scan.header))
        assert looked == [scan.volume.voxels.size]
