"""Comparison of every typed graph and engine of a package with its float32 graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rare_trt.errors import BackendError, ShapeError
from rare_trt.evaluation.dice import dice
from rare_trt.package.manifest import GraphEntry
from rare_trt.package.reading import Package
from rare_trt.sessions.candidates import Candidate, SessionCandidates
from rare_trt.sessions.golden import (
    check_golden_vectors,
    find_disagreement,
    read_golden_vectors,
)
from rare_trt.sessions.openvino import OpenVinoProbe
from rare_trt.sessions.run import PreparedScan, run_tiles
from rare_trt.sessions.session import Session
from rare_trt.storage.cache import Cache

# Bounds for fp32 and fp16: least Dice with the float32 labels, mean over scans and labels, and
# largest loss of Dice against manual labels.
MIN_DICE: Final = 0.999
MAX_LOSS: Final = 0.001

# Least Dice with float32 for INT8 and bf16; the bound of their loss is the Dice budget of the
# package's calibration.
MIN_AGREEMENT: Final = 0.975


@dataclass(frozen=True)
class Finding:
    """Comparison of a graph or an engine of `route` with float32 over `samples` scans.

    `different` is the share of voxels with another label, `dice` the mean Dice between the two,
    `loss` the loss of Dice against manual labels, `logit_error` the largest difference of a logit
    and `non_finite` the number of logits that are not finite; None where it was not measured.
    `fault` is the error that prevented the comparison, or the golden vectors that failed.
    `min_dice` and `max_loss` are the bounds of `dice` and `loss`.
    """

    name: str
    route: int
    samples: int
    different: float | None = None
    dice: float | None = None
    loss: float | None = None
    logit_error: float | None = None
    non_finite: int | None = None
    fault: str | None = None
    min_dice: float = MIN_DICE
    max_loss: float = MAX_LOSS

    @property
    def broken(self) -> list[str]:
        """The fault and the bounds that are not met, one sentence each; empty if there are none."""
        found = [] if self.fault is None else [self.fault]
        if self.dice is not None and not self.dice >= self.min_dice:
            found.append(
                f"Dice with float32 is {self.dice:.5f}, at least {self.min_dice} is expected"
            )
        if self.loss is not None and not self.loss <= self.max_loss:
            found.append(f"Dice is lower by {self.loss:.5f}, at most {self.max_loss} is expected")
        if self.non_finite:
            found.append(f"{self.non_finite} logits are not finite")
        return found


def golden_scans(package: Package, route: int) -> list[PreparedScan]:
    """Returns the scans of the package's golden vectors of `route`, without labels to compare with:
    theirs are the network's, not manual."""
    vectors = read_golden_vectors(package, route)
    return [replace(vector.scan, truth=None) for vector in vectors]


def compare_with_float32(
    package: Package, route: int, scans: Sequence[PreparedScan], candidates: SessionCandidates
) -> Iterator[Finding]:
    """Compares each graph and each engine of `route` that this machine can run, one by one."""
    reference = Reference(package, route, scans)
    for graph in package.manifest.graphs:
        if graph.route == route:
            yield reference.compare(candidates.graph(graph), graph)
    for candidate in candidates.variants(route):
        if candidate.arithmetic.endswith("bf16"):
            yield reference.compare(candidate, None)
    for candidate in candidates.engines(route):
        yield reference.compare(candidate, None)


def find_sessions(package: Package, cache: Cache) -> list[tuple[int, Candidate]]:
    """Every session of the graphs of `package` that this CPU can run, in every precision, each with
    its route."""
    candidates = SessionCandidates(package, "openvino", cache)
    routes = [entry.index for entry in package.manifest.routes]
    return [(route, candidate) for route in routes for candidate in candidates.find_all(route)]


