"""Where voxels lie in the world: grids, their axes, and the nearest canonical order of those axes.

World coordinates are millimetres in NIfTI's RAS+ convention; voxel indices point at voxel centres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from nibabel.orientations import (
    apply_orientation,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from numpy.typing import NDArray

from rare_trt.constants import (
    CLEAR_ALIGNMENT,
    MAX_OFFSET_MM,
    MAX_SHEAR_DEG,
    MAX_VOXEL_MM,
    MIN_VOXEL_MM,
)
from rare_trt.errors import ScanError

Shape: TypeAlias = tuple[int, int, int]
Triple: TypeAlias = tuple[float, float, float]
Array: TypeAlias = NDArray[Any]
Slices: TypeAlias = tuple[slice, slice, slice]

# nibabel's notation for axes that run right, anterior, superior.
RAS = np.array([[0, 1], [1, 1], [2, 1]])


@dataclass(frozen=True, eq=False)
class Grid:
    """A voxel grid: `shape` (i, j, k) and the 4x4 float64 `affine` from voxel index to world mm."""

    shape: Shape
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        fault = affine_fault(affine)
        if fault:
            raise ScanError(fault)

    @cached_property
    def spacing_mm(self) -> Triple:
        """Voxel size along i, j, k, taken from the affine's columns."""
        i, j, k = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0)).tolist()
        return i, j, k

    @property
    def extent_mm(self) -> Triple:
        """Field of view along i, j, k, from the outer face of the first voxel to the last's."""
        i, j, k = (n * s for n, s in zip(self.shape, self.spacing_mm, strict=True))
        return i, j, k

    @property
    def obliqueness_deg(self) -> float:
        """The largest angle between a voxel axis and the world axis nearest to it."""
        cosines = np.abs(self.affine[:3, :3] / self.spacing_mm).max(axis=0)
        return float(np.degrees(np.arccos(np.clip(cosines, 0.0, 1.0)).max()))

    def world_mm(self, index: Array) -> NDArray[np.float64]:
        """World position of (fractional) voxel `index` [..., 3]."""
        return np.asarray(index @ self.affine[:3, :3].T + self.affine[:3, 3])

    def index(self, world_mm: Array) -> NDArray[np.float64]:
        """Fractional voxel index of the world position `world_mm` [..., 3]."""
        return np.asarray((world_mm - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T)

    def box(self, start: Shape, shape: Shape) -> Grid:
        """The part of this grid that begins at voxel `start` and has `shape` voxels."""
        affine = self.affine.copy()
        affine[:3, 3] = self.world_mm(np.asarray(start))
        return Grid(shape, affine)

    def regrid(self, spacing_mm: Triple, shape: Shape) -> Grid:
        """A grid along the same axes and about the same centre with another spacing and shape."""
        scale = np.asarray(spacing_mm) / np.asarray(self.spacing_mm)
        affine = self.affine.copy()
        affine[:3, :3] = self.affine[:3, :3] * scale
        first = (np.asarray(self.shape) - scale * (np.asarray(shape) - 1) - 1) / 2
        affine[:3, 3] = self.world_mm(first)
        return Grid(shape, affine)

    def subdivide(self, parts: Shape) -> Grid:
        """The grid that cuts each voxel into `parts` equal ones per axis."""
        i, j, k = (s / p for s, p in zip(self.spacing_mm, parts, strict=True))
        ni, nj, nk = (n * p for n, p in zip(self.shape, parts, strict=True))
        return self.regrid((i, j, k), (ni, nj, nk))


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels [i, j, k] or [i, j, k, channel] and the grid they lie on."""

    voxels: Array
    grid: Grid

    def __post_init__(self) -> None:
        if self.voxels.shape[:3] != self.grid.shape:
            raise ValueError(f"voxels {self.voxels.shape} do not fit a grid of {self.grid.shape}")


class Canonical:
    """The scan's axes permuted and flipped to the nearest right, anterior, superior order.

    No voxel is resampled, so the way back is exact; an oblique scan keeps its oblique axes.
    """

    def __init__(self, grid: Grid) -> None:
        self._ornt = _orientation(grid)
        self._back = ornt_transform(RAS, self._ornt)
        ni, nj, nk = (grid.shape[axis] for axis in np.argsort(self._ornt[:, 0]))
        self.grid = Grid((ni, nj, nk), grid.affine @ inv_ornt_aff(self._ornt, grid.shape))

    @property
    def axes(self) -> Array:
        """[3, 2]: the world axis that each of the scan's axes is nearest to, and its direction."""
        return self._ornt

    def scan_grid(self, grid: Grid) -> Grid:
        """A grid in canonical order -> the same voxels in the scan's own order."""
        ni, nj, nk = (grid.shape[axis] for axis in np.argsort(self._back[:, 0]))
        return Grid((ni, nj, nk), grid.affine @ inv_ornt_aff(self._back, grid.shape))

    def scan_slices(self, box: Slices, shape: Shape) -> Slices:
        """A box of voxels of `shape` in canonical order -> the same one in the scan's order."""
        own = []
        for world, direction in self._ornt.astype(int).tolist():
            part, size = box[world], shape[world]
            own.append(part if direction > 0 else slice(size - part.stop, size - part.start))
        return own[0], own[1], own[2]

    def from_scan(self, voxels: Array) -> Array:
        """Voxels in the scan's own order [i, j, k, ...] -> canonical order, contiguous.

        Contiguous so that sums over it do not depend on the order the file stored it in.
        """
        return np.ascontiguousarray(apply_orientation(voxels, self._ornt))

    def to_scan(self, voxels: Array) -> Array:
        """Voxels in canonical order [i, j, k, ...] -> the scan's own order."""
        return np.ascontiguousarray(apply_orientation(voxels, self._back))


def _orientation(grid: Grid) -> Array:
    """Which canonical axis each voxel axis is nearest to and in which direction, as nibabel has it.

    Where each voxel axis lies within 45 degrees of a world axis the orientation is evident;
    nibabel's search decides the other cases.
    """
    axes = (grid.affine[:3, :3] / grid.spacing_mm).T.tolist()
    nearest = [max(range(3), key=[abs(c) for c in axis].__getitem__) for axis in axes]
    if all(axis[world] ** 2 > CLEAR_ALIGNMENT for axis, world in zip(axes, nearest, strict=True)):
        return np.array(
            [[w, 1 if axis[w] > 0 else -1] for axis, w in zip(axes, nearest, strict=True)]
        )
    return np.asarray(io_orientation(grid.affine))


def affine_fault(affine: NDArray[np.float64]) -> str | None:
    """One sentence on why `affine` cannot place voxels in the world, or None."""
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        return "the affine has non-finite numbers; expected a finite 4x4 matrix: correct the header"
    # Plain floats: this runs for every grid, and three columns are too few for array calls.
    i, j, k = affine[:3, :3].T.tolist()
    size_i, size_j, size_k = math.hypot(*i), math.hypot(*j), math.hypot(*k)
    if min(size_i, size_j, size_k) < MIN_VOXEL_MM or max(size_i, size_j, size_k) > MAX_VOXEL_MM:
        return (
            f"the affine gives voxels of {size_i:.4g} x {size_j:.4g} x {size_k:.4g} mm; "
            f"expected three sizes of {MIN_VOXEL_MM:g} to {MAX_VOXEL_MM:g} mm: correct the header"
        )
    away = max(abs(offset) for offset in affine[:3, 3].tolist())
    if away > MAX_OFFSET_MM:
        return (
            f"the affine places the scan {away:.4g} mm from the world's origin; expected at most "
            f"{MAX_OFFSET_MM:g} mm: correct the header"
        )
    cosine = max(
        abs(i[0] * j[0] + i[1] * j[1] + i[2] * j[2]) / (size_i * size_j),
        abs(i[0] * k[0] + i[1] * k[1] + i[2] * k[2]) / (size_i * size_k),
        abs(j[0] * k[0] + j[1] * k[1] + j[2] * k[2]) / (size_j * size_k),
    )
    shear_deg = math.degrees(math.asin(min(cosine, 1.0)))
    if shear_deg > MAX_SHEAR_DEG:
        return (
            f"the voxel axes are {shear_deg:.1f} degrees off right angles; expected at most "
            f"{MAX_SHEAR_DEG:g} (no shear): resample the scan to a rectangular grid first"
        )
    return None
