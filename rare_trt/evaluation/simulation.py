"""Scans as scanners make them, from a labelled scan: other grids, slice profiles, noise, air.

Needs numpy and scipy, not torch: training draws from it, and evaluation measures on it. The truth
never moves: every function keeps image and labels in their place in the world.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from rare_trt.scan.geometry import Grid, Shape, Triple

Profile: TypeAlias = Literal["box", "gaussian"]

# What lies beyond the scan: its border goes on, or air (zero).
Beyond: TypeAlias = Literal["nearest", "constant"]

# A Gaussian's full width at half maximum in standard deviations.
FWHM = 2.354820045


def scanned_grid(grid: Grid, spacing_mm: Triple, start_mm: Triple, shape: Shape) -> Grid:
    """`shape` voxels of `spacing_mm` along the axes of `grid`, whose first voxel begins `start_mm`
    inside the outer face of the first voxel of `grid`."""
    old, new, start = np.array(grid.spacing_mm), np.array(spacing_mm), np.array(start_mm)
    affine = grid.affine.copy()
    affine[:3, :3] *= new / old
    affine[:3, 3] = grid.world_mm((start + new / 2) / old - 0.5)
    return Grid(shape, affine)


def whole_voxels(grid: Grid, spacing_mm: Triple) -> Grid:
    """As many whole voxels of `spacing_mm` as `grid` holds, from its first face on."""
    i, j, k = (
        max(1, int(extent / spacing + 1e-6))
        for extent, spacing in zip(grid.extent_mm, spacing_mm, strict=True)
    )
    return scanned_grid(grid, spacing_mm, (0.0, 0.0, 0.0), (i, j, k))


def acquired(
    voxels: NDArray[np.float32], grid: Grid, target: Grid, profile: Profile = "box"
) -> NDArray[np.float32]:
    """Voxels [c, i, j, k] on `grid` as a scanner with the voxels of `target` would measure them.

    Each voxel is the mean of the object over its own width (`box`: exact block means where the
    voxels are whole multiples), or under a Gaussian whose full width at half maximum is the
    voxel's (a slice-selective pulse). Along axes finer than `grid` the object is interpolated
    linearly. Beyond its faces the object goes on as it ends. The axes must be parallel.
    """
    step = np.diag(np.linalg.solve(grid.affine[:3, :3], target.affine[:3, :3]))
    first = grid.index(target.affine[:3, 3])
    i, j, k = (
        _slice_weights(grid.shape[axis], first[axis], step[axis], target.shape[axis], profile)
        for axis in range(3)
    )
    found: NDArray[np.float32] = np.einsum("ai,bj,ck,nijk->nabc", i, j, k, voxels, optimize=True)
    return found


def _slice_weights(
    size: int, first: float, step: float, samples: int, profile: Profile
) -> NDArray[np.float32]:
    """Weights [samples, size]: the share of each slice profile that falls into each voxel."""
    centres = (first + step * np.arange(samples))[:, None]
    # Two voxels' borders of a linear interpolation, or the slice's own width.
    width = max(1.0, step)
    faces = np.arange(size + 1) - 0.5
    faces[0], faces[-1] = -np.inf, np.inf
    if profile == "box":
        below = np.clip((faces - centres) / width + 0.5, 0.0, 1.0)
    else:
        from scipy.special import ndtr

        below = ndtr((faces - centres) * FWHM / width)
    return np.diff(below, axis=1).astype(np.float32)


def turned_grid(grid: Grid, rotation: NDArray[np.float64], *, whole: bool) -> Grid:
    """`grid` turned by `rotation` [3, 3] (world axes) about its centre; `whole`: enlarged such that
    all of `grid` lies inside."""
    shape = np.array(grid.shape)
    if whole:
        axes = grid.affine[:3, :3] / grid.spacing_mm
        reach = np.abs(axes.T @ rotation.T @ axes) @ np.array(grid.extent_mm)
        shape = np.ceil(reach / grid.spacing_mm - 1e-6).astype(int)
    affine = grid.affine.copy()
    affine[:3, :3] = rotation @ affine[:3, :3]
    centre = grid.world_mm((np.array(grid.shape) - 1) / 2)
    affine[:3, 3] = centre - affine[:3, :3] @ ((shape - 1) / 2)
    i, j, k = shape.tolist()
    return Grid((i, j, k), affine)


def resliced(
    voxels: NDArray[np.float32], grid: Grid, target: Grid, beyond: Beyond
) -> NDArray[np.float32]:
    """Voxels [c, i, j, k] on `grid` interpolated linearly on `target`, whatever its axes."""
    from scipy.ndimage import affine_transform

    onto = np.linalg.solve(grid.affine, target.affine)
    shape = target.shape
    return np.stack(
        [affine_transform(v, onto, output_shape=shape, order=1, mode=beyond) for v in voxels]
    )


def resliced_labels(
    labels: NDArray[np.uint8], grid: Grid, target: Grid, classes: int
) -> NDArray[np.uint8]:
    """Labels [i, j, k] on `grid` -> the label with the largest share on `target`; 0 beyond."""
    shares = np.stack([labels == label for label in range(1, classes)]).astype(np.float32)
    found = resliced(shares, grid, target, "constant")
    background = 1.0 - found.sum(axis=0, keepdims=True)
    largest = np.concatenate([background, found]).argmax(axis=0)
    return np.asarray(largest, dtype=np.uint8)


def with_air(
    voxels: NDArray[np.float32],
    grid: Grid,
    before: Shape,
    after: Shape,
    noise: float,
    rng: Generator,
) -> tuple[NDArray[np.float32], Grid]:
    """Slices of air added `before` and `after` the voxels [c, i, j, k] of each axis.

    Air is the magnitude of complex Gaussian noise (Rayleigh) of deviation `noise`; 0: exact zero.
    """
    pad = [(0, 0), *zip(before, after, strict=True)]
    padded = np.pad(voxels, pad)
    if noise > 0.0:
        air = np.pad(np.zeros(voxels.shape, bool), pad, constant_values=True)
        padded[air] = rng.rayleigh(noise, int(air.sum()))
    ni, nj, nk = padded.shape[1:]
    return padded, grid.box((-before[0], -before[1], -before[2]), (ni, nj, nk))


def with_rician_noise(
    voxels: NDArray[np.float32], deviation: float, rng: Generator
) -> NDArray[np.float32]:
    """The magnitude of the voxels after complex Gaussian noise of `deviation`."""
    real, imaginary = rng.normal(0.0, deviation, (2, *voxels.shape)).astype(np.float32)
    magnitude: NDArray[np.float32] = np.hypot(voxels + real, imaginary)
    return magnitude


def with_hot_voxels(
    voxels: NDArray[np.float32], share: float, factor: float, rng: Generator
) -> NDArray[np.float32]:
    """A `share` of the voxels set to `factor` times the largest value, as spikes leave them."""
    hot = rng.random(voxels.shape) < share
    return np.where(hot, np.float32(voxels.max() * factor), voxels)
