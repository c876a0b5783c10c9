"""The part of a scan that is segmented: all but its padding, or a box of the trained size around a
point."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import inf

import numpy as np
from numpy.typing import NDArray

from rare_trt.constants import CENTRE_DECIMALS, EXTENT_TOLERANCE_MM
from rare_trt.errors import ScanError
from rare_trt.scan.geometry import Array, Canonical, Grid, Shape, Slices, Triple, Volume


@dataclass(frozen=True)
class FieldOfView:
    """Accepted fields of view per canonical axis in mm; `typical` is what --at cuts out."""

    min: Triple
    typical: Triple
    max: Triple


@dataclass(frozen=True, eq=False)
class Region:
    """What of a scan is segmented, in canonical order: `voxels` [i, j, k, ...] on `grid`, which is
    `box` of the canonical scan."""

    canonical: Canonical
    grid: Grid
    box: Slices
    voxels: Array

    def place(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Labels of the region -> of the whole scan, in its own order; 0 outside the region."""
        whole = np.zeros(self.canonical.grid.shape, np.uint8)
        whole[self.box] = labels
        return self.canonical.to_scan(whole)


def select_region(volume: Volume, accepted: FieldOfView, at_mm: Triple | None) -> Region:
    """A scan without its padding, or the box of the typical size around the world point `at_mm`.

    Raises ScanError where its field of view is not one that `accepted` allows.
    """
    canonical = Canonical(volume.grid)
    voxels = canonical.from_scan(volume.voxels)
    if at_mm is None:
        box = without_padding(voxels)
    else:
        box = box_at(canonical.grid, at_mm, accepted.typical)
    part = box_grid(canonical.grid, box)
    check_field_of_view(part, accepted, box_of=None if at_mm is None else canonical.grid)
    return Region(canonical, part, box, voxels[box])


def without_padding(voxels: Array) -> Slices:
    """The box of `voxels` [i, j, k, ...] that is left without outer slices of one value.

    Software pads scans with constants, which carry no information, but which instance norm would
    average over.
    A scan that is constant throughout is left as it is.
    """
    box = [slice(0, n) for n in voxels.shape[:3]]
    for axis in range(3):
        slices = np.moveaxis(voxels[tuple(box)], axis, 0)
        first = next((at for at, one in enumerate(slices) if _varies(one)), None)
        if first is None:
            return slice(0, voxels.shape[0]), slice(0, voxels.shape[1]), slice(0, voxels.shape[2])
        padded = next(at for at, one in enumerate(slices[::-1]) if _varies(one))
        box[axis] = slice(first, len(slices) - padded)
    return box[0], box[1], box[2]


def _varies(voxels: Array) -> bool:
    return bool((voxels != voxels[0, 0]).any())


def within(extent_mm: Triple, low_mm: Triple, high_mm: Triple) -> bool:
    """Whether an extent lies between two others along every axis."""
    extents = zip(low_mm, extent_mm, high_mm, strict=True)
    slack = EXTENT_TOLERANCE_MM
    return all(low - slack <= size <= high + slack for low, size, high in extents)


def check_field_of_view(grid: Grid, accepted: FieldOfView, *, box_of: Grid | None = None) -> None:
    """Raises ScanError where a canonical `grid` covers more or less than the network was trained
    on: it would label nonsense. `box_of` is the grid that it was cut out of with --at, if it was.
    """
    if within(grid.extent_mm, accepted.min, accepted.max):
        return
    large_enough = within((box_of or grid).extent_mm, accepted.min, (inf, inf, inf))
    if large_enough and box_of is not None:
        way_out = "the scan's edge cuts the box: choose a point further inside for --at"
    elif large_enough:
        way_out = "pass --at X,Y,Z (world mm) to segment a box of the trained size around a point"
    else:
        way_out = "take a scan, or a crop of one, that covers more"
    raise ScanError(
        f"the field of view is {as_mm(grid.extent_mm)} mm (right-left, anterior-posterior, "
        f"superior-inferior); this package takes {as_mm(accepted.min)} to "
        f"{as_mm(accepted.max)} mm: {way_out}"
    )


def box_at(grid: Grid, point_mm: Triple, size_mm: Triple) -> Slices:
    """The box of `size_mm` around the world point `point_mm`, cut off at the borders of `grid`.

    Raises ScanError where the point lies outside the scan.
    """
    spacing = np.array(grid.spacing_mm)
    shape = np.array(grid.shape)
    if not np.isfinite(point_mm).all():
        raise ScanError(f"the point is {point_mm}; expected three finite numbers: pass --at=X,Y,Z")
    centre = grid.index(np.array(point_mm)).round(CENTRE_DECIMALS)
    if (centre < -0.5).any() or (centre > shape - 0.5).any():
        corners = grid.world_mm(np.array(list(product(*([-0.5, n - 0.5] for n in grid.shape)))))
        low, high = corners.min(axis=0).round(1), corners.max(axis=0).round(1)
        raise ScanError(
            f"the point {as_mm(point_mm)} lies outside the scan, which reaches from "
            f"{low.tolist()} to {high.tolist()} mm (right, anterior, superior): choose a "
            "point inside for --at"
        )
    wanted = np.maximum(1, np.round(np.array(size_mm) / spacing)).astype(int)
    start = np.floor(centre - (wanted - 1) / 2 + 0.5).astype(int)
    stop = np.minimum(start + wanted, shape)
    i, j, k = (slice(int(a), int(b)) for a, b in zip(np.maximum(start, 0), stop, strict=True))
    return i, j, k


def box_grid(grid: Grid, box: Slices) -> Grid:
    """The grid of the voxels of `grid` inside `box`."""
    start: Shape = (box[0].start, box[1].start, box[2].start)
    i, j, k = (part.stop - part.start for part in box)
    return grid.box(start, (i, j, k))


def as_mm(values: Triple) -> str:
    """'35 x 50.5 x 36'."""
    return " x ".join(f"{value:.4g}" for value in values)
