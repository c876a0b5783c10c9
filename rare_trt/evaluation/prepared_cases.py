"""Labelled scans, prepared for one route of a package."""

from __future__ import annotations

import numpy as np

from rare_trt.evaluation.cases import Case
from rare_trt.evaluation.simulation import acquire, whole_voxel_grid
from rare_trt.package.manifest import Manifest, RouteEntry
from rare_trt.package.reading import route_from_entry
from rare_trt.plan.resampling import plan_resampling
from rare_trt.scan.geometry import Triple
from rare_trt.scan.intensity import normalise
from rare_trt.sessions.run import PreparedScan

NATIVE: Triple = (1.0, 1.0, 1.0)


def prepare_case(
    manifest: Manifest,
    entry: RouteEntry,
    case: Case,
    relative: Triple = NATIVE,
    far: float = 0.0,
) -> PreparedScan:
    """Simulates a scan of `case` and prepares it for the route `entry`; the output grid is the part
    of the labels' grid that the scan covers.

    Its voxels have `relative` times the spacing of the route. Each channel's intensities are
    shifted by `far` times their contrast away from zero, where float32 rounds them.
    """
    i, j, k = (entry.spacing_mm * factor for factor in relative)
    low = whole_voxel_grid(case.grid, (i, j, k))
    # The scan ends with its last whole voxel, the labels with the last one inside it.
    covered = np.minimum(np.array(low.extent_mm) / case.grid.spacing_mm + 1e-6, case.grid.shape)
    ni, nj, nk = covered.astype(int).tolist()
    voxels = np.moveaxis(acquire(case.voxels, case.grid, low), 0, 3)
    lower, upper = np.percentile(voxels, manifest.model.intensity.clip_percentiles, axis=(0, 1, 2))
    voxels = voxels + (far * (upper - lower)).astype(np.float32)
    route = route_from_entry(entry)
    plan = plan_resampling(low, route, case.grid.box((0, 0, 0), (ni, nj, nk)))
    image = normalise(voxels, manifest.model.intensity)
    return PreparedScan(image, plan, route.max_shape, case.labels[:ni, :nj, :nk])
