"""Dice of every route on every acquisition, and what each rule for choosing a route would lose.

    python benchmarks/route_rule.py DATA [PACKAGE]    (a folder with images/ and labels/)

Kept-back cases only; the acquisitions are those of `rare-trt evaluate` and more. The answer is
compared with the full label on the 1 mm grid. The regret of a rule is the Dice it loses to the best
route of each acquisition.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import product
from math import prod, sqrt
from pathlib import Path

import numpy as np
from tqdm import tqdm

from rare_trt import Scan, Segmenter, Volume
from rare_trt.evaluation.cases import find_cases, load_cases
from rare_trt.evaluation.dice import dice
from rare_trt.evaluation.measurements import VOXELS, labels_on, spacing_name
from rare_trt.evaluation.simulation import acquired, whole_voxels
from rare_trt.scan.geometry import Triple

ACQUISITIONS: list[Triple] = sorted(
    {
        *VOXELS,
        *((s, s, s) for s in (1.2, 1.3, 1.4, 1.6, 2.5, 3.5, 5.0, 7.0, 10.0)),
        *((1.0, 1.0, 3.0), (1.0, 1.0, 5.0), (0.9, 0.9, 5.5), (1.5, 1.5, 5.0), (3.0, 3.0, 6.0)),
        *((2.0, 2.0, 1.0), (4.0, 4.0, 1.0), (4.0, 1.0, 4.0), (8.0, 8.0, 4.0)),
    },
    key=lambda s: (len(set(s)), sum(a * a for a in s)),
)

SIZES: dict[str, Callable[[Triple], float]] = {
    "geometric mean": lambda s: prod(s) ** (1 / 3),
    "root mean square": lambda s: sqrt(sum(a * a for a in s) / 3),
    "finest axis": min,
    "coarsest axis": max,
}

# A coarser route is taken from this share of its spacing on; sqrt(1/2) is the nearest in ratio.
SHARES = (sqrt(0.5), 0.8, 0.9, 1.0)


def main(data: Path, package: str) -> None:
    """Prints both tables."""
    with Segmenter.load(package) as segmenter:
        manifest = segmenter.package.manifest
        routes = [entry.index for entry in manifest.routes]
        spacings = [entry.spacing_mm for entry in manifest.routes]
        names = manifest.model.training.validation_cases
        cases = load_cases([one for one in find_cases(data) if one.name in names], 1, 3)
        table = np.zeros((len(ACQUISITIONS), len(routes)))
        for case in tqdm(cases, "cases"):
            for row, spacing in enumerate(ACQUISITIONS):
                low = whole_voxels(case.grid, spacing)
                voxels = np.moveaxis(acquired(case.voxels, case.grid, low), 0, 3)
                for route in routes:
                    scan = Scan(Volume(voxels, low))
                    result = segmenter.segment(scan, route=route, spacing_out_mm=1.0)
                    found = labels_on(result.labels, result.grid, case.grid, 3)
                    table[row, route] += np.mean(dice(found, case.labels, 3)) / len(cases)
    print("| acquisition | " + " | ".join(f"route {r}" for r in routes) + " | cheapest in .005 |")
    print("|---" * (2 + len(routes)) + "|")
    for spacing, scores in zip(ACQUISITIONS, table, strict=True):
        cells = [f"**{s:.3f}**" if s == scores.max() else f"{s:.3f}" for s in scores]
        cheapest = max(r for r in routes if scores[r] >= scores.max() - 0.005)
        print(f"| {spacing_name(spacing)} | {' | '.join(cells)} | {cheapest} |")
    print("\n| size of a voxel | coarser from | mean regret | largest regret | mean route |")
    print("|---|---|---|---|---|")
    for (name, size), share in product(SIZES.items(), SHARES):
        chosen = [sum(share * r <= size(s) for r in spacings[1:]) for s in ACQUISITIONS]
        lost = table.max(axis=1) - table[np.arange(len(table)), chosen]
        print(
            f"| {name} | {share:.2f} | {lost.mean():.4f} | {lost.max():.4f} | "
            f"{np.mean(chosen):.2f} |"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "hippocampus")
