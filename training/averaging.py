"""Scans of lower resolution as block averages. Needs no torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def fitted(
    voxels: NDArray[np.float32], labels: NDArray[np.uint8], multiple: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Axes padded at the end to `multiple`: the image by its edge, labels with background."""
    pad = [(0, -n % multiple) for n in labels.shape]
    return np.pad(voxels, [(0, 0), *pad], mode="edge"), np.pad(labels, pad)


def averaged(voxels: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """[c, i, j, k] at `factor` times the spacing, each voxel the mean of factor³."""
    c, i, j, k = voxels.shape
    f = factor
    blocks = voxels.reshape(c, i // f, f, j // f, f, k // f, f)
    mean: NDArray[np.float32] = blocks.mean(axis=(2, 4, 6), dtype=np.float32)
    return mean
