"""Random variation of a labelled scan: pose, field of view, contrast, noise.

Works on stored voxels, before normalisation, because a scanner varies those.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from nibabel.eulerangles import euler2mat
from nibabel.quaternions import angle_axis2mat
from numpy.random import Generator
from numpy.typing import NDArray

from rare_trt.evaluation.cases import Case
from rare_trt.evaluation.simulation import Beyond, resliced, resliced_labels, turned_grid, with_air
from rare_trt.scan.geometry import Grid

# Degrees: heads lie a little tilted, and now and then a protocol is oblique.
USUAL_TILT, LARGEST_TILT = 8.0, 45.0

# Voxels: how much tighter a crop can be (no more than a quarter), and how many slices of air a scan
# can end in.
LARGEST_CUT, LARGEST_AIR = 6, 17


def augmented(case: Case, rng: Generator, classes: int) -> Case:
    """A random variant of `case`, image and labels still in one place."""
    return _scanned(_framed(_posed(case, rng, classes), rng), rng)


def _posed(case: Case, rng: Generator, classes: int) -> Case:
    """Mirrored, turned and scaled about the centre."""
    if rng.random() < 0.5:
        case = replace(
            case,
            voxels=np.ascontiguousarray(case.voxels[:, ::-1]),
            labels=np.ascontiguousarray(case.labels[::-1]),
        )
    chance = rng.random()
    if chance < 0.25:
        return case
    if chance < 0.75:
        rotation, whole = euler2mat(*np.radians(rng.normal(0.0, USUAL_TILT, 3))), False
    else:
        angle = np.radians(rng.uniform(-LARGEST_TILT, LARGEST_TILT))
        # A normally distributed vector points in every direction alike.
        rotation, whole = angle_axis2mat(angle, rng.normal(size=3)), bool(rng.random() < 0.4)
    turned = turned_grid(case.grid, rotation, whole=whole)
    stretched = turned.affine.copy()
    scale = np.exp(rng.normal(0.0, 0.07, 3))
    stretched[:3, :3] *= scale
    stretched[:3, 3] = turned.world_mm((np.array(turned.shape) - 1) / 2 * (1.0 - scale))
    target = Grid(turned.shape, stretched)
    beyond: Beyond = "nearest" if rng.random() < 0.5 else "constant"
    i, j, k = case.grid.spacing_mm
    return replace(
        case,
        voxels=resliced(case.voxels, case.grid, target, beyond),
        labels=resliced_labels(case.labels, case.grid, target, classes),
        grid=Grid(turned.shape, np.diag([i, j, k, 1.0])),
    )


def _framed(case: Case, rng: Generator) -> Case:
    """A random field of view: faces cropped, now and then slices of air."""
    voxels, labels, grid = case.voxels, case.labels, case.grid
    if rng.random() < 0.5:
        shape = np.array(labels.shape)
        first = np.minimum(rng.integers(0, LARGEST_CUT, 3), shape // 4)
        last = shape - np.minimum(rng.integers(0, LARGEST_CUT, 3), shape // 4)
        cut = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
        voxels, labels = voxels[(slice(None), *cut)], labels[cut]
        i, j, k = (last - first).tolist()
        grid = grid.box((int(first[0]), int(first[1]), int(first[2])), (i, j, k))
    if rng.random() < 0.25:
        sides = np.zeros((2, 3), int)
        for axis in np.flatnonzero(rng.random(3) < 0.4):
            sides[rng.integers(2), axis] = rng.integers(1, LARGEST_AIR)
        before, after = ((int(i), int(j), int(k)) for i, j, k in sides)
        strongest = float(np.percentile(voxels, 99.5))
        noise = max(0.0, strongest * float(rng.uniform(0.0, 0.1))) if rng.random() < 0.6 else 0.0
        voxels, grid = with_air(voxels, grid, before, after, noise, rng)
        labels = np.pad(labels, list(zip(before, after, strict=True)))
    return replace(case, voxels=voxels, labels=labels, grid=grid)


def _scanned(case: Case, rng: Generator) -> Case:
    return replace(case, voxels=np.stack([_channel(channel, rng) for channel in case.voxels]))


def _channel(voxels: NDArray[np.float32], rng: Generator) -> NDArray[np.float32]:
    """One channel under another contrast, coil sensitivity and noise level."""
    low, high = np.percentile(voxels, (0.5, 99.5))
    scale = max(float(high - low), 1e-6)
    values = (voxels - low) / scale
    if rng.random() < 0.4:
        values = np.sign(values) * np.abs(values) ** np.exp(rng.normal(0.0, 0.2))
    if rng.random() < 0.4:
        axes = [np.linspace(-1.0, 1.0, n, dtype=np.float32) for n in values.shape]
        slopes = rng.normal(0.0, 0.12, 3)
        values = values * (
            1.0
            + slopes[0] * axes[0][:, None, None]
            + slopes[1] * axes[1][:, None]
            + slopes[2] * axes[2]
        )
    if rng.random() < 0.4:
        values = values + rng.normal(0.0, rng.uniform(0.0, 0.08), values.shape)
    scanned: NDArray[np.float32] = values.astype(np.float32)
    return scanned
