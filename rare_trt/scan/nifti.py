"""Scans in, validated, and NIfTI label files out."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from rare_trt.errors import ScanError
from rare_trt.scan.geometry import Array, Grid, Volume
from rare_trt.scan.gz import compress, first_bytes
from rare_trt.scan.label_mark import LABEL_INTENT, LABEL_INTENT_NAME
from rare_trt.scan.validation import affine_mm, contradicts_pixdim, validate_nifti
from rare_trt.storage.files import sha256
from rare_trt.storage.naming import read_scan_file

# NIfTI's code for coordinates aligned to some other scan, for scans without a code.
ALIGNED: Final = 2

# FreeSurfer's files begin with their version, big-endian. NIfTI begins with 348 or 540.
MGH_START: Final = b"\0\0\0\1"

# The fields of a header that place the voxels.
PLACE: Final = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan as it was read: volume (grid in mm) and a NIfTI header of its place in the world.

    `sha256` is that of its file; a scan in several files has `channel_sha256` instead, one per
    channel. A scan made in memory has neither, and for it the header can be left out:
    `Scan(Volume(voxels, grid))`. `validated` are the voxels that passed validation, read-only: they
    are not checked again. `remarks` say what is odd about its header. `name` is its file's name, or
    that of the first channel's.
    """

    volume: Volume
    header: nib.Nifti1Header = field(default_factory=nib.Nifti1Header)
    sha256: str | None = None
    validated: Array | None = field(default=None, repr=False)
    remarks: tuple[str, ...] = ()
    channel_sha256: tuple[str, ...] = ()
    name: str = ""


def read_scan(path: str | os.PathLike[str], channels: int = 1) -> Scan:
    """The scan at `path` (NIfTI, or FreeSurfer's .mgz or .mgh) with `channels` channels, on a grid
    in millimetres.

    Spacing comes from the affine (sform before qform), not from pixdim. Raises ScanError with one
    sentence for whatever cannot be segmented: no such file, or bytes that are not valid.
    """
    path = Path(path)
    return replace(scan_from_bytes(read_scan_file(path), str(path), channels), name=path.name)


def scan_from_bytes(data: bytes, path: str, channels: int = 1) -> Scan:
    """As `read_scan`, from a file's bytes; `path` is what errors call it."""
    try:
        validate = validate_nifti
        if first_bytes(data, len(MGH_START)) == MGH_START:
            # A module of its own, which few scans need.
            from rare_trt.scan.mgh import validate_mgh as validate
        found, volume = validate(data, channels)
    except ScanError as error:
        raise ScanError(f"{path}: {error}") from error
    except MemoryError as error:
        raise too_large(path) from error
    return Scan(volume, found.header, sha256(data), volume.voxels, found.remarks)


def too_large(path: str) -> ScanError:
    """The error for the scan `path` that memory cannot hold."""
    return ScanError(
        f"{path}: does not fit into this machine's memory; expected a smaller scan: cut it, or use "
        "a machine with more"
    )


def refuse_labels(header: nib.Nifti1Header) -> None:
    """Raises ScanError where the voxels are labels, by their header's intent."""
    if int(header["intent_code"]) == LABEL_INTENT:
        raise ScanError(
            f"the file holds labels, as its header states (intent code {LABEL_INTENT}); expected "
            "grey values: name the scan, or set the code to 0 where it is wrong"
        )


def label_bytes(labels: NDArray[np.uint8], scan: Scan, grid: Grid, compressed: bool) -> bytes:
    """A NIfTI file of `labels` [i, j, k] on `grid`, which is the scan's own or another one.

    Where `grid` is the one that the scan's header places it on, affine and codes are the scan's,
    bit for bit, and so is pixdim unless it contradicts the sform. Nothing else comes along: not
    scaling, intent or display range, nor text, which can
    contain a patient's name. The file's own intent marks it as labels of rare-trt.
    """
    header = type(scan.header)()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(labels.shape)
    code = int(scan.header["sform_code"]) or int(scan.header["qform_code"])
    # Without a code the header places nothing: its affine is nibabel's guess from the shape.
    if code and np.array_equal(affine_mm(scan.header), grid.affine):
        for field in PLACE:
            header[field] = scan.header[field]
        header["pixdim"][:4] = scan.header["pixdim"][:4]
        if not header["qform_code"] and contradicts_pixdim(scan.header, grid):
            # The labels' volumes must not depend on which of the two a program reads.
            header["pixdim"][1:4] = nib.affines.voxel_sizes(header.get_sform())
    else:
        header.set_xyzt_units("mm")
        header.set_sform(grid.affine, code or ALIGNED)
        header.set_qform(grid.affine, code or ALIGNED)
    header["intent_code"], header["intent_name"] = LABEL_INTENT, LABEL_INTENT_NAME
    header["vox_offset"] = header.single_vox_offset
    header["magic"] = header.single_magic
    # Four zero bytes: no extension follows.
    data: bytes = header.binaryblock + bytes(4) + labels.tobytes(order="F")
    return compress(data) if compressed else data
