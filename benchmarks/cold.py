"""From process start to labels on disk: `rare-trt infer` against the smallest PyTorch script.

    python benchmarks/cold.py MODEL SCAN [SCAN ...] [--turns 9] [--anyway]

MODEL is the checkpoint that the shipped package was built from. Every figure is a process of its
own, in turns: PyTorch, rare-trt with an empty cache (`first`: the first scan ever on a machine, so
compiled and checked before the first scan), rare-trt again (`later`). Medians, and the medians of
the ratios of neighbours.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import nibabel as nib
import numpy as np
from quiet import require_quiet

SMALLEST_TORCH = Path(__file__).with_name("smallest_torch.py")


def seconds(*command: str | Path) -> float:
    """From the start of a process to its end."""
    start = perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return perf_counter() - start


def turn(model: Path, scan: Path, folder: Path) -> tuple[float, float, float]:
    """Seconds of PyTorch, of a first rare-trt and of a later one."""
    torch_labels, labels = folder / "torch.nii.gz", folder / "labels.nii.gz"
    infer = (sys.executable, "-m", "rare_trt.cli", "infer", scan, "-o", labels, "--overwrite")
    script = seconds(sys.executable, SMALLEST_TORCH, model, scan, torch_labels)
    shutil.rmtree(os.environ["RARE_TRT_CACHE"], ignore_errors=True)
    return script, seconds(*infer), seconds(*infer)


def agreement(folder: Path) -> float:
    """Mean Dice between the labels of both: evidence that they do the same."""
    one, other = (
        np.asanyarray(nib.load(folder / name).dataobj) for name in ("torch.nii.gz", "labels.nii.gz")
    )
    both = [(one == label, other == label) for label in (1, 2)]
    return float(np.mean([2 * (a & b).sum() / max(1, a.sum() + b.sum()) for a, b in both]))


def main(options: argparse.Namespace) -> None:
    print(require_quiet(options.anyway))
    print(
        f"{'scan':<24} {'torch s':>8} {'first s':>8} {'later s':>8} {'first x':>8} "
        f"{'later x':>8}  Dice"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["RARE_TRT_CACHE"] = str(folder / "cache")
        for scan in options.scans:
            turn(options.model, scan, folder)
            turns = [turn(options.model, scan, folder) for _ in range(options.turns)]
            script, first, later = (median(column) for column in zip(*turns, strict=True))
            first_ratio = median(a / b for a, b, _ in turns)
            later_ratio = median(a / c for a, _, c in turns)
            print(
                f"{scan.name:<24} {script:8.2f} {first:8.2f} {later:8.2f} {first_ratio:8.2f} "
                f"{later_ratio:8.2f}  {agreement(folder):.3f}"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("scans", type=Path, nargs="+")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--anyway", action="store_true")
    main(parser.parse_args())
