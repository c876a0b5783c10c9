"""Whole heads of another source: a box around each hippocampus, against automatic labels.

    python benchmarks/external_heads.py FOLDER

FOLDER holds NAME_T1.nii.gz and NAME_T1_DLMUSE.nii.gz (47 and 48: right and left hippocampus). The
box is put where the automatic label lies, as a user would put it by eye.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from rare_trt import Segmenter, read_scan

SIDES = {"right": 47, "left": 48}


def main(folder: Path) -> None:
    """One row per hippocampus, and the mean."""
    scores = []
    print("| head | side | route | Dice, whole hippocampus | volume, mm3 | automatic label, mm3 |")
    print("|---|---|---|---|---|---|")
    with Segmenter.load() as segmenter:
        for path in sorted(folder.glob("*_T1.nii.gz")):
            scan = read_scan(path)
            labels = read_scan(path.with_name(path.name.replace("_T1", "_T1_DLMUSE"))).volume
            for side, value in SIDES.items():
                truth = labels.voxels == value
                world = labels.grid.world_mm(np.argwhere(truth))
                x, y, z = ((world.min(axis=0) + world.max(axis=0)) / 2).tolist()
                result = segmenter.segment(scan, at=(x, y, z))
                found = result.labels > 0
                scores.append(2.0 * (found & truth).sum() / (found.sum() + truth.sum()))
                volume = truth.sum() * np.prod(labels.grid.spacing_mm)
                print(
                    f"| {path.name[:6]} | {side} | {result.route.route} | {scores[-1]:.3f} | "
                    f"{sum(result.volumes_mm3):.0f} | {volume:.0f} |"
                )
    print(f"\nmean Dice {np.mean(scores):.3f}, lowest {min(scores):.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
