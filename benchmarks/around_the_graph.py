"""What rare-trt adds around the graph, against a bare nibabel load and save of the same file.

    python benchmarks/around_the_graph.py SCAN [SCAN ...]

Both are run alternately in one process; the figures are medians, the ratio is the median of the
ratios. Neither side replaces a file: what that costs is the file system's affair.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import nibabel as nib
import numpy as np

from rare_trt import Segmenter

REPEATS = 100
WARM_UP = 5


def bare(scan: Path, out: Path) -> float:
    """Milliseconds to load and save `scan` with nibabel."""
    start = perf_counter()
    image = nib.load(scan)
    voxels = np.asanyarray(image.dataobj)
    nib.save(nib.Nifti1Image(voxels, image.affine, image.header), out)
    return (perf_counter() - start) * 1e3


def around(segmenter: Segmenter, scan: Path, out: Path) -> tuple[float, float, int]:
    """Milliseconds from file to file without the graph, of the graph, and the route taken."""
    start = perf_counter()
    result = segmenter.segment(scan)
    result.save(out)
    total = (perf_counter() - start) * 1e3
    graph = result.timings_ms["graph"]
    return total - graph, graph, result.route.route


def main(scans: list[Path]) -> None:
    """One line per scan."""
    print(f"{'scan':<28} route  load+save ms  around the graph ms  ratio  graph ms")
    with tempfile.TemporaryDirectory() as folder, Segmenter.load() as segmenter:
        for scan in scans:
            rows = []
            for repeat in range(WARM_UP + REPEATS):
                copy = bare(scan, Path(folder) / f"{scan.name}.{repeat}.bare.nii.gz")
                rows.append((copy, *around(segmenter, scan, Path(folder) / f"{repeat}.nii.gz")))
                for file in Path(folder).iterdir():
                    file.unlink()
            copies, ours, graphs, routes = zip(*rows[WARM_UP:], strict=True)
            ratio = median(a / b for a, b in zip(ours, copies, strict=True))
            print(
                f"{scan.name:<28} {routes[0]:<5}  {median(copies):12.2f}  {median(ours):19.2f}  "
                f"{ratio:5.2f}  {median(graphs):8.2f}"
            )


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
