"""Simulated acquisitions of a labelled scan: other grids, slice profiles, noise, air.

Imports numpy and scipy, not torch; training and evaluation both use it. Every function keeps the
world coordinates of image and labels.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from rare_trt.scan.geometry import Grid, Shape, Triple

Profile: TypeAlias = Literal["box", "gaussian"]

# Values beyond the scan: those of its border, or air (zero).
Beyond: TypeAlias = Literal["nearest", "constant"]

# A Gaussian's full width at half maximum in standard deviations.
FWHM = 2.354820045


def parallel_grid(grid: Grid, spacing_mm: Triple, start_mm: Triple, shape: Shape) -> Grid:
    """Returns `shape` voxels of `spacing_mm` along the axes of `grid`, of which the first begins
    `start_mm` inside the outer face of the first voxel of `grid`."""
    old, new, start = np.array(grid.spacing_mm), np.array(spacing_mm), np.array(start_mm)
    affine = grid.affine.copy()
    affine[:3, :3] *= new / old
    affine[:3, 3] = grid.world_mm((start + new / 2) / old - 0.5)
    return Grid(shape, affine)


def whole_voxel_grid(grid: Grid, spacing_mm: Triple) -> Grid:
    """Returns as many whole voxels of `spacing_mm` as fit into `grid` from its first face on, at
    least one per axis."""
    i, j, k = (
        max(1, int(extent / spacing + 1e-6))
        for extent, spacing in zip(grid.extent_mm, spacing_mm, strict=True)
    )
    return parallel_grid(grid, spacing_mm, (0.0, 0.0, 0.0), (i, j, k))


def acquire(
    voxels: NDArray[np.float32], grid: Grid, target: Grid, profile: Profile = "box"
) -> NDArray[np.float32]:
    """Acquires the object with voxels [c, i, j, k] on `grid` with the voxels of `target`; returns
    [c, *target.shape].

    Each voxel is the mean of the object over its own width (`box`: exact block means where the
    voxels are whole multiples), or under a Gaussian whose full width at half maximum is the
    voxel's (a slice-selective pulse). Along axes finer than `grid` the object is interpolated
    linearly. Beyond its faces the object continues with its border voxels. The axes must be
    parallel.
    """
    step = np.diag(np.linalg.solve(grid.affine[:3, :3], target.affine[:3, :3]))
    first = grid.index(target.affine[:3, 3])
    i, j, k = (
        _slice_weights(grid.shape[axis], first[axis], step[axis], target.shape[axis], profile)
        for axis in range(3)
    )
    scan: NDArray[np.float32] = np.einsum("ai,bj,ck,nijk->nabc", i, j, k, voxels, optimize=True)
    return scan


def _slice_weights(
    size: int, first: float, step: float, samples: int, profile: Profile
) -> NDArray[np.float32]:
    """Weights [samples, size]: the share of each slice profile that falls into each voxel."""
    centres = (first + step * np.arange(samples))[:, None]
    # One voxel for linear interpolation, or the slice's own width.
    width = max(1.0, step)
    faces = np.arange(size + 1) - 0.5
    faces[0], faces[-1] = -np.inf, np.inf
    if profile == "box":
        below = np.clip((faces - centres) / width + 0.5, 0.0, 1.0)
    else:
        from scipy.special import ndtr

        below = ndtr((faces - centres) * FWHM / width)
    return np.diff(below, axis=1).astype(np.float32)


def rotated_grid(grid: Grid, rotation: NDArray[np.float64], *, whole: bool) -> Grid:
    """Returns `grid` rotated by `rotation` [3, 3] (world axes) about its centre; with `whole` it is
    enlarged such that all of `grid` lies inside."""
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


def reslice(
    voxels: NDArray[np.float32], grid: Grid, target: Grid, beyond: Beyond
) -> NDArray[np.float32]:
    """Interpolates voxels [c, i, j, k] on `grid` linearly on `target`, whose axes may be any;
    returns [c, *target.shape]."""
    from scipy.ndimage import affine_transform

    onto = np.linalg.solve(grid.affine, target.affine)
    shape = target.shape
    return np.stack(
        [affine_transform(v, onto, output_shape=shape, order=1, mode=beyond) for v in voxels]
    )


def reslice_labels(
    labels: NDArray[np.uint8], grid: Grid, target: Grid, classes: int
) -> NDArray[np.uint8]:
    """Interpolates one-hot labels [i, j, k] on `grid` linearly on `target` and returns the arg-max
    of the `classes`, 0 beyond `grid`."""
    one_hot = np.stack([labels == label for label in range(1, classes)]).astype(np.float32)
    foreground = reslice(one_hot, grid, target, "constant")
    background = 1.0 - foreground.sum(axis=0, keepdims=True)
    resliced = np.concatenate([background, foreground]).argmax(axis=0)
    return np.asarray(resliced, dtype=np.uint8)


def add_air(
    voxels: NDArray[np.float32],
    grid: Grid,
    before: Shape,
    after: Shape,
    noise: float,
    rng: Generator,
) -> tuple[NDArray[np.float32], Grid]:
    """Adds slices of air `before` and `after` the voxels [c, i, j, k] of each axis; returns the
    voxels and their grid.

    Air is the magnitude of complex Gaussian noise (Rayleigh) of deviation `noise`; 0: exact zero.
    """
    pad = [(0, 0), *zip(before, after, strict=True)]
    padded = np.pad(voxels, pad)
    if noise > 0.0:
        air = np.pad(np.zeros(voxels.shape, bool), pad, constant_values=True)
        padded[air] = rng.rayleigh(noise, int(air.sum()))
    ni, nj, nk = padded.shape[1:]
    return padded, grid.box((-before[0], -before[1], -before[2]), (ni, nj, nk))


def add_rician_noise(
    voxels: NDArray[np.float32], deviation: float, rng: Generator
) -> NDArray[np.float32]:
    """Adds complex Gaussian noise of `deviation` to voxels [c, i, j, k]; returns the magnitude."""
    real, imaginary = rng.normal(0.0, deviation, (2, *voxels.shape)).astype(np.float32)
    magnitude: NDArray[np.float32] = np.hypot(voxels + real, imaginary)
    return magnitude


def add_hot_voxels(
    voxels: NDArray[np.float32], share: float, factor: float, rng: Generator
) -> NDArray[np.float32]:
    """Sets a `share` of the voxels [c, i, j, k] to `factor` times the largest value."""
    hot = rng.random(voxels.shape) < share
    return np.where(hot, np.float32(voxels.max() * factor), voxels)
