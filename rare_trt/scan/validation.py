"""Input validation: what a scan must be before anything is computed from it.

A file's bytes pass here once, on their way to voxels on a grid: the header is judged by itself,
then the stream is read to exactly the size that the header declares, then the voxels are looked
at. Everything else that reads a scan may rely on it. docs/safety.md lists what is refused and why.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import isfinite, prod
from typing import Any, Final, Literal

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling
from numpy.typing import NDArray

from rare_trt.errors import ScanError
from rare_trt.scan.geometry import Canonical, Grid, Triple, Volume
from rare_trt.scan.gz import MAGIC, GzipStream
from rare_trt.storage.naming import MAX_BYTES

# NIfTI's codes of the types for one real number of at most 64 bits.
REAL: Final = {
    code: np.dtype(name)
    for codes, names in (
        ((2, 512, 768, 1280), ("u1", "u2", "u4", "u8")),
        ((256, 4, 8, 1024), ("i1", "i2", "i4", "i8")),
        ((16, 64), ("f4", "f8")),
    )
    for code, name in zip(codes, names, strict=True)
}
NOT_REAL: Final = {
    1: "single bits",
    32: "complex64",
    128: "RGB colours",
    1536: "float128",
    1792: "complex128",
    2048: "complex256",
    2304: "RGBA colours",
}

# The first bytes: either version's header and the mark whether extensions follow.
START: Final = 544

# The longest axis of NIfTI-1.
NIFTI_1_AXIS: Final = 2**15 - 1

# NIfTI's codes of coordinate systems: unknown, scanner, aligned, Talairach, MNI, other template.
LARGEST_CODE: Final = 5

# xyzt_units has the unit of length in its lowest three bits: not stated, m, mm, micron.
UNIT_BITS: Final = 0b111
MM_PER_UNIT: Final = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}

# Voxel sizes that differ by more than a route's native band can take different routes.
SAME_SPACING: Final = 0.05

# Voxel sizes that differ by more than this share give other volumes (3 %) to programs that count
# voxels by the other size. Rounding stays below .0001 in all scans that were looked at.
SAME_SIZE: Final = 0.01

# Two places of a scan further apart than this are worth a remark.
SAME_PLACE_MM: Final = 1.0

# Channels lie on one grid where their outermost voxels are no further apart than this share of the
# smallest voxel. Over 512 voxels per axis the rounding of an sform to float32 moves them by .0001
# voxels and that of an affine written with six digits by .002: neither may be refused. A tenth of
# a voxel changes a value by a tenth of what neighbours differ by.
SAME_GRID_VOXELS: Final = 0.1


@dataclass(frozen=True, eq=False)
class ParsedHeader:
    """What a valid header declares: voxels of `dtype` from byte `offset` on, in
    `shape` [i, j, k] or [i, j, k, channel], placed by `grid`; `total` bytes in all.

    `scaling` is the slope and intercept that stored values are to be taken through, or None.
    `remarks` say what is odd about the scan's place without making it invalid.
    """

    header: nib.Nifti1Header
    grid: Grid
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    total: int
    scaling: tuple[float, float] | None
    remarks: tuple[str, ...]

    def __str__(self) -> str:
        return f"{_x(self.shape)} of {self.dtype.newbyteorder('=')} from byte {self.offset} on"


def validate_nifti(data: bytes, channels: int) -> tuple[ParsedHeader, Volume]:
    """A file's bytes (.nii or .nii.gz) -> what its header says and its voxels on a grid in mm.

    Raises ScanError with one sentence, without the file's name, for anything that is not one whole
    scan of `channels` channels of finite real numbers with a place in the world.
    """
    if data[:2] == MAGIC:
        stream = GzipStream(data)
        found = parse_header(stream.start(START), channels)
        content = stream.whole(found.total)
    else:
        found = parse_header(data[:START], channels)
        content = memoryview(data)
    if len(content) != found.total:
        raise ScanError(
            f"the file has {len(content)} bytes; its header declares {found.total} ({found}): "
            "copy it again"
        )
    _check_extensions(content, found)
    stored = np.frombuffer(content, found.dtype, prod(found.shape), found.offset)
    voxels: NDArray[Any] = stored.reshape(found.shape, order="F")
    if found.scaling is not None:
        voxels = np.asarray(apply_read_scaling(voxels, *found.scaling))
        voxels.setflags(write=False)
    check_voxels(voxels, channels)
    return found, Volume(voxels, found.grid)


def parse_header(start: bytes, channels: int) -> ParsedHeader:
    """What the header in the first START bytes of a file declares; raises ScanError."""
    header = _header(start)
    magic = header["magic"].item()
    if magic != header.single_magic:
        raise _not_nifti(f"its magic is {magic!r}, not {header.single_magic!r}")
    shape = _shape(header)
    check_channels(shape, channels)
    dtype = _dtype(header)
    offset = float(header["vox_offset"])
    first = header.single_vox_offset
    if not (isfinite(offset) and offset == int(offset) and offset >= first):
        raise _not_nifti(f"its voxels have the offset {offset:g}, not {first} or more")
    scaling = _scaling(header)
    total = int(offset) + prod(shape) * dtype.itemsize
    check_size(shape, max(total, prod(shape) * 8 if scaling else 0))
    grid, remarks = _placed(header, shape)
    return ParsedHeader(header, grid, shape, dtype, int(offset), total, scaling, remarks)


def check_size(shape: tuple[int, ...], size: int) -> None:
    """Raises ScanError where a header declares voxels of `shape` in more than MAX_BYTES bytes."""
    if size > MAX_BYTES:
        raise ScanError(
            f"the header declares {_x(shape)} voxels, {size} bytes; expected at most "
            f"{MAX_BYTES}: cut or average the scan first"
        )


def check_voxels(voxels: NDArray[Any], channels: int) -> None:
    """Raises ScanError unless `voxels` are finite real numbers in `channels` channels."""
    if voxels.ndim not in (3, 4) or voxels.size == 0:
        raise ScanError(
            f"the voxels have shape {_x(voxels.shape)}; expected three axes, or four with the "
            "channels last, and none of them empty: reshape them"
        )
    check_channels(voxels.shape, channels)
    if voxels.dtype.kind not in "iuf":
        raise _not_real(str(voxels.dtype))
    if isinstance(voxels, np.ma.MaskedArray):
        raise ScanError(
            "the voxels are a masked array, which may hide some; expected a number for every one: "
            "fill it"
        )
    # A NaN or an infinity is always among the least and the largest: no mask of all voxels.
    if voxels.dtype.kind == "f" and not np.isfinite([voxels.min(), voxels.max()]).all():
        bad = int(voxels.size - np.count_nonzero(np.isfinite(voxels)))
        raise ScanError(
            f"{bad} of {voxels.size} voxels are NaN or infinite; expected finite numbers: "
            "correct the reconstruction, or replace them on purpose"
        )


def affine_mm(header: nib.Nifti1Header) -> NDArray[np.float64]:
    """The header's affine (sform before qform), converted from its unit to millimetres."""
    return _in_mm(header, header.get_best_affine())


