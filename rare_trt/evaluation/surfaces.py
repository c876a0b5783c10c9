"""Distance between surfaces."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rare_trt.scan.geometry import Triple


def mean_surface_distance_mm(
    found: NDArray[np.bool_], truth: NDArray[np.bool_], spacing_mm: Triple
) -> float:
    """Returns the average symmetric surface distance in mm of two masks [i, j, k] on one grid.

    It is the mean, over the border voxels of both, of the distance to the nearest border voxel of
    the other; NaN where either mask is empty. Source: Heimann et al., "Comparison and Evaluation of
    Methods for Liver Segmentation from CT Datasets", IEEE TMI 28 (2009).
    """
    from scipy.ndimage import distance_transform_edt

    if not found.any() or not truth.any():
        return float("nan")
    borders = _border(found), _border(truth)
    distances = [
        distance_transform_edt(~other, sampling=spacing_mm)[border]
        for border, other in (borders, borders[::-1])
    ]
    return float(np.concatenate(distances).mean())


def _border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels of `mask` with a neighbour across a face outside it, or on the grid's own face."""
    from scipy.ndimage import binary_erosion

    border: NDArray[np.bool_] = mask & ~binary_erosion(mask)
    return border
