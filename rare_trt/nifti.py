"""NIfTI scans in, label files out. The only module that touches a NIfTI header."""

from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
from nibabel import imageglobals
from nibabel.spatialimages import HeaderDataError, HeaderTypeError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from rare_trt.errors import OutputError, ScanError
from rare_trt.files import sha256
from rare_trt.geometry import Grid, Volume

SUFFIXES: Final = (".nii.gz", ".nii")

# NIfTI's code for coordinates aligned to some other scan, for scans without a code.
ALIGNED: Final = 2

# xyzt_units holds the unit of length in its lowest three bits: not stated, m, mm, micron.
UNIT_BITS: Final = 0b111
MM_PER_UNIT: Final = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}

# All that nibabel raises on bytes that are not a NIfTI file.
FAULTS: Final = (
    *(HeaderDataError, HeaderTypeError, WrapStructError),
    *(ValueError, KeyError, OverflowError),
)

# The fields of a header that say where voxels lie.
PLACE: Final = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)

# Labels are mostly runs of zeros: higher levels shrink the file by a few percent for 3x the time.
GZIP_LEVEL: Final = 1


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan as it was read: volume (grid in mm) and the header of its place in the world.

    `sha256` is that of its file, None for a scan made in memory, for which the header can be left
    out: `Scan(Volume(voxels, grid))`.
    """

    volume: Volume
    header: nib.Nifti1Header = field(default_factory=nib.Nifti1Header)
    sha256: str | None = None


def read_scan(path: Path, channels: int = 1) -> Scan:
    """The scan at `path` (.nii or .nii.gz) with `channels` channels, on a grid in millimetres.

    Spacing comes from the affine (sform before qform), not from pixdim. Raises ScanError with one
    sentence for whatever cannot be segmented: no such file, not NIfTI, truncated, no affine,
    another number of channels, voxels that are not finite real numbers.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ScanError(f"{path}: no such file; expected a NIfTI scan: check the path") from error
    except OSError as error:
        raise ScanError(
            f"{path}: cannot be read ({error.strerror}); expected a NIfTI file: check the path "
            "and its permissions"
        ) from error
    return replace(scan_from_bytes(data, str(path), channels), sha256=sha256(data))


def scan_from_bytes(data: bytes, path: str, channels: int = 1) -> Scan:
    """As `read_scan`, from a file's bytes; `path` is what errors call it."""
    file = BytesIO(_inflated(data, path))
    header = _header_from_file(file, path)
    if int(header["sform_code"]) <= 0 and int(header["qform_code"]) <= 0:
        raise ScanError(
            f"{path}: the header has no affine (sform and qform codes are 0); expected one that "
            "places the voxels in the scanner: export the scan again with its orientation"
        )
    found = header.get_data_shape()
    shape = _volume_shape(found, path)
    try:
        voxels = np.asarray(header.data_from_fileobj(file)).reshape(shape)
    except (OSError, ValueError, OverflowError, MemoryError) as error:
        raise ScanError(
            f"{path}: the voxels cannot be read ({_one_line(error)}); expected "
            f"{' x '.join(map(str, found))} of {header.get_data_dtype()}: copy it again"
        ) from error
    try:
        check_voxels(voxels, channels)
        grid = Grid((shape[0], shape[1], shape[2]), affine_mm(header))
    except ScanError as error:
        raise ScanError(f"{path}: {error}") from error
    return Scan(Volume(voxels, grid), header)


def check_voxels(voxels: NDArray[Any], channels: int) -> None:
    """Raises ScanError unless `voxels` are finite real numbers in `channels` channels."""
    found = voxels.shape[3] if voxels.ndim == 4 else 1
    if found != channels:
        raise ScanError(
            f"the image has {found} channels or time points; this package takes {channels}: "
            "extract the right volume(s)"
        )
    if voxels.dtype.kind not in "iuf":
        raise ScanError(
            f"the voxels are {voxels.dtype}; expected real numbers (integer or floating point): "
            "convert the scan to one grey value per voxel"
        )
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        bad = int(voxels.size - np.isfinite(voxels).sum())
        raise ScanError(
            f"{bad} of {voxels.size} voxels are NaN or infinite; expected finite numbers: "
            "mend the reconstruction, or replace them on purpose"
        )