def grid_difference(one: Grid, other: Grid) -> str | None:
    """Why the voxels of `other` are not those of `one`, in words; None where they are."""
    if one.shape != other.shape:
        return f"shape {_x(other.shape)}, not {_x(one.shape)}"
    apart = float(np.linalg.norm(_corner_shifts_mm(one, other), axis=1).max())
    most = SAME_GRID_VOXELS * min(one.spacing_mm)
    if apart > most:
        return f"corners up to {apart:.3g} mm apart, more than {most:.3g} mm"
    return None


def _header(start: bytes) -> nib.Nifti1Header:
    """The header in either version and byte order, unchecked."""
    if not start:
        raise ScanError("the file is empty; expected a scan: copy or export it again")
    sizes = {order: int.from_bytes(start[:4], order) for order in ("little", "big")}
    kinds: dict[int, type[nib.Nifti1Header]] = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
    for order, size in sizes.items():
        if size in kinds and len(start) >= size:
            # Unchecked, because nibabel's checks silently fix what must be refused here.
            return kinds[size](start[:size], "<" if order == "little" else ">", check=False)
    if start[128:132] == b"DICM":
        raise _not_nifti("it is a DICOM file")
    raise _not_nifti(f"it begins with {start[:4]!r}")


def _shape(header: nib.Nifti1Header) -> tuple[int, ...]:
    """[i, j, k] or [i, j, k, channel] of an image whose trailing axes may be single."""
    axes = int(header["dim"][0])
    if not 1 <= axes <= 7:
        raise _not_nifti(f"it has {axes} axes")
    shape = [int(n) for n in header["dim"][1 : 1 + axes]]
    trimmed = list(shape)
    while len(trimmed) > 3 and trimmed[-1] == 1:
        trimmed.pop()
    if not 3 <= len(trimmed) <= 4 or min(trimmed) < 1:
        raise ScanError(
            f"the image has shape {_x(shape)}; expected three axes, or four with the channels "
            "last: extract the volume to segment"
        )
    return tuple(trimmed)


