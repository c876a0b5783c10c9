"""Augmentation: random pose, field of view, contrast and noise of a labelled scan.

Works on stored voxels, before normalisation, because those are what scanners vary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from nibabel.eulerangles import euler2mat
from nibabel.quaternions import angle_axis2mat
from numpy.random import Generator
from numpy.typing import NDArray

from rare_trt.evaluation.cases import Case
from rare_trt.evaluation.simulation import Beyond, add_air, reslice, reslice_labels, rotated_grid
from rare_trt.scan.geometry import Grid
from rare_trt.training.head_labels import exchange_labels

# Degrees: standard deviation of the tilt of a head, and the largest angle of an oblique protocol.
USUAL_TILT, LARGEST_TILT = 8.0, 45.0

# Fewer voxels than these are cut from a face (at most a quarter of the axis), or added as air.
CUT_LIMIT, AIR_LIMIT = 6, 17

# The share of channels whose intensities pass a random rising curve, its knots, and how far from a
# straight line it may lead: scanners and sequences differ in contrast by more than a gamma.
CURVE_SHARE, KNOTS, BEND = 0.3, 6, 0.7


def augment(
    case: Case, rng: Generator, classes: int, mirror_pairs: Sequence[tuple[int, int]] = ()
) -> Case:
    """Returns a random variant of `case`; image and labels keep their common grid.

    `classes` counts the labels, background included. Where the scan is mirrored left to right, the
    two labels of each of `mirror_pairs` are exchanged.
    """
    posed = vary_pose(case, rng, classes, mirror_pairs)
    return vary_contrast(_vary_field_of_view(posed, rng), rng)


def vary_pose(
    case: Case, rng: Generator, classes: int, mirror_pairs: Sequence[tuple[int, int]] = ()
) -> Case:
    """`case` mirrored left to right, rotated and scaled about its centre, each at random."""
    if rng.random() < 0.5:
        case = replace(
            case,
            voxels=np.ascontiguousarray(case.voxels[:, ::-1]),
            labels=exchange_labels(np.ascontiguousarray(case.labels[::-1]), tuple(mirror_pairs)),
        )
    chance = rng.random()
    if chance < 0.25:
        return case
    if chance < 0.75:
        rotation, whole = euler2mat(*np.radians(rng.normal(0.0, USUAL_TILT, 3))), False
    else:
        angle = np.radians(rng.uniform(-LARGEST_TILT, LARGEST_TILT))
        # The direction of a normally distributed vector is uniform.
        rotation, whole = angle_axis2mat(angle, rng.normal(size=3)), bool(rng.random() < 0.4)
    rotated = rotated_grid(case.grid, rotation, whole=whole)
    scaled = rotated.affine.copy()
    scale = np.exp(rng.normal(0.0, 0.07, 3))
    scaled[:3, :3] *= scale
    scaled[:3, 3] = rotated.world_mm((np.array(rotated.shape) - 1) / 2 * (1.0 - scale))
    target = Grid(rotated.shape, scaled)
    beyond: Beyond = "nearest" if rng.random() < 0.5 else "constant"
    i, j, k = case.grid.spacing_mm
    return replace(
        case,
        voxels=reslice(case.voxels, case.grid, target, beyond),
        labels=reslice_labels(case.labels, case.grid, target, classes),
        grid=Grid(rotated.shape, np.diag([i, j, k, 1.0])),
    )


def _vary_field_of_view(case: Case, rng: Generator) -> Case:
    """Crops the faces of half of the scans, and adds slices of air to a quarter of them."""
    voxels, labels, grid = case.voxels, case.labels, case.grid
    if rng.random() < 0.5:
        shape = np.array(labels.shape)
        first = np.minimum(rng.integers(0, CUT_LIMIT, 3), shape // 4)
        last = shape - np.minimum(rng.integers(0, CUT_LIMIT, 3), shape // 4)
        cut = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
        voxels, labels = voxels[(slice(None), *cut)], labels[cut]
        i, j, k = (last - first).tolist()
        grid = grid.box((int(first[0]), int(first[1]), int(first[2])), (i, j, k))
    if rng.random() < 0.25:
        sides = np.zeros((2, 3), int)
        for axis in np.flatnonzero(rng.random(3) < 0.4):
            sides[rng.integers(2), axis] = rng.integers(1, AIR_LIMIT)
        before, after = ((int(i), int(j), int(k)) for i, j, k in sides)
        strongest = float(np.percentile(voxels, 99.5))
        noise = max(0.0, strongest * float(rng.uniform(0.0, 0.1))) if rng.random() < 0.6 else 0.0
        voxels, grid = add_air(voxels, grid, before, after, noise, rng)
        labels = np.pad(labels, list(zip(before, after, strict=True)))
    return replace(case, voxels=voxels, labels=labels, grid=grid)


def vary_contrast(case: Case, rng: Generator) -> Case:
    """Varies every channel by itself."""
    return replace(case, voxels=np.stack([_vary_channel(channel, rng) for channel in case.voxels]))


def _vary_channel(voxels: NDArray[np.float32], rng: Generator) -> NDArray[np.float32]:
    """Applies a random gamma or intensity curve, coil sensitivity and noise level to one channel
    [i, j, k]."""
    low, high = np.percentile(voxels, (0.5, 99.5))
    scale = max(float(high - low), 1e-6)
    values = (voxels - low) / scale
    if rng.random() < CURVE_SHARE:
        values = _curve(values, rng)
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
    varied: NDArray[np.float32] = values.astype(np.float32)
    return varied


def _curve(values: NDArray[np.float32], rng: Generator) -> NDArray[np.float32]:
    """`values` (from about 0 to 1) through a random rising curve; beyond its ends they keep their
    distance from them."""
    knots = np.linspace(0.0, 1.0, KNOTS)
    heights = np.concatenate([[0.0], np.sort(rng.random(KNOTS - 2)), [1.0]])
    bend = rng.uniform(0.0, BEND)
    inside = np.clip(values, 0.0, 1.0)
    curved = np.interp(inside, knots, (1 - bend) * knots + bend * heights)
    moved: NDArray[np.float32] = (curved + (values - inside)).astype(np.float32)
    return moved
