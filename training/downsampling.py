"""Lower resolution as block averages. Imports no torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rare_trt.scan.geometry import Grid


def pad_to_multiple(
    voxels: NDArray[np.float32], labels: NDArray[np.uint8], multiple: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Pads every axis at its end to a multiple of `multiple` voxels.

    Voxels [c, i, j, k] repeat their last slice; labels [i, j, k] are background there.
    """
    pad = [(0, -n % multiple) for n in labels.shape]
    return np.pad(voxels, [(0, 0), *pad], mode="edge"), np.pad(labels, pad)


def average_blocks(voxels: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Returns voxels [c, i, j, k] at `factor` times the spacing, each the mean of factor³ voxels.

    The axes must be multiples of `factor`.
    """
    c, i, j, k = voxels.shape
    f = factor
    blocks = voxels.reshape(c, i // f, f, j // f, f, k // f, f)
    mean: NDArray[np.float32] = blocks.mean(axis=(2, 4, 6), dtype=np.float32)
    return mean


def block_grid(full: Grid, factor: int) -> Grid:
    """Returns the grid of the averages of factor³ blocks of voxels on `full`."""
    i, j, k = (n // factor for n in full.shape)
    si, sj, sk = (s * factor for s in full.spacing_mm)
    return full.regrid((si, sj, sk), (i, j, k))
