"""Scans to measure on where the user names none: real ones, cut out of the package's own."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import nibabel as nib
import numpy as np

from rare_trt.package.manifest import RouteEntry
from rare_trt.package.reading import Package
from rare_trt.scan.geometry import Shape, Triple
from rare_trt.scan.nifti import scan_from_bytes

# Fields of view of the scans that are made where none are named, as shares of the typical one.
SHARES: Final[tuple[Triple, ...]] = (
    (1.0, 1.0, 1.0),
    (0.9, 1.1, 0.8),
    (1.1, 0.9, 1.2),
    (0.8, 1.2, 1.0),
    (1.2, 1.0, 0.9),
)


def package_scans(package: Package, folder: Path) -> list[Path]:
    """Scans of several real sizes at every route's spacing, written to `folder`.

    Each is the first corner of the route's largest golden vector, a real scan at the route's
    spacing that is mirrored beyond its end, cut to a field of view near the typical one.
    """
    folder.mkdir(parents=True)
    model = package.manifest.model
    made = []
    for entry in package.manifest.routes:
        names = [g.scan for g in package.manifest.golden if g.route == entry.index]
        channels = len(model.channels)
        volumes = [scan_from_bytes(package.read(n), n, channels).volume for n in names]
        largest = max(volumes, key=lambda volume: volume.voxels.size)
        for shape in dict.fromkeys(_cut_shape(package, entry, share) for share in SHARES):
            i, j, k = shape
            path = folder / f"route{entry.index}_{'x'.join(map(str, shape))}.nii.gz"
            nib.save(nib.Nifti1Image(largest.voxels[:i, :j, :k], largest.grid.affine), path)
            made.append(path)
    return made


def _cut_shape(package: Package, entry: RouteEntry, share: Triple) -> Shape:
    view, spacing = package.manifest.model.field_of_view_mm, entry.spacing_mm
    low = np.ceil(np.array(view.min) / spacing)
    high = np.floor(np.array(view.max) / spacing)
    wanted = np.round(np.array(view.typical) * share / spacing)
    i, j, k = np.clip(wanted, low, high).astype(int).tolist()
    return i, j, k