def check_session(package: Package, route: int, candidate: Candidate) -> None:
    """Checks `candidate` against the golden vectors of `package`, which is not published yet, as
    every machine does before its first scan.

    Raises BackendError, which names the vector and what was measured.
    """
    session = candidate.open()
    try:
        fault = find_disagreement(session, package, route)
    finally:
        session.close()
    if fault is not None:
        raise BackendError(
            f"route {route}: {fault}, so machines would refuse the package and it was not written. "
            "Where a network is hardly trained, labels are nearly equal and rounding decides "
            "between them: train it longer (`cycles` of the recipe); where it is trained well, "
            "report the versions of torch, onnx and openvino"
        )


class Reference:
    """The float32 graph of a route and its labels of `scans`."""

    def __init__(self, package: Package, route: int, scans: Sequence[PreparedScan]) -> None:
        self._package, self._route, self._scans = package, route, scans
        self._classes = len(package.manifest.model.labels)
        self._probe = OpenVinoProbe(package, package.graph(route, "fp32"))
        self._labels = [run_tiles(self._probe, scan) for scan in scans]

    def compare(self, candidate: Candidate, graph: GraphEntry | None) -> Finding:
        """Compares `candidate` with the reference, the logits too where it runs `graph`."""
        name, route = candidate.name, self._route
        try:
            session = candidate.open()
        except BackendError as error:
            return Finding(name, route, 0, fault=str(error))
        try:
            check_golden_vectors(session, self._package, route)
            labels = [_labels(session, scan) for scan in self._scans]
        except BackendError as error:
            return Finding(name, route, 0, fault=str(error))
        finally:
            session.close()
        pairs = [
            (found, known)
            for found, known in zip(labels, self._labels, strict=True)
            if found is not None
        ]
        if not pairs:
            return Finding(name, route, 0, fault="it takes none of the scans compared on")
        min_dice, max_loss = self._bounds(candidate)
        worst, non_finite = (None, None) if graph is None else self._logits(graph)
        return Finding(
            name=name,
            route=route,
            samples=len(pairs),
            different=float(np.mean([(found != known).mean() for found, known in pairs])),
            dice=float(np.mean([dice(found, known, self._classes) for found, known in pairs])),
            loss=self._loss(labels),
            logit_error=worst,
            non_finite=non_finite,
            min_dice=min_dice,
            max_loss=max_loss,
        )

    def _bounds(self, candidate: Candidate) -> tuple[float, float]:
        """The least Dice with float32, and the largest loss of Dice against manual labels."""
        if candidate.arithmetic in ("fp32", "fp16"):
            return MIN_DICE, MAX_LOSS
        (budget,) = (
            entry.dice_budget
            for entry in self._package.manifest.calibration
            if entry.route == self._route
        )
        return MIN_AGREEMENT, budget

    def _loss(self, labels: Sequence[NDArray[np.uint8] | None]) -> float | None:
        """The mean loss of Dice against manual labels; None where no scan has any."""
        scores = [
            (dice(known, scan.truth, self._classes), dice(found, scan.truth, self._classes))
            for found, known, scan in zip(labels, self._labels, self._scans, strict=True)
            if scan.truth is not None and found is not None
        ]
        if not scores:
            return None
        return float(np.mean([np.subtract(known, found) for known, found in scores]))

    def _logits(self, graph: GraphEntry) -> tuple[float | None, int | None]:
        """The largest error of a logit, and the number of those that are not finite."""
        is_reference = graph.precision == "fp32"
        probe = self._probe if is_reference else OpenVinoProbe(self._package, graph)
        if not (probe.has_logits and self._probe.has_logits):
            return None, None
        worst, non_finite = 0.0, 0
        for scan in self._scans:
            for inputs in scan.inputs():
                found, known = probe.logits(inputs), self._probe.logits(inputs)
                non_finite += int((~np.isfinite(found)).sum())
                worst = max(worst, float(np.abs(found - known).max()))
        return worst, non_finite


def _labels(session: Session, scan: PreparedScan) -> NDArray[np.uint8] | None:
    """The labels of `scan`; None where the session was not built for its shapes."""
    try:
        return run_tiles(session, scan)
    except ShapeError:
        return None
