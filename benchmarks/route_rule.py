"""Dice of every route on every acquisition, and what each rule for choosing a route would lose.

    python benchmarks/route_rule.py DATA    (a folder with images/ and labels/)

Kept-back cases only. Acquisitions are averages of whole 1 mm voxels, or for other spacings linear
resamples; the answer is compared with the full label on the 1 mm grid. The regret of a rule is the
Dice it loses to the best route of each acquisition.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from math import prod, sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from rare_trt import Grid, Scan, Segmenter, Volume, read_scan
from rare_trt.planning import axis_matrices

Spacing = tuple[float, float, float]

ACQUISITIONS: list[Spacing] = [
    *((s, s, s) for s in (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)),
    *((1.0, 1.0, 2.0), (1.0, 1.0, 4.0), (1.0, 4.0, 1.0), (4.0, 1.0, 1.0)),
    *((1.0, 1.0, 6.0), (6.0, 1.0, 1.0), (2.0, 2.0, 4.0), (2.0, 2.0, 6.0)),
]

SIZES: dict[str, Callable[[Spacing], float]] = {
    "geometric mean": lambda s: prod(s) ** (1 / 3),
    "root mean square": lambda s: sqrt(sum(a * a for a in s) / 3),
    "finest axis": min,
    "coarsest axis": max,
}

# A coarser route is taken from this share of its spacing on; sqrt(1/2) is the nearest in ratio.
SHARES = (sqrt(0.5), 0.8, 0.9)


def acquired(scan: Scan, spacing: Spacing) -> Scan:
    """`scan` (1 mm) as if it had been made with voxels of `spacing`."""
    volume = scan.volume
    shape = [max(1, int(n // s)) for n, s in zip(volume.grid.shape, spacing, strict=True)]
    kept = tuple(slice(0, int(n * s)) for n, s in zip(shape, spacing, strict=True))
    cut = Volume(volume.voxels[kept], Grid(volume.voxels[kept].shape[:3], volume.grid.affine))
    grid = cut.grid.regridded(spacing, (shape[0], shape[1], shape[2]))
    i, j, k = (_weights(cut.grid, grid, axis) for axis in range(3))
    voxels = np.einsum("ai,bj,ck,ijk->abc", i, j, k, cut.voxels, optimize=True)
    return replace(scan, volume=Volume(voxels.astype(np.float32), grid))


def _weights(source: Grid, target: Grid, axis: int) -> NDArray[np.float64]:
    factor = target.spacing_mm[axis] / source.spacing_mm[axis]
    if abs(factor - round(factor)) > 1e-6:
        return axis_matrices(source, target)[axis]
    return np.kron(np.eye(target.shape[axis]), np.full(round(factor), 1 / round(factor)))


def dice(found: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    """Mean over the labels of the truth."""
    scores = []
    for label in np.unique(truth[truth > 0]):
        both = 2.0 * ((found == label) & (truth == label)).sum()
        scores.append(both / ((found == label).sum() + (truth == label).sum()))
    return float(np.mean(scores))


def on_truth(labels: NDArray[np.uint8], grid: Grid, truth: Volume) -> NDArray[np.uint8]:
    """`labels` at the voxels of the truth: nearest, 0 outside."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in truth.grid.shape), indexing="ij"), -1)
    place = grid.index(truth.grid.world_mm(index)).round().astype(int)
    inside = ((place >= 0) & (place < grid.shape)).all(axis=-1)
    i, j, k = np.where(inside[..., None], place, 0).transpose(3, 0, 1, 2)
    return np.where(inside, labels[i, j, k], 0).astype(np.uint8)


def main(data: Path) -> None:
    """Prints both tables."""
    with Segmenter.load() as segmenter:
        manifest = segmenter.package.manifest
        routes = [entry.index for entry in manifest.routes]
        spacings = [entry.spacing_mm for entry in manifest.routes]
        table = np.zeros((len(ACQUISITIONS), len(routes)))
        names = manifest.model.training.validation_cases
        for name in tqdm(names, "cases"):
            scan = read_scan(data / "images" / f"{name}.nii.gz")
            truth = read_scan(data / "labels" / f"{name}.nii.gz").volume
            for row, spacing in enumerate(ACQUISITIONS):
                low = acquired(scan, spacing)
                for route in routes:
                    result = segmenter.segment(low, route=route, spacing_out_mm=1.0)
                    found = on_truth(result.labels, result.grid, truth)
                    table[row, route] += dice(found, truth.voxels) / len(names)
    print("| acquisition (mm) | " + " | ".join(f"route {r}" for r in routes) + " |")
    print("|---|" + "---|" * len(routes))
    for spacing, scores in zip(ACQUISITIONS, table, strict=True):
        cells = [f"**{s:.3f}**" if s == scores.max() else f"{s:.3f}" for s in scores]
        print(f"| {' × '.join(f'{s:g}' for s in spacing)} | " + " | ".join(cells) + " |")
    print("\n| size of a voxel | coarser from | mean regret | largest regret |\n|---|---|---|---|")
    for (name, size), share in product(SIZES.items(), SHARES):
        chosen = [sum(share * r <= size(s) for r in spacings[1:]) for s in ACQUISITIONS]
        lost = table.max(axis=1) - table[np.arange(len(table)), chosen]
        print(f"| {name} | {share:.2f} | {lost.mean():.4f} | {lost.max():.4f} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
