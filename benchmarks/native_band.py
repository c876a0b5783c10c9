"""Scans a little off a route's spacing: run on their own voxels, or resampled to it?

    python benchmarks/native_band.py DATA [PACKAGE]    (a folder with images/ and labels/)

Kept-back cases only. Each route is given isotropic scans of some multiples of its spacing, once on
their own voxels and once resampled; the answer is compared with the full label on the 1 mm grid.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from rare_trt import Scan, Segmenter, Volume
from rare_trt.evaluation.cases import find_cases, load_cases
from rare_trt.evaluation.dice import dice
from rare_trt.evaluation.measurements import labels_on
from rare_trt.evaluation.simulation import acquired, whole_voxels
from rare_trt.package.reading import Package, open_package

MULTIPLES = (0.85, 0.9, *(round(0.95 + 0.01 * step, 2) for step in range(11)), 1.1, 1.15, 1.2)


def main(data: Path, name: str) -> None:
    """Prints one row per route and multiple."""
    package = open_package(name)
    held = package.manifest.model.training.validation_cases
    cases = load_cases([one for one in find_cases(data) if one.name in held], 1, 3)
    print("| route | spacing | own voxels | resampled | gain |\n|---|---|---|---|---|")
    native, resampling = with_band(package, (0.5, 2.0)), with_band(package, (1.0, 1.000001))
    with Segmenter(native) as own, Segmenter(resampling) as resampled:
        for entry in package.manifest.routes:
            for multiple in MULTIPLES:
                spacing = (entry.spacing_mm * multiple,) * 3
                scores = []
                for case in tqdm(cases, f"{spacing[0]:g} mm", leave=False):
                    low = whole_voxels(case.grid, spacing)
                    voxels = np.moveaxis(acquired(case.voxels, case.grid, low), 0, 3)
                    row = []
                    for segmenter in (own, resampled):
                        result = segmenter.segment(
                            Scan(Volume(voxels, low)), route=entry.index, spacing_out_mm=1.0
                        )
                        found = labels_on(result.labels, result.grid, case.grid, 3)
                        row.append(np.mean(dice(found, case.labels, 3)))
                    scores.append(row)
                first, second = np.mean(scores, axis=0)
                print(
                    f"| {entry.index} | {spacing[0]:.3g} mm | {first:.3f} | {second:.3f} | "
                    f"{first - second:+.4f} |"
                )


def with_band(package: Package, band: tuple[float, float]) -> Package:
    """`package` with another native band on every route."""
    routes = tuple(replace(entry, native_band=band) for entry in package.manifest.routes)
    return replace(package, manifest=replace(package.manifest, routes=routes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "hippocampus")
