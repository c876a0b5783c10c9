"""Makes examples/ from two cases of the Medical Segmentation Decathlon's Task04.

    python scripts/make_examples.py DATA    (a folder with images/ and labels/)

Both cases were held out from the training of the shipped package. The first is copied as it is;
the second is averaged over 2 x 2 x 2 voxels, as a scanner with 2 mm voxels would have seen it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np

from rare_trt.scan.geometry import Grid
from rare_trt.scan.nifti import read_scan

EXAMPLES = Path(__file__).parents[1] / "examples"


def main(data: Path) -> None:
    """Writes two scans and, under truth/, their manual labels at 1 mm."""
    for name, case, factor in (("1mm", "hippocampus_292", 1), ("2mm", "hippocampus_127", 2)):
        scan = read_scan(data / "images" / f"{case}.nii.gz").volume
        truth = read_scan(data / "labels" / f"{case}.nii.gz").volume
        ni, nj, nk = (n // factor for n in scan.grid.shape)
        kept = tuple(slice(0, n * factor) for n in (ni, nj, nk))
        blocks = scan.voxels[kept].reshape(ni, factor, nj, factor, nk, factor)
        full = scan.grid.box((0, 0, 0), (ni * factor, nj * factor, nk * factor))
        si, sj, sk = (s * factor for s in scan.grid.spacing_mm)
        grid = full.regrid((si, sj, sk), (ni, nj, nk))
        mean = blocks.mean(axis=(1, 3, 5), dtype=np.float64).astype(np.float32)
        save(mean, grid, EXAMPLES / f"hippocampus_{name}.nii.gz")
        save(truth.voxels[kept].astype(np.uint8), full, EXAMPLES / "truth" / f"{name}.nii.gz")


def save(voxels: np.ndarray, grid: Grid, path: Path) -> None:
    """One NIfTI file in scanner coordinates, in millimetres."""
    image = nib.Nifti1Image(voxels, grid.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(grid.affine, 1)
    image.set_qform(grid.affine, 1)
    nib.save(image, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
