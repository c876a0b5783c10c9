"""How the cost of a voxel grows with the volume, in every precision that this CPU computes.

    python benchmarks/scaling.py SCAN [--sizes 32,48,64,96,128,192,256] [--precisions fp16,int8]
                                 [--limit 8GiB] [--picture FILE.png] [--anyway]

SCAN is a real scan, mirrored until it fills cubes of these sizes at the spacing of route 0. Timed
is what lies between normalised voxels and labels: plan, tiles, graph. A shape's first run compiles
kernels for it and is listed apart. Sizes take turns; figures are the least of the repeats, since
a disturbance only adds to a run.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from quiet import require_quiet
from wide import mirrored

from rare_trt import Grid, read_scan
from rare_trt.backends import ARITHMETICS, GRAPH_PRECISION, NEEDS_BF16, Arithmetic
from rare_trt.package.reading import Package, open_package, route_from_entry
from rare_trt.plan.memory import MemoryNeeds, bytes_of, tile_shape, usual_limit
from rare_trt.plan.resampling import plan_resampling
from rare_trt.scan.intensity import normalise
from rare_trt.sessions.openvino import OpenVinoSession, openvino_facts
from rare_trt.sessions.run import PreparedScan, run_tiles
from rare_trt.storage.cache import Cache

REPEATS = 3


def main(options: argparse.Namespace) -> None:
    """One line per precision and size, and one with each precision's growth."""
    print(require_quiet(options.anyway))
    sizes = [int(size) for size in options.sizes.split(",")]
    limit = bytes_of(options.limit) if options.limit else usual_limit()
    package = open_package("hippocampus")
    voxels = read_scan(options.scan).volume.voxels
    images = {
        size: normalise(mirrored(voxels, (size, size, size)), package.manifest.model.intensity)
        for size in sizes
    }
    costs = {}
    print(f"{'precision':<10} {'size':>5} {'tile':>14} {'ns/voxel':>9} {'first':>9}")
    for computed in requested(options.precisions):
        costs[computed] = cost_of(package, computed, images, limit)
        growth = costs[computed][-1] / costs[computed][0]
        print(f"{computed:<10} {sizes[0]} to {sizes[-1]}: x {growth:.2f}")
    if options.picture:
        draw(sizes, costs, options.picture)


def requested(precisions: str | None) -> list[Arithmetic]:
    """Those of `precisions`, or of all, that this CPU can compute."""
    wanted = precisions.split(",") if precisions else ARITHMETICS
    can = openvino_facts().capabilities
    return [
        computed
        for computed in ARITHMETICS
        if computed in wanted and (computed not in NEEDS_BF16 or "BF16" in can)
    ]


def cost_of(
    package: Package, computed: Arithmetic, images: dict[int, NDArray[np.float32]], limit: int
) -> list[float]:
    """Nanoseconds per voxel of each image [1, n, n, n] on route 0."""
    entry = package.graph(0, GRAPH_PRECISION[computed])
    session = OpenVinoSession(package, entry, Cache(), bf16=computed in NEEDS_BF16)
    (route,) = (route_from_entry(entry) for entry in package.manifest.routes if entry.index == 0)
    assert session.bytes_per_voxel is not None
    costs: list[float] = []
    runs: dict[int, list[float]] = {size: [] for size in images}
    shapes = {}
    for _ in range(1 + REPEATS):
        for size, image in images.items():
            start = perf_counter()
            grid = Grid((size, size, size), np.eye(4))
            steps = plan_resampling(grid, route, grid)
            shape = (size, size, size)
            needs = MemoryNeeds(shape, 2, (1, *shape), 3, session.bytes_per_voxel)
            shapes[size] = tile_shape(steps, route, needs, limit)
            run_tiles(session, PreparedScan(image, steps, shapes[size]))
            runs[size].append((perf_counter() - start) / size**3 * 1e9)
    for size, (first, *later) in runs.items():
        costs.append(min(later))
        tile = " x ".join(map(str, shapes[size]))
        print(f"{computed:<10} {size:>5} {tile:>14} {min(later):9.1f} {first:9.1f}")
    return costs


def draw(sizes: list[int], costs: dict[Arithmetic, list[float]], path: Path) -> None:
    """Cost per voxel over size, relative to the smallest, one line per precision."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), constrained_layout=True)
    for computed, values in costs.items():
        axes.plot(sizes, np.array(values) / values[0], marker="o", label=computed)
    axes.axhline(1.3, color="grey", linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{size}³" for size in sizes])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("voxels")
    axes.set_ylabel("cost per voxel, relative to the smallest")
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--sizes", default="32,48,64,96,128,192,256")
    parser.add_argument("--precisions")
    parser.add_argument("--limit")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--anyway", action="store_true")
    main(parser.parse_args())
