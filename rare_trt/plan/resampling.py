"""From grids in millimetres to the six per-axis matrices of a route's graph, and to tiles of it.

A resample between grids along the same axes is a separable linear map: one small matrix per axis
expresses a change of spacing, anti-aliasing, crop, padding and a tile's place. Everything here is
pure and computed in float64; the matrices are handed over as float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import ceil
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from rare_trt.constants import (
    MAX_OVERLAP,
    MAX_STRAY_VOXELS,
    POSITION_DECIMALS,
    POSITION_TOLERANCE,
    STEP_DECIMALS,
    SUBVOXEL_TOLERANCE,
)
from rare_trt.plan.routing import Route
from rare_trt.scan.geometry import Grid, Shape, Slices, Triple

Matrices: TypeAlias = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class ResamplingPlan:
    """How a scan goes through a route: `working` = in . image, output = out . `working`.

    in_matrices [I, i] [J, j] [K, k] and out_matrices [oi, I] [oj, J] [ok, K], float32.
    `core` is the working shape before it was padded to the network's multiple.
    """

    core: Shape
    in_matrices: Matrices
    out_matrices: Matrices

    @property
    def working_shape(self) -> Shape:
        """The shape that the network runs, padded to its multiple."""
        i, j, k = (len(matrix) for matrix in self.in_matrices)
        return i, j, k

    @property
    def output_shape(self) -> Shape:
        """The shape of the labels that the graph gives."""
        i, j, k = (len(matrix) for matrix in self.out_matrices)
        return i, j, k


@dataclass(frozen=True, eq=False)
class Tile:
    """One run of the graph: the slab `image` of the scan, its matrices, and where labels go."""

    image: Slices
    in_matrices: Matrices
    out_matrices: Matrices
    output: Slices


def plan_resampling(grid: Grid, route: Route, output_grid: Grid) -> ResamplingPlan:
    """The six matrices from `grid` through `route`'s working grid to `output_grid`.

    The working grid lies along the scan's own axes. Along an axis inside the route's native band
    its voxels are the scan's own; along others it has the route's spacing, covers the scan's
    extent and is centred on it. It is then padded at its end to the network's multiple; padding
    is zero, which after normalisation is the foreground's mean. Logits are interpolated from the
    unpadded part alone. Raises ValueError where the grids' axes are not parallel.
    """
    spacing = route.working_spacing_mm(grid.spacing_mm)
    core = _covering_shape(grid, spacing)
    working = grid.regrid(spacing, core)
    into, out = [], []
    to_working, to_output = axis_matrices(grid, working), axis_matrices(working, output_grid)
    for axis in range(3):
        padded = core[axis] + -core[axis] % route.multiple
        matrix = np.zeros((padded, grid.shape[axis]), np.float32)
        matrix[: core[axis]] = to_working[axis]
        into.append(matrix)
        matrix = np.zeros((output_grid.shape[axis], padded), np.float32)
        matrix[:, : core[axis]] = to_output[axis]
        out.append(matrix)
    return ResamplingPlan(core, (into[0], into[1], into[2]), (out[0], out[1], out[2]))


def axis_matrices(source: Grid, target: Grid) -> list[NDArray[np.float64]]:
    """Weights [target voxels, source voxels] that resample along i, j and k.

    Linear interpolation between voxel centres; where the target is coarser, the triangle is
    widened to the target's spacing, which averages away what the target cannot represent. Rows sum
    to one, also within the outer half voxel, so a constant stays constant up to the border. Target
    voxels centred outside the source's extent are zero. Raises ValueError where the grids' axes
    are not parallel.
    """
    if source.shape == target.shape and np.array_equal(source.affine, target.affine):
        return [np.eye(n) for n in source.shape]
    step = np.linalg.solve(source.affine[:3, :3], target.affine[:3, :3])
    stray = np.abs(step - np.diag(np.diag(step))).max() * max(target.shape)
    if stray > MAX_STRAY_VOXELS:
        raise ValueError("the grids' axes are not parallel: reorient them first")
    first = source.index(target.affine[:3, 3]).round(POSITION_DECIMALS).tolist()
    steps = np.diag(step).round(STEP_DECIMALS).tolist()
    return [
        _weights(source.shape[axis], first[axis], steps[axis], target.shape[axis])
        for axis in range(3)
    ]


def _weights(size: int, first: float, step: float, samples: int) -> NDArray[np.float64]:
    """Weights [samples, size] for samples at voxel `first`, first + step, ... of `size` voxels."""
    positions = first + step * np.arange(samples)
    # Exact where the grids share voxel centres, so that a native axis is an exact identity.
    whole = positions.round()
    positions = np.where(np.abs(positions - whole) < POSITION_TOLERANCE, whole, positions)
    radius = max(1.0, abs(step))
    weights: NDArray[np.float64] = 1.0 - np.abs(positions[:, None] - np.arange(size)) / radius
    np.maximum(weights, 0.0, out=weights)
    before = positions < -0.5 - POSITION_TOLERANCE
    outside = before | (positions > size - 0.5 + POSITION_TOLERANCE)
    weights[outside] = 0.0
    total = weights.sum(axis=1, keepdims=True)
    weights /= np.where(total > 0.0, total, 1.0)
    return weights


def tiles(plan: ResamplingPlan, max_shape: Shape) -> Iterator[Tile]:
    """Cuts `plan` into runs whose working shape is at most `max_shape`; one run where it fits.

    Neighbouring tiles overlap; each gives the output voxels nearest to its own centre. A tile is
    nothing but rows and columns of the plan's matrices, and the slab of the scan they touch.
    """
    axes = [_axis_tiles(plan, axis, max_shape[axis]) for axis in range(3)]
    for i, j, k in product(*axes):
        yield Tile(
            image=(i.image, j.image, k.image),
            in_matrices=(i.into, j.into, k.into),
            out_matrices=(i.out, j.out, k.out),
            output=(i.output, j.output, k.output),
        )


@dataclass(frozen=True, eq=False)
class _AxisTile:
    image: slice
    into: NDArray[np.float32]
    out: NDArray[np.float32]
    output: slice


def _axis_tiles(plan: ResamplingPlan, axis: int, max_size: int) -> list[_AxisTile]:
    into, out = plan.in_matrices[axis], plan.out_matrices[axis]
    if len(into) <= max_size:
        everything = slice(0, into.shape[1])
        return [_AxisTile(everything, into, out, slice(0, len(out)))]
    # Tiles have the scan's own voxels alone, no padding, and their output stays half an overlap
    # away from their cut faces.
    size = plan.core[axis]
    count = tile_count(size, max_size)
    starts = np.linspace(0, max(0, size - max_size), count).round().astype(int)
    # The output voxel's place on the working axis decides which tile's centre is nearest; voxels
    # outside the scan have none and follow their neighbours.
    rows = np.arange(len(out))
    placed = np.flatnonzero(out.any(axis=1))
    place = np.interp(rows, placed, (out[placed] * np.arange(out.shape[1])).sum(axis=1))
    nearest = np.abs(place[:, None] - (starts + (max_size - 1) / 2)).argmin(axis=1)
    found = []
    for index, start in enumerate(starts):
        rows = np.flatnonzero(nearest == index)
        if not len(rows):
            continue
        window = slice(start, start + max_size)
        columns = np.flatnonzero(into[window].any(axis=0))
        image = slice(int(columns[0]), int(columns[-1]) + 1)
        output = slice(int(rows[0]), int(rows[-1]) + 1)
        found.append(_AxisTile(image, into[window, image], out[output, window], output))
    return found


def tile_count(size: int, tile: int) -> int:
    """Into how many overlapping tiles of at most `tile` voxels an axis of `size` is cut."""
    return 1 + max(0, ceil((size - tile) / (tile - min(tile / 2, MAX_OVERLAP))))


def subvoxel_counts(grid: Grid, base_spacing_mm: float) -> Shape:
    """Into how many sub-voxels per axis the output subdivides a voxel of `grid`.

    The network predicts labels at its base spacing: a voxel of a coarse scan is several voxels of
    the prediction, and its label is their majority vote.
    """
    i, j, k = (max(1, ceil(s / base_spacing_mm - SUBVOXEL_TOLERANCE)) for s in grid.spacing_mm)
    return i, j, k


def majority_vote(fine: NDArray[np.uint8], parts: Shape, classes: int) -> NDArray[np.uint8]:
    """Labels of voxels from the `fine` ones of their `parts` sub-voxels; ties go to the lower."""
    if parts == (1, 1, 1):
        return fine
    i, j, k = parts
    ni, nj, nk = (n // p for n, p in zip(fine.shape, parts, strict=True))
    blocks = np.ascontiguousarray(fine).reshape(ni, i, nj, j, nk, k)
    labels = np.zeros((ni, nj, nk), np.uint8)
    counts = [_counts(blocks == label) for label in range(1, classes)]
    # The background has the rest.
    best = np.full((ni, nj, nk), i * j * k, np.int32)
    for count in counts:
        best -= count
    for label, count in enumerate(counts, start=1):
        labels[count > best] = label
        np.maximum(best, count, out=best)
    return labels


def _counts(blocks: NDArray[np.bool_]) -> NDArray[np.int32]:
    # One axis after the other, in small whole numbers: many times faster than three at once.
    first = blocks.sum(axis=1, dtype=np.uint16)
    counts: NDArray[np.int32] = first.sum(axis=2, dtype=np.uint16).sum(axis=3, dtype=np.int32)
    return counts


def _covering_shape(grid: Grid, spacing_mm: Triple) -> Shape:
    i, j, k = (
        max(1, ceil(extent / spacing - POSITION_TOLERANCE))
        for extent, spacing in zip(grid.extent_mm, spacing_mm, strict=True)
    )
    return i, j, k
