"""What scale and offset of a scan's intensities change in its labels, which should be nothing.

    python benchmarks/far_from_zero.py DATA [PACKAGE]    (a folder with images/ and labels/)

Kept-back cases only, averaged to each route's spacing, in every precision that the route offers
this CPU: labels on the 1 mm grid that differ from those of the unchanged scan, in voxels of 10,000,
over all scans and on the worst of them. Factors and offsets are applied in float32.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from rare_trt import Scan, Segmenter, Volume
from rare_trt.backends import needs_bf16
from rare_trt.evaluation.cases import find_cases, load_cases
from rare_trt.evaluation.simulation import acquired, whole_voxels
from rare_trt.package.reading import open_package
from rare_trt.sessions.openvino import openvino_facts

# Each column's factors and offsets.
COLUMNS = {
    "factor 1e-3": ((1e-3, 0.0),),
    "factor 1e5": ((1e5, 0.0),),
    "offsets": ((1.0, 1e5), (1.0, -1e5)),
}


def main(data: Path, name: str) -> None:
    """Prints one row per route and precision."""
    package = open_package(name)
    held = package.manifest.model.training.validation_cases
    cases = load_cases([one for one in find_cases(data) if one.name in held], 1, 3)
    has_bf16 = "BF16" in openvino_facts().capabilities
    print("| scan | arithmetic | " + " | ".join(COLUMNS) + " |")
    print("|---" * (2 + len(COLUMNS)) + "|")
    for entry in package.manifest.calibration:
        spacing = package.manifest.routes[entry.route].spacing_mm
        scans = []
        for case in cases:
            grid = whole_voxels(case.grid, (spacing, spacing, spacing))
            voxels = np.moveaxis(acquired(case.voxels, case.grid, grid), 0, 3)
            scans.append(Scan(Volume(voxels, grid)))
        for way in sorted(variant.arithmetic for variant in entry.variants):
            if needs_bf16(way) and not has_bf16:
                continue
            with Segmenter(package, "openvino", precision=way) as segmenter:
                cells = moved(segmenter, scans, f"{spacing:g} mm, {way}")
            shown = (f"{10_000 * every:.2f} / {10_000 * worst:.1f}" for every, worst in cells)
            print(f"| {spacing:g} mm | {way} | " + " | ".join(shown) + " |", flush=True)


def moved(segmenter: Segmenter, scans: list[Scan], what: str) -> list[tuple[float, float]]:
    """Per column the share of labels that differ, over all scans and on the worst."""
    found: list[list[tuple[int, int]]] = [[] for _ in COLUMNS]
    for scan in tqdm(scans, what, leave=False):
        usual = labels_of(segmenter, scan)
        for column, changes in zip(found, COLUMNS.values(), strict=True):
            for factor, offset in changes:
                voxels = scan.volume.voxels * np.float32(factor) + np.float32(offset)
                changed = replace(scan, volume=Volume(voxels, scan.volume.grid))
                differ = np.count_nonzero(labels_of(segmenter, changed) != usual)
                column.append((differ, usual.size))
    return [
        (sum(n for n, _ in column) / sum(size for _, size in column), max(n / m for n, m in column))
        for column in found
    ]


def labels_of(segmenter: Segmenter, scan: Scan) -> NDArray[np.uint8]:
    """Labels on the 1 mm grid, of the route that the scan's spacing chooses."""
    return segmenter.segment(scan, spacing_out_mm=1.0).labels


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "hippocampus")