def check_channels(shape: tuple[int, ...], channels: int) -> None:
    """Raises ScanError unless voxels of `shape` [i, j, k] or [i, j, k, channel] have `channels`."""
    found = shape[3] if len(shape) == 4 else 1
    if found != channels:
        way = "extract the right volume(s)"
        if found < channels:
            way = "join all of them in one file, or name one file per channel"
        raise ScanError(
            f"the image has {found} channels or time points; expected {channels}: {way}"
        )


def _dtype(header: nib.Nifti1Header) -> np.dtype[Any]:
    code = int(header["datatype"])
    if code in NOT_REAL:
        raise _not_real(NOT_REAL[code])
    if code not in REAL:
        raise _not_nifti(f"its data type has the unknown code {code}")
    dtype = REAL[code].newbyteorder(header.endianness)
    if int(header["bitpix"]) != 8 * dtype.itemsize:
        raise _not_nifti(f"its voxels are {dtype.name} of {int(header['bitpix'])} bits")
    return dtype


def _scaling(header: nib.Nifti1Header) -> tuple[float, float] | None:
    """Slope and intercept; a slope of 0, or NaN as some programs write it, means none."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0.0 or slope != slope or (slope, inter) == (1.0, 0.0):
        return None
    if not isfinite(slope) or not isfinite(inter):
        raise ScanError(
            f"the header scales voxels by a slope of {slope:g} and an intercept of {inter:g}; "
            "expected finite numbers: correct the header"
        )
    return slope, inter


def _placed(header: nib.Nifti1Header, shape: tuple[int, ...]) -> tuple[Grid, tuple[str, ...]]:
    """The voxels' grid in mm and what is odd about it; raises ScanError where the header does not
    place them once."""
    codes = [int(header["sform_code"]), int(header["qform_code"])]
    if not all(0 <= code <= LARGEST_CODE for code in codes):
        raise _not_nifti(f"its sform and qform have the codes {codes[0]} and {codes[1]}")
    if codes == [0, 0]:
        raise ScanError(
            "the header has no affine (sform and qform codes are 0); expected one that "
            "places the voxels in the scanner: export the scan again with its orientation"
        )
    if header["pixdim"][0] == 0.0:
        # As the standard has it: 0 in the place of the qform's handedness is 1.
        header["pixdim"][0] = 1.0
    i, j, k = shape[:3]
    try:
        grid = Grid((i, j, k), affine_mm(header))
        if codes[1] == 0:
            return grid, _pixdim_remarks(header, grid)
        if codes[0] == 0:
            # The qform takes its voxel sizes from pixdim: there is one statement only.
            return grid, ()
        other = Grid((i, j, k), _in_mm(header, header.get_qform()))
    except (HeaderDataError, ValueError) as error:
        raise _not_nifti(f"its qform cannot be read: {error}") from error
    _check_agreement(grid, other, codes)
    return grid, _place_remarks(grid, other, codes)


def _check_agreement(sform: Grid, qform: Grid, codes: list[int]) -> None:
    """Raises ScanError where the two would lead to different labels."""
    if np.allclose(sform.affine, qform.affine, rtol=0.0, atol=1e-3):
        return
    hands = [np.linalg.det(grid.affine[:3, :3]) > 0 for grid in (sform, qform)]
    if hands[0] != hands[1]:
        what = "one is the mirror image of the other"
    elif codes[0] != codes[1]:
        return
    elif _sizes_differ(sform.spacing_mm, qform.spacing_mm, SAME_SPACING):
        what = _two_sizes(sform.spacing_mm, qform.spacing_mm)
    elif not _same_axes(sform, qform):
        what = "they turn the voxel axes to different sides"
    else:
        return
    raise ScanError(
        f"sform and qform contradict each other ({what}); expected one place in the world: "
        "correct the header, or set the code of the wrong one to 0"
    )


def _place_remarks(sform: Grid, qform: Grid, codes: list[int]) -> tuple[str, ...]:
    """The remarks on a scan whose sform is taken although its qform differs.

    Other codes mean other coordinate systems, which may lie apart; not so where they turn the
    scan's axes to other sides. Where one is scaled, as an atlas's is, so are the volumes.
    """
    if _sizes_differ(sform.spacing_mm, qform.spacing_mm, SAME_SIZE):
        sizes = _two_sizes(sform.spacing_mm, qform.spacing_mm)
        return (f"sform and qform differ in scale ({sizes}); the sform was taken",)
    apart = float(np.abs(_corner_shifts_mm(sform, qform)).max())
    if apart <= SAME_PLACE_MM or (codes[0] != codes[1] and _same_axes(sform, qform)):
        return ()
    return (f"sform and qform place the scan {apart:.0f} mm apart; the sform was taken",)


def _pixdim_remarks(header: nib.Nifti1Header, sform: Grid) -> tuple[str, ...]:
    """The remark on a scan without a qform whose pixdim contradicts its sform: programs that count
    volumes read either."""
    if not contradicts_pixdim(header, sform):
        return ()
    sizes = _two_sizes(sform.spacing_mm, _pixdim_mm(header))
    return (f"sform and pixdim differ in scale ({sizes}); the sform was taken",)


def contradicts_pixdim(header: nib.Nifti1Header, grid: Grid) -> bool:
    """Whether the header's pixdim states other voxel sizes than those of `grid`, its own one."""
    return _sizes_differ(grid.spacing_mm, _pixdim_mm(header), SAME_SIZE)


