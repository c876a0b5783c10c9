"""A scan cut into tiles on purpose, against the same scan in one piece.

    python benchmarks/tiles.py DATA PICTURE.png [PACKAGE]    (a folder with images/ and labels/)

Kept-back cases on route 0, in float32. For each largest tile the table has Dice of all labels
together and of each, mean and lowest of the cases, between the two answers, and what the mean Dice
against manual labels loses. The picture shows the case that the smallest tiles change most.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from panels import save_panels
from tqdm import tqdm

from rare_trt.evaluation.cases import Case, find_cases, load_cases
from rare_trt.evaluation.dice import dice
from rare_trt.overlay import picture_png
from rare_trt.package.reading import Package, open_package
from rare_trt.plan.resampling import plan_resampling
from rare_trt.scan.geometry import Shape, Volume
from rare_trt.scan.intensity import normalise
from rare_trt.sessions.openvino import OpenVinoSession
from rare_trt.sessions.run import PreparedScan, run_tiles
from rare_trt.storage.cache import Cache

TILES: tuple[Shape, ...] = (
    (48, 48, 48),
    (32, 64, 48),
    (48, 64, 32),
    (48, 48, 32),
    (32, 48, 32),
)

# Larger than any scan.
WHOLE: Shape = (1 << 20, 1 << 20, 1 << 20)


def main(data: Path, picture: Path, name: str) -> None:
    """Prints one row per largest tile and writes the picture."""
    package = open_package(name)
    classes = len(package.manifest.model.labels)
    held = package.manifest.model.training.validation_cases
    cases = load_cases([one for one in find_cases(data) if one.name in held], 1, classes)
    session = OpenVinoSession(package, package.graph(0, "fp32"), Cache())
    answers = {
        shape: [
            answer(package, session, case, shape) for case in tqdm(cases, named(shape), leave=False)
        ]
        for shape in TILES
    }
    whole = [answer(package, session, case, WHOLE) for case in cases]
    print("| largest tile | mean | lowest case | Dice lost |\n|---|---|---|---|")
    for shape, parts in answers.items():
        scores = np.array([scored(*pair, classes) for pair in zip(whole, parts, strict=True)])
        lost = accuracy(whole, cases, classes) - accuracy(parts, cases, classes)
        print(f"| {named(shape)} | {row(scores.mean(0))} | {row(scores.min(0))} | {lost:+.4f} |")
    # The last ones were the smallest.
    worst = int(scores[:, 0].argmin())
    shown = {"in one piece": whole[worst], f"tiles of at most {named(shape)}": parts[worst]}
    save_panels([panel(package, cases[worst], *one) for one in shown.items()], picture)


def answer(
    package: Package, session: OpenVinoSession, case: Case, largest: Shape
) -> NDArray[np.uint8]:
    """Labels of `case` on its own grid, in tiles of at most `largest`."""
    image = normalise(np.moveaxis(case.voxels, 0, 3), package.manifest.model.intensity)
    steps = plan_resampling(case.grid, package.manifest.routes[0].route(), case.grid)
    return run_tiles(session, PreparedScan(image, steps, largest))


def scored(one: NDArray[np.uint8], other: NDArray[np.uint8], classes: int) -> list[float]:
    """Dice between two answers: of all labels together, then of each."""
    together = dice((one > 0).astype(np.uint8), (other > 0).astype(np.uint8), 2)
    return together + dice(one, other, classes)


def accuracy(answers: list[NDArray[np.uint8]], cases: list[Case], classes: int) -> float:
    """Mean Dice against manual labels."""
    pairs = zip(answers, cases, strict=True)
    return float(np.mean([dice(labels, case.labels, classes) for labels, case in pairs]))


def named(shape: Shape) -> str:
    """'48 x 48 x 48'."""
    return " x ".join(map(str, shape))


def row(scores: NDArray[np.float64]) -> str:
    """One cell of the table."""
    return " / ".join(f"{score:.3f}" for score in scores)


def panel(package: Package, case: Case, title: str, labels: NDArray[np.uint8]) -> bytes:
    """One answer over its scan."""
    names = package.manifest.model.labels[1:]
    scan = Volume(np.moveaxis(case.voxels, 0, 3), case.grid)
    return picture_png(scan, Volume(labels, case.grid), f"{case.name}, {title}", names)


if __name__ == "__main__":
    package_name = sys.argv[3] if len(sys.argv) > 3 else "hippocampus"
    main(Path(sys.argv[1]), Path(sys.argv[2]), package_name)