def affine_mm(header: nib.Nifti1Header) -> NDArray[np.float64]:
    """The header's affine (sform before qform) in millimetres, whatever unit it states."""
    unit = int(header["xyzt_units"]) & UNIT_BITS
    if unit not in MM_PER_UNIT:
        raise ScanError(
            f"the header's unit of length has code {unit}; expected 0 (not stated, read as mm), "
            "1 (m), 2 (mm) or 3 (micron): mend the header"
        )
    affine = np.array(header.get_best_affine(), dtype=np.float64)
    affine[:3] *= MM_PER_UNIT[unit]
    return affine


def label_bytes(labels: NDArray[np.uint8], scan: Scan, grid: Grid, compressed: bool) -> bytes:
    """A NIfTI file of `labels` [i, j, k] on `grid`, which is the scan's own or another one.

    Where `grid` is the one that the scan's header describes, affine and codes are the scan's, bit
    for bit. Nothing else comes along: not scaling, intent or display range, nor text, which can
    hold a patient's name.
    """
    header = type(scan.header)()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(labels.shape)
    if np.array_equal(affine_mm(scan.header), grid.affine):
        for field in PLACE:
            header[field] = scan.header[field]
        header["pixdim"][:4] = scan.header["pixdim"][:4]
    else:
        code = int(scan.header["sform_code"]) or int(scan.header["qform_code"]) or ALIGNED
        header.set_xyzt_units("mm")
        header.set_sform(grid.affine, code)
        header.set_qform(grid.affine, code)
    header["vox_offset"] = header.single_vox_offset
    header["magic"] = header.single_magic
    # Four zero bytes say that no extension follows.
    data: bytes = header.binaryblock + bytes(4) + labels.tobytes(order="F")
    # mtime 0: the same labels give the same bytes.
    return gzip.compress(data, GZIP_LEVEL, mtime=0) if compressed else data


def is_scan_name(path: Path) -> bool:
    """Whether the name says NIfTI; hidden files, which some systems leave about, do not."""
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")


def stem(path: Path) -> str:
    """The file's name without .nii or .nii.gz."""
    name = path.name
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    raise OutputError(f"{path}: expected a name that ends in .nii or .nii.gz: rename it")


def _inflated(data: bytes, path: str) -> bytes:
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ScanError(
            f"{path}: the gzip stream is damaged ({error}); expected a whole .nii.gz: copy it again"
        ) from error


def _header_from_file(file: BytesIO, path: str) -> nib.Nifti1Header:
    # The size of the header, in either byte order, tells the two versions apart.
    start = file.getvalue()[:4]
    sizes = {int.from_bytes(start, "little"), int.from_bytes(start, "big")}
    header_class = nib.Nifti2Header if 540 in sizes else nib.Nifti1Header
    try:
        with _quiet_nibabel():
            header: nib.Nifti1Header = header_class.from_fileobj(file)
        # What the header says last of all: each refuses numbers that make no sense.
        header.get_best_affine()
        header.get_slope_inter()
        header.get_data_offset()
        if header["magic"].item() != header.single_magic:
            raise HeaderDataError(f"its magic is {header['magic'].item()!r}")
    except FAULTS as error:
        raise ScanError(
            f"{path}: not a NIfTI file that can be read ({_one_line(error)}); "
            "expected .nii or .nii.gz in one file: convert the scan"
        ) from error
    return header


def _volume_shape(shape: tuple[int, ...], path: str) -> tuple[int, ...]:
    """[i, j, k] or [i, j, k, channel] of an image whose trailing axes may be single."""
    trimmed = list(shape)
    while len(trimmed) > 3 and trimmed[-1] == 1:
        trimmed.pop()
    if not 3 <= len(trimmed) <= 4 or min(trimmed) < 1:
        raise ScanError(
            f"{path}: the image has shape {' x '.join(map(str, shape))}; expected three axes, or "
            "four with the channels last: extract the volume to segment"
        )
    return tuple(trimmed)


_reading: ContextVar[bool] = ContextVar("reading", default=False)


def _is_not_about_our_reading(record: logging.LogRecord) -> bool:
    return not _reading.get()


# Nibabel's remarks on damaged headers stay off stderr while this thread reads a scan: the one
# sentence of the ScanError says it all. Everybody else's nibabel logs as before.
imageglobals.logger.addFilter(_is_not_about_our_reading)


@contextmanager
def _quiet_nibabel() -> Iterator[None]:
    token = _reading.set(True)
    try:
        yield
    finally:
        _reading.reset(token)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
