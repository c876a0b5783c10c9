"""Networks side by side: each of ours against each of the baselines, on the same scans.

    python benchmarks/baselines.py DATA FOLDER OURS[,OURS] BASELINE...

All are checkpoints of `rare-trt train`; recipes of the baselines lie in benchmarks/recipes.
Each becomes a package of float32 and fp16 graphs without INT8, and the packages answer every
acquisition of every held-out case in turn. FOLDER gets the measurements as CSV, one file per
checkpoint, and a picture; a table for each of ours has the mean of the paired differences in Dice
with its 95 % confidence interval, and the ratio of the median times.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from rare_trt import Segmenter
from rare_trt.building.manifest_from_checkpoint import (
    field_of_view_from_facts,
    manifest_from_checkpoint,
)
from rare_trt.building.package_from_checkpoint import (
    contents_from_graphs,
    graphs_from_checkpoint,
    load_check_cases,
)
from rare_trt.calibration.golden import make_golden_vectors
from rare_trt.evaluation.measurements import Measurement, RejectedScan, acquisitions, measure
from rare_trt.evaluation.summary import Summary, dice_png, interval, measurements_csv, summaries
from rare_trt.package.reading import Package
from rare_trt.package.writing import write_package
from rare_trt.storage.files import write_files
from rare_trt.training.checkpoint import load_checkpoint


def main(data: Path, out: Path, ours: list[Path], baselines: list[Path]) -> None:
    """Measures all, prints one table for each of `ours` with one row per acquisition."""
    checkpoints = ours + baselines
    rows: dict[str, list[Measurement]] = {folder.name: [] for folder in checkpoints}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        packages = [package_of(checkpoint, data, Path(folder)) for checkpoint in checkpoints]
        segmenters = [stack.enter_context(Segmenter(package)) for package in packages]
        cases = load_check_cases(data, load_checkpoint(checkpoints[0]))
        made = acquisitions(packages[0].manifest.model.base_spacing_mm)
        # Scan by scan in turn, so that a busy moment falls on all.
        turns = zip(*(measure(one, cases, made) for one in segmenters), strict=True)
        for turn in tqdm(turns, "measuring", len(cases) * len(made), unit="scan"):
            for name, measured in zip(rows, turn, strict=True):
                if isinstance(measured, RejectedScan):
                    raise SystemExit(f"{name}, {measured.case}, {measured.acquisition}: refused")
                rows[name] += measured
    found = {name: summaries(of) for name, of in rows.items()}
    files = {out / f"{name}.csv": measurements_csv(of) for name, of in rows.items()}
    write_files({**files, out / "dice.png": dice_png(found)}, overwrite=True)
    for own in ours:
        print_table(own.name, [other.name for other in baselines], rows, found)


def print_table(
    own: str,
    others: list[str],
    rows: dict[str, list[Measurement]],
    found: dict[str, list[Summary]],
) -> None:
    """One of ours beside the baselines."""
    print(f"\n| scan | {own} | " + " | ".join(f"{o} | gain | time" for o in others) + " |")
    print("|---" * (2 + 3 * len(others)) + "|")
    for place, ours in enumerate(found[own]):
        cells = [f"**{ours.dice:.3f}**"]
        for other in others:
            gain = per_case(rows[own], ours.acquisition) - per_case(rows[other], ours.acquisition)
            low, high = interval(gain)
            theirs = found[other][place]
            cells += [
                f"{theirs.dice:.3f}",
                f"{gain.mean():+.3f} ({low:+.3f} to {high:+.3f})",
                f"{ours.milliseconds / theirs.milliseconds:.2f}",
            ]
        print(f"| {ours.acquisition} | {' | '.join(cells)} |")


def package_of(folder: Path, data: Path, into: Path) -> Package:
    """A package of the checkpoint in `folder` as it comes out of training, without INT8."""
    checkpoint = load_checkpoint(folder)
    view = field_of_view_from_facts(checkpoint.facts, checkpoint.recipe.base_spacing_mm)
    golden = make_golden_vectors(checkpoint, load_check_cases(data, checkpoint), view)
    manifest = manifest_from_checkpoint(folder.name, checkpoint, view, golden)
    contents = {**contents_from_graphs(graphs_from_checkpoint(checkpoint)), **golden.files}
    return write_package(into / f"{folder.name}.rare", manifest, contents, overwrite=False)


def per_case(rows: list[Measurement], acquisition: str) -> NDArray[np.float64]:
    """Dice of each case, mean over its labels."""
    chosen = [row for row in rows if row.acquisition == acquisition]
    names = list(dict.fromkeys(row.case for row in chosen))
    return np.array([np.mean([row.dice for row in chosen if row.case == n]) for n in names])


if __name__ == "__main__":
    data, out, ours, *baselines = sys.argv[1:]
    main(Path(data), Path(out), [Path(o) for o in ours.split(",")], [Path(b) for b in baselines])
