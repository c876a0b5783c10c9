"""Search for the convolutions of a route to run in INT8: the fastest set within a Dice budget.

The search starts with all of them, their ranges by the method that agrees most with float32, and
returns one at a time to fp16. Each round scores the graph without each convolution in turn. Outside
the budget, the round returns the convolution that regains most agreement for the time it costs;
within the budget, one that is faster in fp16. The search ends where there is neither. Every score
is kept as a row of a table.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from onnx import ModelProto

from rare_trt.calibration.int8 import Method, Ranges, find_quantisable, int8_from_float32
from rare_trt.calibration.progress import Steps
from rare_trt.calibration.trial import Score, Trials
from rare_trt.evaluation.verification import MIN_AGREEMENT

# Timings vary by some percent from run to run: a smaller speed-up counts as none, and a smaller
# slow-down as this one.
MIN_SPEEDUP: Final = 1.1
MIN_SLOWDOWN: Final = 0.02

# Share of the labels that may change where float32 rounds a scan's intensities.
MAX_MOVED: Final = 1e-4

# Of the table in the package.
COLUMNS: Final = (
    *("round", "ranges", "back in fp16", "int8 convolutions"),
    *("dice lost", "agreement", "labels moved", "speed"),
)


@dataclass(frozen=True)
class Budget:
    """Bounds for INT8: mean Dice lost against manual labels, agreement with float32 (mean Dice
    between the two), and the share of labels that change by rounding alone."""

    dice: float
    agreement: float = MIN_AGREEMENT
    moved: float = MAX_MOVED

    def allows(self, score: Score) -> bool:
        """Whether `score` is within all three bounds."""
        return self.allows_accuracy(score) and score.moved <= self.moved

    def allows_accuracy(self, score: Score) -> bool:
        """Whether `score` is within the bounds but for labels that change by rounding."""
        return score.dice_lost <= self.dice and score.agreement >= self.agreement


@dataclass(frozen=True)
class Step:
    """One scored graph: in `round`, with ranges by `method`, `int8` convolutions in INT8 and
    `without` returned to fp16 (None: the set that the search starts with)."""

    round: int
    method: Method
    without: str | None
    int8: int
    score: Score


@dataclass(frozen=True)
class Outcome:
    """Result of a search: the method of the ranges, and the convolutions to run in INT8 with their
    score, or the `reason` why there are none."""

    method: Method
    names: tuple[str, ...]
    score: Score | None
    reason: str | None
    steps: tuple[Step, ...]

    def table(self) -> bytes:
        """Every step as CSV, one line per scored graph."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for step in self.steps:
            score = step.score
            figures = [f"{score.dice_lost:.5f}", f"{score.agreement:.5f}", f"{score.moved:.2e}"]
            without = step.without or ""
            row = [step.round, step.method, without, step.int8, *figures, f"{score.speed:.3f}"]
            writer.writerow(row)
        return text.getvalue().encode()


def search(
    model: ModelProto,
    ranges: Mapping[Method, Ranges],
    trials: Trials,
    budget: Budget,
    steps: Steps,
    *,
    bf16: bool = False,
) -> Outcome:
    """The convolutions of the float32 `model` to run in INT8, and the method of `ranges` to use.

    With `bf16` all else is computed in bf16, as a CPU that supports it runs the graph; INT8 gains
    less time there, and returning a convolution costs less. Every graph of a round is one of
    `steps`, where those of the first round are expected already.
    """
    names = find_quantisable(model)
    all_int8 = {
        method: trials.score(int8_from_float32(model, by_method, names), bf16=bf16)
        for method, by_method in ranges.items()
    }
    tried = [Step(0, method, None, len(names), score) for method, score in all_int8.items()]
    method = max(all_int8, key=lambda one: all_int8[one].agreement)
    score = all_int8[method]
    number = 0
    while names:
        number += 1
        if number > 1:
            steps.expect(len(names))
        scores = {}
        for name in steps.each(names, f"INT8 search, round {number}"):
            rest = [other for other in names if other != name]
            scores[name] = trials.score(int8_from_float32(model, ranges[method], rest), bf16=bf16)
            tried.append(Step(number, method, name, len(rest), scores[name]))
        chosen = _choose(scores, score, budget)
        if chosen is None:
            break
        names, score = [name for name in names if name != chosen], scores[chosen]
    if not names:
        reason = "no convolution can be INT8 within the budget"
        return Outcome(method, (), None, reason, tuple(tried))
    if score.speed < MIN_SPEEDUP:
        reason = f"INT8 runs at {score.speed:.2f} times the speed of float32"
        return Outcome(method, (), None, reason, tuple(tried))
    return Outcome(method, tuple(names), score, None, tuple(tried))


def _choose(scores: dict[str, Score], now: Score, budget: Budget) -> str | None:
    """The convolution to return to fp16; None where the search ends."""
    if not budget.allows(now):
        return max(scores, key=lambda name: _worth(scores[name], now, budget))
    faster = {
        name: score.speed
        for name, score in scores.items()
        if score.speed > MIN_SPEEDUP * now.speed and budget.allows(score)
    }
    return max(faster, key=lambda name: faster[name]) if faster else None


def _worth(score: Score, now: Score, budget: Budget) -> float:
    """Agreement regained per time lost; where accuracy is within the budget, fewer changed labels
    per time lost. Where nothing is regained it is negative: the cheapest is the largest."""
    lost = max(now.speed / score.speed - 1.0, MIN_SLOWDOWN)
    gained = score.agreement - now.agreement
    if budget.allows_accuracy(now):
        gained = now.moved - score.moved
    return gained / lost if gained > 0.0 else -lost
