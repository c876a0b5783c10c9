"""Which convolutions of a route may be INT8: the set that wins most time within a Dice budget.

The search begins with all of them, their ranges taken by the method that agrees most with float32,
and gives back one at a time. Each round scores the graph without each of the convolutions in turn.
Outside the budget, the one goes whose way back to fp16 regains most for the time it costs; inside
it, one that is faster in fp16. The search ends where neither is left. Every score is kept as a
table.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from onnx import ModelProto
from tqdm import tqdm

from rare_trt.calibration.int8 import Method, Ranges, convolutions, int8_model
from rare_trt.calibration.trial import Score, Trials
from rare_trt.evaluation.verification import MIN_AGREEMENT

# Timings vary by some percent from run to run: less is no gain, and what costs less costs nothing.
LEAST_GAIN: Final = 1.1
LEAST_LOSS: Final = 0.02

# Share of the labels that may change where float32 rounds a scan's intensities.
MOST_MOVED: Final = 1e-4

# Of the table.
COLUMNS: Final = (
    *("round", "ranges", "back in fp16", "int8 convolutions"),
    *("dice lost", "agreement", "labels moved", "speed"),
)


@dataclass(frozen=True)
class Budget:
    """What INT8 may cost: mean Dice against manual labels, agreement with float32, and labels that
    move for nothing."""

    dice: float
    agreement: float = MIN_AGREEMENT
    moved: float = MOST_MOVED

    def holds(self, score: Score) -> bool:
        return self.accurate(score) and score.moved <= self.moved

    def accurate(self, score: Score) -> bool:
        """Whether it holds but for labels that move."""
        return score.dice_lost <= self.dice and score.agreement >= self.agreement


@dataclass(frozen=True)
class Step:
    """One graph that was scored: in `round`, its ranges taken by `method`, without INT8 at
    `without` (None: the round's own)."""

    round: int
    method: Method
    without: str | None
    int8: int
    score: Score


@dataclass(frozen=True)
class Outcome:
    """The method of the ranges, the convolutions to keep in INT8 and their score, or none of those
    and `reason`."""

    method: Method
    names: tuple[str, ...]
    score: Score | None
    reason: str | None
    steps: tuple[Step, ...]

    def table(self) -> bytes:
        """Every step as CSV."""
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
    *,
    bf16: bool = False,
) -> Outcome:
    """The set of convolutions of the float32 `model` to run in INT8, and which `ranges`.

    With `bf16` the rest is computed in it, which is how a CPU that can will run the graph: what
    INT8 gains there is less, and so is what is lost by leaving it.
    """
    names = convolutions(model)
    firsts = {
        method: trials.score(int8_model(model, taken, names), bf16=bf16)
        for method, taken in ranges.items()
    }
    steps = [Step(0, method, None, len(names), score) for method, score in firsts.items()]
    method = max(firsts, key=lambda one: firsts[one].agreement)
    score = firsts[method]
    number = 0
    while names:
        number += 1
        scores = {}
        for name in tqdm(names, f"searching, round {number}", unit="graph", leave=False):
            rest = [other for other in names if other != name]
            scores[name] = trials.score(int8_model(model, ranges[method], rest), bf16=bf16)
            steps.append(Step(number, method, name, len(rest), scores[name]))
        chosen = _given_back(scores, score, budget)
        if chosen is None:
            break
        names, score = [name for name in names if name != chosen], scores[chosen]
    if not names:
        reason = "no convolution can be INT8 within the budget"
        return Outcome(method, (), None, reason, tuple(steps))
    if score.speed < LEAST_GAIN:
        reason = f"INT8 runs at {score.speed:.2f} times the speed of float32"
        return Outcome(method, (), None, reason, tuple(steps))
    return Outcome(method, tuple(names), score, None, tuple(steps))


def _given_back(scores: dict[str, Score], now: Score, budget: Budget) -> str | None:
    """The convolution to bring back to fp16; None where the search is done."""
    if not budget.holds(now):
        return max(scores, key=lambda name: _worth(scores[name], now, budget))
    faster = {
        name: score.speed
        for name, score in scores.items()
        if score.speed > LEAST_GAIN * now.speed and budget.holds(score)
    }
    return max(faster, key=lambda name: faster[name]) if faster else None


def _worth(score: Score, now: Score, budget: Budget) -> float:
    """Agreement regained per time lost, or once that is enough, labels that stay; a convolution
    that costs no time is worth most, and where none regains anything the one that costs least."""
    lost = max(now.speed / score.speed - 1.0, LEAST_LOSS)
    gained = score.agreement - now.agreement
    if budget.accurate(now):
        gained = now.moved - score.moved
    return gained / lost if gained > 0.0 else -lost
