"""Scores of candidate graphs against the float32 graph of their route, by OpenVINO on this CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Final

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from rare_trt.evaluation.dice import dice
from rare_trt.sessions.openvino import OpenVinoRun
from rare_trt.sessions.run import PreparedScan, run_tiles
from rare_trt.sessions.session import Inputs

# The first scans are timed, this many runs each; the fastest run counts.
TIMED_SCANS: Final = 3
REPEATS: Final = 7

# Bytes, more than a CPU's caches hold: a scan finds them full of other data, not of the weights.
CACHES: Final = 64 << 20


@dataclass(frozen=True)
class Score:
    """How a graph compares with float32.

    `dice_lost` is how much lower its mean Dice against manual labels is, `agreement` the mean Dice
    between its labels and those of float32, `moved` the share of its labels that change where the
    scans' intensities lie far from zero and float32 rounds them, `speed` how many times as fast it
    runs (median over the timed scans).
    """

    dice_lost: float
    agreement: float
    moved: float
    speed: float


class Trials:
    """The float32 graph of a route with its labels of `samples`, to score other graphs against.

    `far` holds the same scans with intensities far from zero; `classes` counts labels, background
    included.
    """

    def __init__(
        self,
        reference: ModelProto,
        samples: Sequence[PreparedScan],
        far: Sequence[PreparedScan],
        classes: int,
    ) -> None:
        self._samples, self._far, self._classes = samples, far, classes
        self._timed = [list(sample.inputs()) for sample in samples[:TIMED_SCANS]]
        self._other_work = np.zeros(CACHES, np.uint8)
        self._reference = OpenVinoRun(reference.SerializeToString())
        self._labels = [run_tiles(self._reference, sample) for sample in samples]
        self._dice = [self._mean_dice(labels, n) for n, labels in enumerate(self._labels)]

    def score(self, model: ModelProto, *, bf16: bool = False) -> Score:
        """Scores `model`; it and the reference are timed in turn, run by run, with cold caches."""
        run = OpenVinoRun(model.SerializeToString(), bf16=bf16)
        lost, agreement = [], []
        moved = voxels = 0
        for number, (sample, far) in enumerate(zip(self._samples, self._far, strict=True)):
            labels = run_tiles(run, sample)
            agreement.append(np.mean(dice(labels, self._labels[number], self._classes)))
            lost.append(self._dice[number] - self._mean_dice(labels, number))
            moved += int(np.count_nonzero(run_tiles(run, far) != labels))
            voxels += labels.size
        speed = median(self._speed(run, inputs) for inputs in self._timed)
        return Score(float(np.mean(lost)), float(np.mean(agreement)), moved / voxels, speed)

    def _mean_dice(self, labels: NDArray[np.uint8], number: int) -> float:
        truth = self._samples[number].truth
        return 0.0 if truth is None else float(np.mean(dice(labels, truth, self._classes)))

    def _speed(self, run: OpenVinoRun, inputs: Sequence[Inputs]) -> float:
        times: list[list[float]] = [[], []]
        for _ in range(REPEATS):
            for one, kept in zip((self._reference, run), times, strict=True):
                self._other_work += 1
                start = perf_counter()
                for tile in inputs:
                    one.run(tile)
                kept.append(perf_counter() - start)
        return min(times[0]) / min(times[1])
