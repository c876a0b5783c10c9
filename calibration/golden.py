"""Golden vectors: small real scans with the labels of the reference network.

A machine runs them once, before the first scan of a route. They cover the smallest, the typical
and the largest field of view that a route accepts, and one of odd sizes.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray

from rare_trt.backends import Arithmetic
from rare_trt.evaluation.cases import Case
from rare_trt.package.manifest import GoldenEntry
from rare_trt.scan.field_of_view import FieldOfView
from rare_trt.scan.geometry import Grid, Shape
from rare_trt.training.checkpoint import Checkpoint
from rare_trt.training.downsampling import average_blocks
from rare_trt.training.inputs import route_inputs

# Another machine adds in another order, and fp16 rounds every sum: that changes voxels where two
# classes are nearly equal (measured: at most 2 in 100,000 in fp16). A fault changes far more than
# these bounds allow. Per precision: a share of all voxels, or for small scans a number of voxels.
MAX_SHARE: Final[Mapping[Arithmetic, float]] = {"fp32": 1e-4, "fp16": 1e-3}
MAX_VOXELS: Final[Mapping[Arithmetic, int]] = {"fp32": 4, "fp16": 16}


@dataclass(frozen=True, eq=False)
class GoldenFiles:
    """Golden vectors of a package: entries for the manifest, and the files that they name."""

    entries: tuple[GoldenEntry, ...]
    files: Mapping[str, bytes]


def make_golden_vectors(
    checkpoint: Checkpoint, cases: Sequence[Case], view: FieldOfView
) -> GoldenFiles:
    """Golden vectors for the field of view `view`: one per route and kind, from `cases` in turn."""
    base = checkpoint.recipe.base_spacing_mm
    typical = _voxels(view.typical, base, np.round)
    entries: list[GoldenEntry] = []
    files: dict[str, bytes] = {}
    for route in range(checkpoint.recipe.network.routes):
        spacing = base * 2**route
        # In the route's voxels, so that the coarsest scan, too, stays within the field of view.
        sizes: dict[str, Shape] = {
            "min": _voxels(view.min, spacing, np.ceil),
            "typical": _voxels(typical, spacing / base, np.ceil),
            "max": _voxels(view.max, spacing, np.floor),
            "odd": _voxels(_odd(typical), spacing / base, np.ceil),
        }
        for index, (kind, size) in enumerate(sizes.items()):
            scan, grid = _scan(cases[index % len(cases)], size, route, base)
            labels, label_grid = reference_labels(checkpoint, scan, grid, route)
            entry = GoldenEntry(
                route=route,
                kind=kind,
                scan=f"golden/route{route}_{kind}.nii.gz",
                labels=f"golden/route{route}_{kind}_labels.nii.gz",
                max_disagreement={
                    precision: max(share, MAX_VOXELS[precision] / labels.size)
                    for precision, share in MAX_SHARE.items()
                },
            )
            files[entry.scan] = _nifti(np.moveaxis(scan, 0, 3), grid)
            files[entry.labels] = _nifti(labels, label_grid)
            entries.append(entry)
    return GoldenFiles(tuple(entries), files)


@torch.no_grad()
def reference_labels(
    checkpoint: Checkpoint, voxels: NDArray[np.uint8], grid: Grid, route: int
) -> tuple[NDArray[np.uint8], Grid]:
    """Labels uint8 [oi, oj, ok] of stored voxels [c, i, j, k] on `grid` by the torch network, and
    their grid, which divides each voxel into 2**route parts per axis."""
    factor = 2**route
    full = grid.subdivide((factor, factor, factor))
    device = torch.device("cpu")
    inputs = route_inputs(voxels.astype(np.float32), grid, route, full, checkpoint.recipe, device)
    logits = inputs.predict(checkpoint.network, route)
    return logits[0].argmax(0).numpy().astype(np.uint8), full


def _scan(case: Case, size: Shape, route: int, base: float) -> tuple[NDArray[np.uint8], Grid]:
    """`case` averaged to the spacing of `route` as uint8 [c, i, j, k], cropped or extended by
    mirroring to `size` voxels, and its grid."""
    factor = 2**route
    shape = [max(2, n) * factor for n in size]
    voxels = case.voxels
    for axis, n in enumerate(shape, start=1):
        start = max(0, voxels.shape[axis] - n) // 2
        voxels = voxels.take(range(start, min(start + n, voxels.shape[axis])), axis)
    pad = [(0, n - have) for n, have in zip(shape, voxels.shape[1:], strict=True)]
    voxels = average_blocks(np.pad(voxels, [(0, 0), *pad], mode="symmetric"), factor)
    low, high = np.percentile(voxels, (0.1, 99.9))
    grey = np.clip((voxels - low) / (high - low), 0.0, 1.0) * 255.0
    i, j, k = voxels.shape[1:]
    spacing = base * factor
    return grey.round().astype(np.uint8), Grid((i, j, k), np.diag([spacing, spacing, spacing, 1.0]))


def _nifti(voxels: NDArray[np.uint8], grid: Grid) -> bytes:
    image = nib.Nifti1Image(voxels, grid.affine)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), 9, mtime=0)


def _voxels(
    size: Sequence[float],
    voxel: float,
    rounding: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> Shape:
    i, j, k = rounding(np.array(size) / voxel).astype(int).tolist()
    return i, j, k


def _odd(shape: Shape) -> Shape:
    i, j, k = (n - 3 if n % 2 == 0 else n - 4 for n in shape)
    return i, j, k
