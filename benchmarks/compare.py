"""Packages side by side, from what `rare-trt evaluate` wrote of each.

    python benchmarks/compare.py PICTURE.png OURS=FOLDER OTHER=FOLDER...

The first package is compared with each of the others on the same cases and acquisitions: mean of
the paired differences in Dice with its 95 % confidence interval, and the ratio of the median times.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rare_trt.training.evaluation import Measurement
from rare_trt.training.summary import dice_png, interval, summaries


def main(picture: Path, packages: dict[str, Path]) -> None:
    """Prints one row per acquisition and draws all packages."""
    rows = {name: measured(folder / "cases.csv") for name, folder in packages.items()}
    found = {name: summaries(of) for name, of in rows.items()}
    first, *others = packages
    print(f"| scan | {first} | " + " | ".join(f"{o} | gain | time" for o in others) + " |")
    print("|---" * (2 + 3 * len(others)) + "|")
    for place, own in enumerate(found[first]):
        cells = [f"**{own.dice:.3f}**"]
        for other in others:
            gain = per_case(rows[first], own.acquisition) - per_case(rows[other], own.acquisition)
            low, high = interval(gain)
            theirs = found[other][place]
            cells += [
                f"{theirs.dice:.3f}",
                f"{gain.mean():+.3f} ({low:+.3f} to {high:+.3f})",
                f"{own.milliseconds / theirs.milliseconds:.2f}",
            ]
        print(f"| {own.acquisition} | {' | '.join(cells)} |")
    picture.write_bytes(dice_png(found))


def measured(path: Path) -> list[Measurement]:
    """The rows of a cases.csv."""
    kinds: dict[str, Any] = {"int": int, "float": float}
    made = []
    for line in csv.DictReader(path.read_text().splitlines()):
        values = {f.name: kinds.get(str(f.type), str)(line[f.name]) for f in fields(Measurement)}
        made.append(Measurement(**values))
    return made


def per_case(rows: list[Measurement], acquisition: str) -> NDArray[np.float64]:
    """Dice of each case, mean over its labels."""
    chosen = [row for row in rows if row.acquisition == acquisition]
    names = list(dict.fromkeys(row.case for row in chosen))
    return np.array([np.mean([row.dice for row in chosen if row.case == n]) for n in names])


if __name__ == "__main__":
    named = (pair.split("=", 1) for pair in sys.argv[2:])
    main(Path(sys.argv[1]), {name: Path(folder) for name, folder in named})
