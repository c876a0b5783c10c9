"""Dice and volume error of the shipped package on the cases kept back from its training.

    python benchmarks/accuracy.py DATA    (a folder with images/ and labels/)

Low-resolution scans are averages of k³ voxels. Each is answered by the runtime, from a scan to
labels, and compared with the full manual label on the 1 mm grid, and on the scan's own grid with
the largest share of that label.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from route_rule import acquired, dice, on_truth
from tqdm import tqdm

from rare_trt import Result, Segmenter, Volume, read_scan
from rare_trt.planning import largest_share


def main(data: Path) -> None:
    """Prints one row per resolution: means, the lowest case, and the mean signed volume error."""
    print(
        "| scan | route | Dice at 1 mm | anterior | posterior | lowest case | own grid | volume |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with Segmenter.load() as segmenter:
        names = segmenter.package.manifest.model.training.validation_cases
        for factor in (1, 2, 4, 8):
            rows = []
            for name in tqdm(names, f"{factor} mm", leave=False):
                scan = read_scan(data / "images" / f"{name}.nii.gz")
                truth = read_scan(data / "labels" / f"{name}.nii.gz").volume
                low = acquired(scan, (factor, factor, factor))
                own = segmenter.segment(low)
                fine = segmenter.segment(low, spacing_out_mm=1.0)
                found = on_truth(fine.labels, fine.grid, truth)
                parts = [dice(found == v, truth.voxels == v) for v in (1, 2)]
                rows.append(
                    (*parts, own_dice(own.labels, truth, factor), volume(own, truth, factor))
                )
            anterior, posterior, on_own, error = np.mean(rows, axis=0)
            lowest = np.mean([row[:2] for row in rows], axis=1).min()
            print(
                f"| {factor} mm | {own.route.route} | **{(anterior + posterior) / 2:.3f}** | "
                f"{anterior:.3f} | {posterior:.3f} | {lowest:.3f} | {on_own:.3f} | {error:+.1%} |"
            )


def own_dice(labels: np.ndarray, truth: Volume, factor: int) -> float:
    """Dice on the scan's own grid."""
    kept = tuple(slice(0, n * factor) for n in labels.shape)
    shares = largest_share(truth.voxels[kept].astype(np.uint8), (factor,) * 3, 3)
    return dice(labels, shares)


def volume(result: Result, truth: Volume, factor: int) -> float:
    """Signed error of the whole structure's volume, as a share of the manual label's in the scan.

    The scan ends where no whole voxel is left, so it can hold less than the label does.
    """
    seen = truth.voxels[tuple(slice(0, n * factor) for n in result.labels.shape)]
    return sum(result.volumes_mm3) / float((seen > 0).sum()) - 1.0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
