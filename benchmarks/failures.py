"""The worst answers of an evaluation as a picture: each over its scan, above the manual labels.

    python benchmarks/failures.py DATA FOLDER PICTURE.png [PACKAGE]

DATA holds images/ and labels/, FOLDER what `rare-trt evaluate` wrote. For three resolutions the
case of lowest Dice is shown.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from panels import save_panels

from rare_trt import Segmenter
from rare_trt.evaluation.cases import Case, find_cases, load_cases
from rare_trt.evaluation.measurements import acquisitions
from rare_trt.overlay import picture_png
from rare_trt.scan.geometry import Volume
from rare_trt.scan.nifti import Scan

SHOWN = ("1 mm", "4 mm", "1 x 1 x 6 mm")


def main(data: Path, folder: Path, picture: Path, package: str) -> None:
    """Writes the picture and prints which cases it shows."""
    with (folder / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    panels = []
    with Segmenter.load(package) as segmenter:
        model = segmenter.package.manifest.model
        made = {one.name: one for one in acquisitions(model.base_spacing_mm)}
        for name in SHOWN:
            dice: dict[str, list[float]] = {}
            for row in rows:
                if row["acquisition"] == name:
                    dice.setdefault(row["case"], []).append(float(row["dice"]))
            scores = {case: float(np.mean(of_labels)) for case, of_labels in dice.items()}
            lowest = min(scores, key=lambda one: scores[one])
            case = case_named(data, lowest)
            volume, _ = made[name].make(case, np.random.default_rng(0))
            result = segmenter.segment(Scan(volume), spacing_out_mm=model.base_spacing_mm)
            title = f"{case.name}, {name}: Dice {scores[lowest]:.3f}, the lowest of {len(scores)}"
            print(title)
            truth = Volume(case.labels, case.grid)
            for labels, what in ((Volume(result.labels, result.grid), title), (truth, "manual")):
                legend = [f"{label}" for label in model.labels[1:]]
                panels.append(picture_png(volume, labels, what, legend))
    save_panels(panels, picture)


def case_named(data: Path, name: str) -> Case:
    """The one case of `data` with this name."""
    (case,) = load_cases([one for one in find_cases(data) if one.name == name], 1, 3)
    return case


if __name__ == "__main__":
    package = sys.argv[4] if len(sys.argv) > 4 else "hippocampus"
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), package)
