"""FreeSurfer's scans, .mgh and .mgz, validated as NIfTI's are.

Their header is big-endian and has a fixed size. It states the voxel sizes, the directions of the
axes and the place of the middle; behind the voxels lie parameters of the acquisition and texts,
which are never read.
"""

from __future__ import annotations

from math import prod
from typing import Any, Final

import nibabel as nib
import numpy as np
from nibabel.freesurfer.mghformat import DATA_OFFSET, MGHHeader, data_type_codes
from numpy.typing import NDArray

from rare_trt.errors import ScanError
from rare_trt.scan.geometry import Grid, Volume
from rare_trt.scan.gz import MAGIC, GzipStream
from rare_trt.scan.validation import (
    NIFTI_1_AXIS,
    ParsedHeader,
    check_channels,
    check_size,
    check_voxels,
)

# Far more than the acquisition's parameters, command lines and tables of label colours take.
MAX_FOOTER: Final = 1 << 20

# NIfTI's code for the coordinates of the scanner, which FreeSurfer's programs write for theirs.
SCANNER: Final = 1

# Voxel sizes that differ by more than this share are stated twice.
SAME_SIZE: Final = 0.01


def validate_mgh(data: bytes, channels: int) -> tuple[ParsedHeader, Volume]:
    """A file's bytes (.mgh or .mgz) -> what its header says, with a NIfTI header of the same place,
    and its voxels on a grid in mm.

    Raises ScanError with one sentence, without the file's name, for anything that is not one whole
    scan of `channels` channels of finite real numbers with a place in the world.
    """
    if data[:2] == MAGIC:
        stream = GzipStream(data)
        found = parse_mgh_header(stream.start(DATA_OFFSET), channels)
        content = stream.whole(found.total, MAX_FOOTER)
    else:
        found = parse_mgh_header(data[:DATA_OFFSET], channels)
        content = memoryview(data)
        if not found.total <= len(content) <= found.total + MAX_FOOTER:
            raise ScanError(
                f"the file has {len(content)} bytes; its header declares {found.total} ({found}) "
                f"and at most {MAX_FOOTER} more: copy it again"
            )
    stored = np.frombuffer(content, found.dtype, prod(found.shape), found.offset)
    voxels: NDArray[Any] = stored.reshape(found.shape, order="F")
    check_voxels(voxels, channels)
    return found, Volume(voxels, found.grid)


def parse_mgh_header(start: bytes, channels: int) -> ParsedHeader:
    """What the header in the first DATA_OFFSET bytes of a file declares; raises ScanError."""
    if len(start) < DATA_OFFSET:
        raise _not_mgh(f"it ends after {len(start)} of the header's {DATA_OFFSET} bytes")
    # Unchecked, because nibabel places a scan without directions by its own guess.
    if not int.from_bytes(start[28:30], "big"):
        raise ScanError(
            "the header has no affine (goodRASFlag is 0); expected one that places the voxels in "
            "the scanner: export the scan again with its orientation"
        )
    header = MGHHeader(start, check=False)
    i, j, k, frames = (int(n) for n in header["dims"])
    shape = (i, j, k) if frames == 1 else (i, j, k, frames)
    if min(i, j, k, frames) < 1:
        raise _not_mgh(f"it has {i} x {j} x {k} voxels in {frames} frames")
    check_channels(shape, channels)
    code = int(header["type"])
    if code not in data_type_codes.code:
        raise _not_mgh(f"its data type has the code {code}, not 0, 1, 3, 4 or 10")
    dtype = header.get_data_dtype()
    total = DATA_OFFSET + prod(shape) * dtype.itemsize
    check_size(shape, total)
    # What overflows is refused with the grid, which has float32 numbers as the labels' header does.
    with np.errstate(all="ignore"):
        grid = Grid((i, j, k), header.get_affine().astype(np.float32))
    return ParsedHeader(
        header=_nifti_header(grid),
        grid=grid,
        shape=shape,
        dtype=dtype,
        offset=DATA_OFFSET,
        total=total,
        scaling=None,
        remarks=_size_remarks(header, grid),
    )


def _nifti_header(grid: Grid) -> nib.Nifti1Header:
    """A NIfTI header that places voxels on `grid`, of the version that has room for its axes."""
    fits = max(grid.shape) <= NIFTI_1_AXIS
    header: nib.Nifti1Header = nib.Nifti1Header() if fits else nib.Nifti2Header()
    header.set_xyzt_units("mm")
    header.set_sform(grid.affine, SCANNER)
    header.set_qform(grid.affine, SCANNER)
    return header


def _size_remarks(header: MGHHeader, grid: Grid) -> tuple[str, ...]:
    """The remark on a scan whose directions are no unit vectors: FreeSurfer counts volumes by the
    voxel sizes, other programs by the affine."""
    sizes = header["delta"].astype(np.float64)
    if (np.abs(np.array(grid.spacing_mm) / sizes - 1.0) <= SAME_SIZE).all():
        return ()
    one, other = (" x ".join(f"{size:.4g}" for size in s) for s in (grid.spacing_mm, sizes))
    return (
        f"affine and voxel sizes differ (voxels of {one} mm in one, of {other} mm in the other); "
        "the affine was taken",
    )


def _not_mgh(what: str) -> ScanError:
    return ScanError(
        f"not a FreeSurfer scan that can be read ({what}); expected a whole .mgh or .mgz: copy it "
        "again, or convert it to NIfTI"
    )
