"""Whole heads of other sources: a box around each hippocampus, against automatic labels.

    python benchmarks/external_heads.py IXI FREESURFER COLIN

IXI holds NAME_T1.nii.gz and NAME_T1_DLMUSE.nii.gz, FREESURFER norm.mgz and an aparc+aseg of it,
COLIN ch2.nii.gz and aal.nii.gz. The box is put where the automatic label lies, as a user would put
it by eye. Dice is that of the whole hippocampus: these labels know no anterior and posterior part.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np

from rare_trt import Grid, Scan, Segmenter, Volume


def main(ixi: Path, freesurfer: Path, colin: Path) -> None:
    """One row per hippocampus, and a mean per source."""
    sources = {
        "IXI, 2 mm (DLMUSE)": [
            (
                path.name.split("_")[0],
                path,
                path.with_name(path.name.replace("_T1", "_T1_DLMUSE")),
                (47, 48),
            )
            for path in sorted(ixi.glob("*_T1.nii.gz"))
        ],
        "FreeSurfer, skull-stripped (aseg)": [
            (
                "FreeSurfer",
                freesurfer / "norm.mgz",
                freesurfer / "aparc.a2009s+aseg.mgz",
                (53, 17),
            )
        ],
        "Colin27 (AAL)": [("Colin27", colin / "ch2.nii.gz", colin / "aal.nii.gz", (38, 37))],
    }
    print("| head | side | route | Dice, whole hippocampus | volume, mm3 | automatic label, mm3 |")
    print("|---|---|---|---|---|---|")
    means = []
    with Segmenter.load() as segmenter:
        for source, heads in sources.items():
            scores = []
            for head, scan, labels, values in heads:
                for row, score in rows(segmenter, head, scan, labels, values):
                    print(row)
                    scores.append(score)
            means.append(f"{source}: mean Dice {np.mean(scores):.3f}, lowest {min(scores):.3f}")
    print("\n" + "\n".join(means))


def rows(
    segmenter: Segmenter, head: str, read_scan_file: Path, label_file: Path, values: tuple[int, int]
) -> Iterator[tuple[str, float]]:
    """The table's row and Dice of the right and of the left hippocampus."""
    scan, labels = (Scan(read(path)) for path in (read_scan_file, label_file))
    for side, value in zip(("right", "left"), values, strict=True):
        truth = labels.volume.voxels == value
        world = labels.volume.grid.world_mm(np.argwhere(truth))
        x, y, z = ((world.min(axis=0) + world.max(axis=0)) / 2).tolist()
        result = segmenter.segment(scan, at=(x, y, z))
        found = result.labels > 0
        score = 2.0 * float((found & truth).sum()) / float(found.sum() + truth.sum())
        volume = truth.sum() * np.prod(labels.volume.grid.spacing_mm)
        yield (
            f"| {head} | {side} | {result.route.route} | {score:.3f} | "
            f"{sum(result.volumes_mm3):.0f} | {volume:.0f} |",
            score,
        )


def read(path: Path) -> Volume:
    """A volume of any format that nibabel reads, as three axes."""
    image = nib.load(path)
    voxels = np.squeeze(np.asarray(image.dataobj))
    i, j, k = voxels.shape
    return Volume(voxels, Grid((i, j, k), image.affine))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
