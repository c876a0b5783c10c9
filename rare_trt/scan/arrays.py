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
from rare_trt.scan.nifti import Scan
from rare_trt.scan.validation import NIFTI_1_AXIS, check_voxels, parse_header

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
    elif _has(scan, "GetSpacing", "GetOrigin"):
        # As ITK's own images, which become arrays with their axes in reverse.
        raise TypeError(f"the scan is of the type {_type_name(scan)}; expected {EXPECTED}")
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
        given = np.array(affine if isinstance(affine, list | tuple) else _as_array(affine))
    except (TypeError, ValueError):
        # Rows of several lengths, or a tensor that is no matrix of numbers.
        given = np.array(affine, object)
    is_matrix = given.shape == (4, 4) and given.dtype.kind in "iuf"
    if not is_matrix or not np.array_equal(given[3], (0, 0, 0, 1)):
        listed = " ".join(np.array2string(given, threshold=16).split())
        raise ScanError(
            f"the affine has shape {given.shape} and is {listed}; expected a 4x4 matrix of numbers "
            "with the last row 0 0 0 1: pass the one from voxel index to world mm"
        )
    return _checked(voxels, given.astype(np.float64), channels)


def _readable(voxels: Array) -> Array:
    """`voxels` with a type that has room for their sums."""
    return voxels.astype(np.float32) if voxels.dtype == np.float16 else voxels


def _checked(voxels: Array, matrix: Array, channels: int) -> Scan:
    voxels = _readable(voxels)
    check_voxels(voxels, channels)
    i, j, k = voxels.shape[:3]
    return Scan(Volume(voxels, Grid((i, j, k), matrix)))


def _from_nibabel(image: Any, channels: int) -> Scan:
    """As the NIfTI file that nibabel would write of `image`, but with its voxels as they are."""
    if image.affine is None:
        raise ScanError(
            "the image has no affine; expected one that places the voxels in the world: make it "
            "with its affine"
        )
    # Of other formats the affine says everything, and their types need not be NIfTI's.
    own = image.header if isinstance(image.header, nib.Nifti1Header) else None
    is_long = max(image.shape) > NIFTI_1_AXIS
    kind = nib.Nifti2Image if is_long or isinstance(own, nib.Nifti2Header) else nib.Nifti1Image
    # A copy, with a header of NIfTI that agrees with the affine.
    agreed: Any = kind
    header = agreed(np.broadcast_to(np.uint8(0), image.shape), image.affine, own).header
    header["magic"] = header.single_magic
    header["vox_offset"] = header.single_vox_offset
    found = parse_header(header.binaryblock, channels)
    voxels = _readable(np.asanyarray(image.dataobj).reshape(found.shape))
    check_voxels(voxels, channels)
    return Scan(Volume(voxels, found.grid), found.header, remarks=found.remarks)


def _from_simpleitk(image: Any, channels: int) -> Scan:
    if image.GetDimension() != 3:
        raise ScanError(
            f"the image has {image.GetDimension()} axes; expected three: extract the volume to "
            "segment"
        )
    # Loaded, since the image is one of its own, or of a class that is derived from its own.
    modules = [sys.modules[kind.__module__.partition(".")[0]] for kind in type(image).__mro__]
    library = next((one for one in modules if hasattr(one, "GetArrayFromImage")), None)
    if library is None:
        raise TypeError(f"the scan is of the type {_type_name(image)}; expected {EXPECTED}")
    stored = library.GetArrayFromImage(image)
    # Stored as [k, j, i] or [k, j, i, component].
    voxels = stored.transpose(2, 1, 0, *range(3, stored.ndim))
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    matrix[:3, 3] = image.GetOrigin()
    scan = _checked(voxels, RAS_FROM_LPS @ matrix, channels)
    # ITK keeps the fields of a file's NIfTI header, as text: the intent says whether it has labels.
    if image.HasMetaDataKey("intent_code"):
        scan.header["intent_code"] = int(image.GetMetaData("intent_code"))
    return scan
