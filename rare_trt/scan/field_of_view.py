"""The part of a scan that is segmented: all but its padding, or a box of the trained size around a
point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import inf
from typing import Any

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
    """A segmented part of a scan, in canonical order: `voxels` [i, j, k, ...] on `grid`, which is
    `box` of the canonical scan. `at_mm` is the point that it was cut out around, if it was."""

    canonical: Canonical
    grid: Grid
    box: Slices
    voxels: Array
    at_mm: Triple | None


def select_regions(
    volume: Volume, accepted: FieldOfView, points_mm: Sequence[Triple] | None
) -> list[Region]:
    """A scan without its padding, or a box of the typical size around each of the world points.

    Raises ScanError where a field of view is not one that `accepted` allows.
    """
    canonical = Canonical(volume.grid)
    voxels = canonical.from_scan(volume.voxels)
    regions = []
    for at_mm in points_mm or (None,):
        if at_mm is None:
            box = without_padding(voxels)
        else:
            box = box_at(canonical.grid, at_mm, accepted.typical)
        part = box_grid(canonical.grid, box)
        check_field_of_view(part, accepted, box_of=None if at_mm is None else canonical.grid)
        regions.append(Region(canonical, part, box, voxels[box], at_mm))
    return regions


def world_points(grid: Grid, at_mm: Any, at_voxel: Any) -> list[Triple] | None:
    """The points in world mm that were given as such, or as voxels of `grid`; None for none.

    Each is one point of three numbers, or a sequence or an array [point, 3] of several. Raises
    ScanError where they are not, where both are given, or where there is no such voxel.
    """
    if at_voxel is None:
        return None if at_mm is None else _points(at_mm, "the points", "world mm: pass X,Y,Z")
    if at_mm is not None:
        raise ScanError("boxes are given by --at and by --at-voxel: give all of them by one")
    voxels = _points(at_voxel, "the voxels", "indices of the scan's axes: pass I,J,K")
    for voxel in voxels:
        within_grid = (0 <= n < size for n, size in zip(voxel, grid.shape, strict=True))
        if not all(n.is_integer() for n in voxel) or not all(within_grid):
            last = ", ".join(str(size - 1) for size in grid.shape)
            raise ScanError(
                f"the voxel {_listed(voxel)} is not one of the scan; expected whole numbers from "
                f"0, 0, 0 to {last}: choose a voxel inside for --at-voxel"
            )
    return _points(grid.world_mm(np.array(voxels)), "the points", "world mm")


def _points(values: Any, what: str, unit: str) -> list[Triple]:
    """One point, or several, as lists of floats."""
    try:
        points = np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        points = np.empty(0)
    points = points[None] if points.ndim == 1 else points
    if points.ndim != 2 or points.shape[1] != 3 or len(points) == 0:
        raise ScanError(f"{what} are {values!r}; expected three numbers each, in {unit}")
    return [(x, y, z) for x, y, z in points.tolist()]


def _listed(numbers: Triple) -> str:
    return ", ".join(f"{n:g}" for n in numbers)


@dataclass(frozen=True, eq=False)
class JoinedLabels:
    """Labels of several boxes on one grid: `labels` uint8 [i, j, k], 0 outside of all boxes.

    `owned` has a mask per box, of its shape: the voxels whose labels come from it; None where all
    do. `disputes` has
    the numbers, from 0, of two boxes and how many voxels they label differently, where any.
    """

    labels: NDArray[np.uint8]
    owned: list[NDArray[np.bool_] | None]
    disputes: list[tuple[int, int, int]]


def join_boxes(
    grid: Grid, boxes: Sequence[Slices], labels: Sequence[NDArray[np.uint8]]
) -> JoinedLabels:
    """The `labels` of each of the `boxes` of `grid`.

    Where boxes overlap, a voxel belongs to the box whose centre is nearest, in mm, and of those
    that are equally near to the one that begins first along i, then j, then k: every voxel belongs
    to one box, whatever their order.
    """
    masks: dict[int, NDArray[np.bool_]] = {}
    disputes = []
    for (one, a), (two, b) in combinations(enumerate(boxes), 2):
        low = [max(p.start, q.start) for p, q in zip(a, b, strict=True)]
        high = [min(p.stop, q.stop) for p, q in zip(a, b, strict=True)]
        if any(first >= last for first, last in zip(low, high, strict=True)):
            continue
        in_a, in_b = _shifted(low, high, a), _shifted(low, high, b)
        to_a, to_b = _squared_mm(grid, low, high, a), _squared_mm(grid, low, high, b)
        a_is_first = [part.start for part in a] <= [part.start for part in b]
        is_a = to_a <= to_b if a_is_first else to_a < to_b
        for number, inside, is_own in ((one, in_a, is_a), (two, in_b, ~is_a)):
            own = masks.setdefault(number, np.ones(labels[number].shape, np.bool_))
            own[inside] &= is_own
        different = int(np.count_nonzero(labels[one][in_a] != labels[two][in_b]))
        if different:
            disputes.append((one, two, different))
    joined = np.zeros(grid.shape, np.uint8)
    owned = [masks.get(number) for number in range(len(boxes))]
    for box, part, mask in zip(boxes, labels, owned, strict=True):
        np.copyto(joined[box], part, where=True if mask is None else mask)
    return JoinedLabels(joined, owned, disputes)


def _shifted(low: list[int], high: list[int], box: Slices) -> Slices:
    """The voxels from `low` up to `high` of a grid, as a part of its `box`."""
    i, j, k = (
        slice(a - part.start, b - part.start) for a, b, part in zip(low, high, box, strict=True)
    )
    return i, j, k


def _squared_mm(grid: Grid, low: list[int], high: list[int], box: Slices) -> NDArray[np.float64]:
    """[i, j, k]: four times the squared distance of the voxels from `low` up to `high` to the
    centre of `box`; whole numbers until spacing comes in, so that mirrored voxels tie."""
    i, j, k = (
        ((2 * np.arange(a, b) - (part.start + part.stop - 1)) * spacing) ** 2
        for a, b, part, spacing in zip(low, high, box, grid.spacing_mm, strict=True)
    )
    return np.asarray(i[:, None, None] + j[:, None] + k)


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
        raise ScanError(f"the point is {point_mm}; expected three finite numbers: pass --at X,Y,Z")
    centre = grid.index(np.array(point_mm)).round(CENTRE_DECIMALS)
    if (centre < -0.5).any() or (centre > shape - 0.5).any():
        corners = grid.world_mm(np.array(list(product(*([-0.5, n - 0.5] for n in grid.shape)))))
        low, high = corners.min(axis=0).round(1), corners.max(axis=0).round(1)
        raise ScanError(
            f"the point {as_point(point_mm)} lies outside the scan, which reaches from "
            f"{as_point(low)} to {as_point(high)} mm (right, anterior, superior): choose a "
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


def as_point(values: Sequence[float]) -> str:
    """'-28, 20.5, -18'."""
    return ", ".join(f"{value:g}" for value in values)
