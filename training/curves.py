"""The training curves as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence


def curves_png(log: Sequence[dict[str, float | str]]) -> bytes:
    """Loss and per-route validation Dice against the epoch, as a PNG file."""
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
