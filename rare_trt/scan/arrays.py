"""Scans in memory, as other libraries hold them: arrays, tensors, and images that know their place.

Images and tensors are recognised by their methods, so that no other library is imported.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import nibabel as nib
import numpy as np

from rare_trt.errors import ScanError
from rare_trt.scan.geometry import Array, Grid, Volume
from rare_trt.scan.nifti import Scan, refuse_labels
from rare_trt.scan.validation import check_voxels, parse_header

EXPECTED: Final = (
    "a path, one path per channel, a Scan, an image of nibabel or SimpleITK, or an array or tensor "
    "with its affine"
)

# ITK's world is left, posterior, superior; NIfTI's is right, anterior, superior.
RAS_FROM_LPS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])


def scan_from_memory(scan: Any, affine: Any, channels: int) -> Scan:
    """A scan of `channels` channels that another library holds.

    `affine` is the 4x4 matrix from voxel index (i, j, k) to world mm (right, anterior, superior)
    for arrays and tensors [i, j, k] or [i, j, k, channel]; images have their own. Raises TypeError
    for anything else, and ScanError where the scan cannot be segmented as it is.
    """
    has_place = True
    if _has(scan, "dataobj", "affine", "header"):
        found = _from_nibabel(scan, channels)
    elif _has(scan, "GetSpacing", "GetOrigin", "GetDirection", "GetDimension"):
        found = _from_simpleitk(scan, channels)
    elif _has(scan, "detach", "cpu", "numpy") or hasattr(scan, "__array__"):
        has_place = False
        found = _from_array(_as_array(scan), affine, channels)
    else:
        raise TypeError(f"the scan is of the type {_type_name(scan)}; expected {EXPECTED}")
    if has_place and affine is not None:
        raise TypeError(
            f"affine goes with an array of voxels; {_type_name(scan)} has its own: leave it out"
        )
    return found


def _has(value: Any, *names: str) -> bool:
    return all(hasattr(value, name) for name in names)


def _type_name(value: Any) -> str:
    if isinstance(value, list | tuple):
        parts = sorted({type(one).__name__ for one in value})
        return f"{type(value).__name__} of {', '.join(parts) or 'nothing'}"
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _as_array(scan: Any) -> Array:
    """The voxels of an array, or of a tensor on any device."""
    if _has(scan, "detach", "cpu", "numpy"):
        tensor = scan.detach().cpu()
        # NumPy has no such type; each value is one of float32, too.
        scan = tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor
        return np.asarray(scan.numpy())
    return np.asanyarray(scan)


def _from_array(voxels: Array, affine: Any, channels: int) -> Scan:
    if affine is None:
        raise TypeError(
            "an array of voxels has no place in the world; expected affine=, the 4x4 matrix from "
            "voxel index to world mm (right, anterior, superior): pass it"
        )
    try:
        matrix = np.array(
            affine if isinstance(affine, list | tuple) else _as_array(affine), np.float64
        )
        shown = f"has shape {matrix.shape} and is {np.array2string(matrix, threshold=16)}"
    except (TypeError, ValueError):
        matrix, shown = np.empty(0), f"is {affine!r:.80}"
    if matrix.shape != (4, 4) or not np.array_equal(matrix[3], (0, 0, 0, 1)):
        raise ScanError(
            f"the affine {shown}; expected a 4x4 matrix with the last row 0 0 0 1: pass the one "
            "from voxel index to world mm"
        )
    return _checked(voxels, matrix, channels)


def _checked(voxels: Array, matrix: Array, channels: int) -> Scan:
    if voxels.dtype == np.float16:
        # Of fewer values than sums of voxels have.
        voxels = voxels.astype(np.float32)
    check_voxels(voxels, channels)
    i, j, k = voxels.shape[:3]
    return Scan(Volume(voxels, Grid((i, j, k), matrix)))


def _from_nibabel(image: Any, channels: int) -> Scan:
    """As the file that nibabel would write of `image`, but with its voxels as they are."""
    if image.affine is None:
        raise ScanError(
            "the image has no affine; expected one that places the voxels in the world: make it "
            "with its affine"
        )
    kind = nib.Nifti2Image if isinstance(image.header, nib.Nifti2Header) else nib.Nifti1Image
    # A copy, with a header of NIfTI that agrees with the affine.
    agreed: Any = kind
    header = agreed(image.dataobj, image.affine, image.header).header
    header["magic"] = header.single_magic
    header["vox_offset"] = header.single_vox_offset
    found = parse_header(header.binaryblock, channels)
    voxels = np.asanyarray(image.dataobj).reshape(found.shape)
    check_voxels(voxels, channels)
    return Scan(Volume(voxels, found.grid), found.header, remarks=found.remarks)


def _from_simpleitk(image: Any, channels: int) -> Scan:
    if image.GetDimension() != 3:
        raise ScanError(
            f"the image has {image.GetDimension()} axes; expected three: extract the volume to "
            "segment"
        )
    # ITK keeps the fields of a file's NIfTI header, as text.
    if image.HasMetaDataKey("intent_code"):
        header = nib.Nifti1Header()
        header["intent_code"] = int(image.GetMetaData("intent_code"))
        refuse_labels(header)
    # Loaded, since the image is one of its own.
    library = sys.modules[type(image).__module__.partition(".")[0]]
    stored = library.GetArrayFromImage(image)
    # Stored as [k, j, i] or [k, j, i, component].
    voxels = stored.transpose(2, 1, 0, *range(3, stored.ndim))
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    matrix[:3, 3] = image.GetOrigin()
    return _checked(voxels, RAS_FROM_LPS @ matrix, channels)
