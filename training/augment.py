"""Random variation of a labelled scan: pose, field of view, contrast, noise.

Works on stored voxels, before normalisation, because a scanner varies those.
"""

from __future__ import annotations

import numpy as np
import torch
from nibabel.eulerangles import euler2mat
from numpy.random import Generator
from numpy.typing import NDArray
from torch.nn import functional

from rare_trt.training.averaging import fitted
from rare_trt.training.cases import Case


def augmented(
    case: Case, rng: Generator, multiple: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A random variant of `case`: voxels [c, i, j, k] and labels [i, j, k], axes cut or padded to
    `multiple` so that the variant can be averaged down to every route."""
    voxels, labels = _posed(case.voxels, case.labels, rng)
    voxels, labels = _framed(voxels, labels, rng, multiple)
    return np.stack([_scanned(channel, rng) for channel in voxels]), labels


def _posed(
    voxels: NDArray[np.float32], labels: NDArray[np.uint8], rng: Generator
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Mirrored, rotated and scaled about the centre."""
    if rng.random() < 0.5:
        voxels, labels = voxels[:, ::-1], labels[::-1]
    if rng.random() > 0.7:
        return np.ascontiguousarray(voxels), np.ascontiguousarray(labels)
    motion = euler2mat(*np.radians(rng.normal(0.0, 8.0, 3))) * np.exp(rng.normal(0.0, 0.07, 3))
    # affine_grid wants the motion in normalised coordinates, last axis first.
    size = np.array(labels.shape, dtype=np.float64)
    relative = motion * size[None, :] / size[:, None]
    theta = np.zeros((1, 3, 4))
    theta[0, :, :3] = relative[::-1, ::-1]
    shape = [1, 1, *labels.shape]
    field = functional.affine_grid(torch.from_numpy(theta).float(), shape, align_corners=False)
    image = torch.from_numpy(np.ascontiguousarray(voxels))[None]
    image = functional.grid_sample(image, field, padding_mode="border", align_corners=False)
    truth = torch.from_numpy(np.ascontiguousarray(labels))[None, None].float()
    truth = functional.grid_sample(truth, field, mode="nearest", align_corners=False)
    return image[0].numpy(), truth[0, 0].numpy().astype(np.uint8)


def _framed(
    voxels: NDArray[np.float32], labels: NDArray[np.uint8], rng: Generator, multiple: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A random field of view: faces cropped, now and then a slab of air on one side."""
    if rng.random() < 0.5:
        cut = tuple(slice(*(rng.integers(0, 5), n - rng.integers(0, 5))) for n in labels.shape)
        voxels, labels = voxels[(slice(None), *cut)], labels[cut]
    if rng.random() < 0.15:
        pad = [(0, 0)] * 3
        pad[rng.integers(3)] = (int(rng.integers(2, 13)), 0) if rng.random() < 0.5 else (0, 8)
        voxels, labels = np.pad(voxels, [(0, 0), *pad]), np.pad(labels, pad)
    keep = []
    for n in labels.shape:
        if rng.random() < 0.5:
            start = int(rng.integers(0, n % multiple + 1))
            keep.append(slice(start, start + n - n % multiple))
        else:
            keep.append(slice(0, n))
    return fitted(voxels[(slice(None), *keep)], labels[tuple(keep)], multiple)


def _scanned(voxels: NDArray[np.float32], rng: Generator) -> NDArray[np.float32]:
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
