"""What rare-trt adds around the graph, against a bare nibabel load and save of the same file.

    python benchmarks/around_the_graph.py SCAN [--channels T1 T1C T2 FLAIR] [--anyway]

SCAN is a hippocampus crop at 1 mm; it is averaged to the spacing of every route. CHANNELS are four
scans on one grid, which are stacked into one and segmented by a small network of random weights.
Both sides are run alternately in one process; the figures are medians, the ratio is the median of
the ratios. Neither side replaces a file: what that costs is the file system's affair. nibabel does
not wait until the file is on the disk; `synced` is the ratio to a load and save that does.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import nibabel as nib
import numpy as np
from quiet import require_quiet
from wide import four_channel_package, stacked

from rare_trt import Segmenter, read_scan
from rare_trt.scan.gz import compress
from rare_trt.storage.files import sync_folder

REPEATS = 100
LARGE_REPEATS = 7
WARM_UP = 3

# Not around the graph: running it, and loading it for the first scan.
GRAPH = ("graph", "load")


def bare(scan: Path, out: Path) -> tuple[float, float]:
    """Milliseconds to load and save `scan` with nibabel, and until the file is on the disk."""
    start = perf_counter()
    image = nib.load(scan)
    voxels = np.asanyarray(image.dataobj)
    nib.save(nib.Nifti1Image(voxels, image.affine, image.header), out)
    saved = perf_counter()
    with out.open("rb") as file:
        os.fsync(file.fileno())
    sync_folder(out.parent)
    return (saved - start) * 1e3, (perf_counter() - start) * 1e3


def around(segmenter: Segmenter, scan: Path, out: Path) -> tuple[dict[str, float], int]:
    """Milliseconds of each stage from file to file, the whole as `total`, and the route taken."""
    start = perf_counter()
    result = segmenter.segment(scan)
    result.save(out)
    total = (perf_counter() - start) * 1e3
    return {**result.timings_ms, "total": total}, result.route.route


def measure(segmenter: Segmenter, scan: Path, repeats: int) -> None:
    """One line on `scan`, and one on where the time goes."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for repeat in range(WARM_UP + repeats):
            copies = bare(scan, folder / f"{repeat}.bare.nii.gz")
            rows.append((*copies, *around(segmenter, scan, folder / f"{repeat}.nii.gz")))
            for file in folder.iterdir():
                file.unlink()
    copies, synced, timings, routes = zip(*rows[WARM_UP:], strict=True)
    ours = [times["total"] - sum(times[stage] for stage in GRAPH) for times in timings]
    ratios = [median(a / b for a, b in zip(ours, bares, strict=True)) for bares in (copies, synced)]
    graph = median(times["graph"] for times in timings)
    print(
        f"{scan.name:<20} {routes[0]:<5}  {median(copies):12.2f}  {median(ours):19.2f}  "
        f"{ratios[0]:5.2f}  {ratios[1]:6.2f}  {graph:8.2f}"
    )
    stages = [stage for stage in timings[0] if stage not in (*GRAPH, "total")]
    parts = (f"{stage} {median(times[stage] for times in timings):.2f}" for stage in stages)
    print(f"    {', '.join(parts)}")


def average(scan: Path, factor: int, path: Path) -> None:
    """Writes `scan` with voxels `factor` times as large along each axis."""
    volume = read_scan(scan).volume
    i, j, k = (n // factor for n in volume.grid.shape)
    blocks = volume.voxels[: i * factor, : j * factor, : k * factor]
    blocks = blocks.reshape(i, factor, j, factor, k, factor)
    affine = volume.grid.affine.copy()
    affine[:3, :3] *= factor
    voxels = blocks.mean(axis=(1, 3, 5)).astype(volume.voxels.dtype)
    image = nib.Nifti1Image(voxels, affine)
    path.write_bytes(compress(image.to_bytes()))


def main(options: argparse.Namespace) -> None:
    print(require_quiet(options.anyway))
    print(f"{'scan':<20} route  load+save ms  around the graph ms  ratio  synced  graph ms")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Segmenter.load() as segmenter:
            for factor in (1, 2, 4, 8):
                scan = folder / f"{factor}mm.nii.gz"
                average(options.scan, factor, scan)
                measure(segmenter, scan, REPEATS)
        if options.channels:
            scan = folder / "four.nii.gz"
            stacked(options.channels, scan)
            package = four_channel_package(folder / "four.rare", read_scan(scan, 4))
            with Segmenter(package) as segmenter:
                measure(segmenter, scan, LARGE_REPEATS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--channels", type=Path, nargs=4)
    parser.add_argument("--anyway", action="store_true")
    main(parser.parse_args())
