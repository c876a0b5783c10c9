"""Labelled scans as one route of a package takes them."""

from __future__ import annotations

import numpy as np

from rare_trt.evaluation.cases import Case
from rare_trt.evaluation.simulation import acquired, whole_voxels
from rare_trt.package.manifest import Manifest, RouteEntry
from rare_trt.package.reading import route_from_entry
from rare_trt.plan.resampling import plan_resampling
from rare_trt.scan.geometry import Triple
from rare_trt.scan.intensity import normalise
from rare_trt.sessions.run import PreparedScan

NATIVE: Triple = (1.0, 1.0, 1.0)


def route_sample(
    manifest: Manifest,
    entry: RouteEntry,
    case: Case,
    relative: Triple = NATIVE,
    far: float = 0.0,
) -> PreparedScan:
    """`case` scanned with voxels of `relative` times the spacing of the route `entry`, answered on
    the part of the labels' grid that the scan shows. Each channel's intensities lie `far` times
    their contrast away from zero, where float32 rounds them."""
    i, j, k = (entry.spacing_mm * factor for factor in relative)
    low = whole_voxels(case.grid, (i, j, k))
    # The scan ends with its last whole voxel, the labels with the last one inside it.
    seen = np.minimum(np.array(low.extent_mm) / case.grid.spacing_mm + 1e-6, case.grid.shape)
    ni, nj, nk = seen.astype(int).tolist()
    voxels = np.moveaxis(acquired(case.voxels, case.grid, low), 0, 3)
    lower, upper = np.percentile(voxels, manifest.model.intensity.clip_percentiles, axis=(0, 1, 2))
    voxels = voxels + (far * (upper - lower)).astype(np.float32)
    route = route_from_entry(entry)
    steps = plan_resampling(low, route, case.grid.box((0, 0, 0), (ni, nj, nk)))
    image = normalise(voxels, manifest.model.intensity)
    return PreparedScan(image, steps, route.max_shape, case.labels[:ni, :nj, :nk])
