"""The training log: one row per epoch, as CSV and as curves."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

# epoch (from 1), loss, and in validated epochs dice_route0, dice_route1, ...
LogRow: TypeAlias = dict[str, float]


def csv_from_log(log: Sequence[LogRow]) -> bytes:
    """Returns `log` as CSV with a header; a cell is empty where its row has no such entry."""
    names = list(dict.fromkeys(name for row in log for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(log)
    return text.getvalue().encode()


def log_from_csv(path: Path) -> list[LogRow]:
    """Reads the rows of a log; none where the file does not exist."""
    if not path.is_file():
        return []
    return [
        {
            name: int(value) if name == "epoch" else float(value)
            for name, value in row.items()
            if value
        }
        for row in csv.DictReader(path.read_text().splitlines())
    ]


def curves_png(log: Sequence[LogRow]) -> bytes:
    """Plots loss and validation Dice per route against the epoch; returns a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss, dice = figure.subplots(1, 2)
    loss.plot([row["epoch"] for row in log], [row["loss"] for row in log], color="0.3")
    loss.set(xlabel="epoch", ylabel="training loss")
    for name in sorted({name for row in log for name in row if name.startswith("dice_")}):
        rows = [row for row in log if name in row]
        dice.plot([row["epoch"] for row in rows], [row[name] for row in rows], label=name[5:])
    dice.set(xlabel="epoch", ylabel="validation Dice at base spacing")
    if dice.has_data():
        dice.legend()
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