def _pixdim_mm(header: nib.Nifti1Header) -> Triple:
    """The voxel sizes along i, j, k that the header's pixdim states, in millimetres, without the
    minus sign by which some programs mark a flipped axis; not necessarily finite."""
    scale = _in_mm(header, np.eye(4))[0, 0]
    i, j, k = (abs(float(size)) * scale for size in header["pixdim"][1:4])
    return i, j, k


def _sizes_differ(one: Triple, other: Triple, share: float) -> bool:
    """Whether voxel sizes differ by more than `share` along some axis, or are no sizes at all."""
    pairs = zip(one, other, strict=True)
    return not all(isfinite(b) and b > 0.0 and abs(a / b - 1.0) <= share for a, b in pairs)


def _two_sizes(sform: Triple, qform: Triple) -> str:
    return f"voxels of {_mm(sform)} mm in one, of {_mm(qform)} mm in the other"


def _mm(sizes: Triple) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes)


def _corner_shifts_mm(one: Grid, other: Grid) -> NDArray[np.float64]:
    """[8, 3]: how far the outermost voxels of two grids of one shape lie apart in the world."""
    corners = np.array(list(product(*((0, n - 1) for n in one.shape))))
    return one.world_mm(corners) - other.world_mm(corners)


def _same_axes(one: Grid, other: Grid) -> bool:
    return bool((Canonical(one).axes == Canonical(other).axes).all())


def _in_mm(header: nib.Nifti1Header, affine: NDArray[Any]) -> NDArray[np.float64]:
    unit = int(header["xyzt_units"]) & UNIT_BITS
    if unit not in MM_PER_UNIT:
        raise ScanError(
            f"the header's unit of length has code {unit}; expected 0 (not stated, read as mm), "
            "1 (m), 2 (mm) or 3 (micron): correct the header"
        )
    scaled = np.array(affine, dtype=np.float64)
    scaled[:3] *= MM_PER_UNIT[unit]
    return scaled


def _check_extensions(content: memoryview, found: ParsedHeader) -> None:
    """Extensions are never read, but must end before the voxels begin."""
    place = found.header.sizeof_hdr + 4
    if content[place - 4] == 0:
        return
    order: Literal["little", "big"] = "little" if found.header.endianness == "<" else "big"
    while found.offset - place >= 8:
        size = int.from_bytes(content[place : place + 4], order, signed=True)
        if size < 8 or place + size > found.offset:
            raise _not_nifti(
                f"an extension of {size} bytes at byte {place} does not end before the voxels "
                f"at byte {found.offset}"
            )
        place += size


def _not_real(what: str) -> ScanError:
    return ScanError(
        f"the voxels are {what}; expected real numbers (integer or floating point, up to 64 bits): "
        "convert the scan to one grey value per voxel"
    )


def _not_nifti(what: str) -> ScanError:
    return ScanError(
        f"not a NIfTI file that can be read ({' '.join(what.split())}); expected .nii or .nii.gz "
        "in one file: convert the scan"
    )


def _x(shape: tuple[int, ...] | list[int]) -> str:
    return " x ".join(map(str, shape))
