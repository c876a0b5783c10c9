"""How fast each route runs in each arithmetic that its package offers this CPU.

    python benchmarks/precisions.py [PACKAGE]        (taskset -c 0 python ...: on one core)

Working grids of 64³ voxels at the finest route and half of that at each coarser one; all ways of a
route in turn, so that whatever else the machine does slows all of them. Times are medians, ratios
those of medians.
"""

from __future__ import annotations

import sys
from statistics import median
from time import perf_counter

import numpy as np
from tqdm import tqdm

from rare_trt.backends import Arithmetic, graph_precision, needs_bf16
from rare_trt.export.graph_files import load_graph
from rare_trt.package.reading import Package, open_package
from rare_trt.sessions.openvino import OpenVinoRun, openvino_facts
from rare_trt.sessions.session import INPUT_NAMES

REPEATS = 25
FINEST = 64


def main(name: str) -> None:
    """Prints one row per route and arithmetic, float32 first."""
    package = open_package(name)
    has_bf16 = "BF16" in openvino_facts().capabilities
    print("| route | voxels | arithmetic | ms | times float32 |\n|---|---|---|---|---|")
    for entry in package.manifest.calibration:
        n = FINEST >> entry.route
        offered = sorted(v.arithmetic for v in entry.variants)
        ways: list[Arithmetic] = ["fp32", *(w for w in offered if has_bf16 or not needs_bf16(w))]
        runs = {way: run_of(package, entry.route, way) for way in ways}
        shape = (1, len(package.manifest.model.channels), n, n, n)
        image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        same = np.eye(n, dtype=np.float32)
        inputs = dict(zip(INPUT_NAMES, (image, *[same] * 6), strict=True))
        times: dict[Arithmetic, list[float]] = {way: [] for way in ways}
        for _ in tqdm(range(REPEATS), f"route {entry.route}", leave=False):
            for way, run in runs.items():
                start = perf_counter()
                run.run(inputs)
                times[way].append(perf_counter() - start)
        plain = median(times["fp32"])
        for way in ways:
            took = median(times[way])
            print(f"| {entry.route} | {n}³ | {way} | {took * 1e3:.1f} | {plain / took:.2f} |")


def run_of(package: Package, route: int, way: Arithmetic) -> OpenVinoRun:
    """The graph of `route` for `way`, loaded."""
    graph = package.graph(route, graph_precision(way))
    model = load_graph(package.read(graph.file), package.read(graph.weights))
    return OpenVinoRun(model.SerializeToString(), bf16=needs_bf16(way))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "hippocampus")
