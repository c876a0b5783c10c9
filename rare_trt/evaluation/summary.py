"""Measurements over cases: means, confidence intervals, tables and a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rare_trt.evaluation.measurements import Group, Measurement

RESAMPLES: Final = 2000
CONFIDENCE: Final = 0.95


@dataclass(frozen=True)
class Summary:
    """One acquisition over all cases; entries are means unless stated otherwise.

    `dice` is the mean over the labels, `dice_low` and `dice_high` its 95 % confidence interval over
    the cases. `label_dice` and `label_volume_error` have one entry per label. Volume errors are
    signed and relative; `volume_error` is that of all labels together. `surface_mm` leaves out
    labels that were not found, which `not_found` counts. `milliseconds` is the median.
    """

    acquisition: str
    group: Group
    routes: tuple[int, ...]
    cases: int
    dice: float
    dice_low: float
    dice_high: float
    lowest_dice: float
    label_dice: Mapping[str, float]
    own_dice: float
    surface_mm: float
    not_found: int
    volume_error: float
    label_volume_error: Mapping[str, float]
    milliseconds: float


def summaries(rows: Sequence[Measurement]) -> list[Summary]:
    """Summarises `rows` per acquisition, in the order of their first rows."""
    names = list(dict.fromkeys(row.acquisition for row in rows))
    return [_summary([row for row in rows if row.acquisition == name]) for name in names]


def _summary(rows: Sequence[Measurement]) -> Summary:
    labels = list(dict.fromkeys(row.label for row in rows))
    # [case, label]
    by_case = [rows[at : at + len(labels)] for at in range(0, len(rows), len(labels))]
    scores = np.array([[row.dice for row in case] for case in by_case])
    surfaces = np.array([row.surface_mm for row in rows])
    found = np.array([[row.volume_mm3 for row in case] for case in by_case])
    expected = np.array([[row.expected_mm3 for row in case] for case in by_case])
    low, high = interval(scores.mean(axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.where(expected > 0, found / expected - 1.0, np.nan)
    return Summary(
        acquisition=rows[0].acquisition,
        group=rows[0].group,
        routes=tuple(sorted({row.route for row in rows})),
        cases=len(by_case),
        dice=float(scores.mean()),
        dice_low=low,
        dice_high=high,
        lowest_dice=float(scores.mean(axis=1).min()),
        label_dice=dict(zip(labels, scores.mean(axis=0).tolist(), strict=True)),
        own_dice=float(np.mean([row.own_dice for row in rows])),
        surface_mm=float(np.nanmean(surfaces)) if np.isfinite(surfaces).any() else float("nan"),
        not_found=int(np.isnan(surfaces).sum()),
        volume_error=float((found.sum(axis=1) / expected.sum(axis=1) - 1.0).mean()),
        label_volume_error=dict(zip(labels, np.nanmean(errors, axis=0).tolist(), strict=True)),
        milliseconds=float(np.median([row.milliseconds for row in rows])),
    )


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Returns a 95 % confidence interval of the mean of `values` (one per case), by bootstrap:
    percentiles of the means of 2000 resamples of the cases, with fixed random numbers. Source:
    Efron, Tibshirani, "An Introduction to the Bootstrap" (1993)."""
    rng = np.random.default_rng(0)
    means = rng.choice(values, (RESAMPLES, len(values))).mean(axis=1)
    tail = (1.0 - CONFIDENCE) / 2
    low, high = np.quantile(means, (tail, 1.0 - tail)).tolist()
    return low, high


def measurements_csv(rows: Sequence[Measurement]) -> bytes:
    """Returns CSV with one line per case, acquisition and label."""
    return _csv([asdict(row) for row in rows])


def summaries_csv(found: Sequence[Summary]) -> bytes:
    """Returns CSV with one line per acquisition and columns per label."""
    lines = []
    for one in found:
        line = asdict(one)
        line["routes"] = " ".join(str(route) for route in one.routes)
        for name in ("label_dice", "label_volume_error"):
            line |= {f"{name[6:]} {label}": value for label, value in line.pop(name).items()}
        lines.append(line)
    return _csv(lines)


def _csv(lines: Sequence[Mapping[str, object]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in line.items()})
    return text.getvalue().encode()


def dice_png(packages: Mapping[str, Sequence[Summary]]) -> bytes:
    """Plots Dice with its confidence interval for every acquisition, one colour per package;
    returns a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    for panel, group in zip(panels, ("spacing", "robustness"), strict=True):
        for place, (package, found) in enumerate(packages.items()):
            rows = [one for one in found if one.group == group]
            at = np.arange(len(rows)) + 0.14 * (place - (len(packages) - 1) / 2)
            mean = np.array([one.dice for one in rows])
            low = mean - [one.dice_low for one in rows]
            high = [one.dice_high for one in rows] - mean
            panel.errorbar(at, mean, (low, high), fmt="o", markersize=4, label=package)
            panel.set_xticks(
                range(len(rows)), [one.acquisition for one in rows], rotation=60, ha="right"
            )
        panel.grid(axis="y", alpha=0.4)
    panels[0].set(ylabel="Dice against the full label, base spacing")
    panels[0].legend()
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
