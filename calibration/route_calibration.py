"""INT8 for one route: ranges, search, a check on held-out scans, and every CPU variant measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import cycle
from typing import Final

import numpy as np
from onnx import ModelProto

from rare_trt.backends import GRAPH_PRECISION, IN_BF16, NEEDS_BF16, Arithmetic, Precision
from rare_trt.calibration.fp16 import fp16_from_float32
from rare_trt.calibration.int8 import (
    METHODS,
    Method,
    Ranges,
    find_quantisable,
    int8_from_float32,
    measure_ranges,
)
from rare_trt.calibration.progress import Steps
from rare_trt.calibration.search import MIN_SPEEDUP, Budget, Outcome, search
from rare_trt.calibration.trial import Trials
from rare_trt.evaluation.cases import Case
from rare_trt.evaluation.prepared_cases import NATIVE, prepare_case
from rare_trt.export.graph_files import load_graph
from rare_trt.package.manifest import CalibrationEntry, Manifest, RouteEntry, Variant
from rare_trt.package.reading import Package
from rare_trt.scan.geometry import Triple
from rare_trt.sessions.golden import read_golden_vectors
from rare_trt.sessions.openvino import OpenVinoRun, openvino_facts
from rare_trt.sessions.session import Inputs
from rare_trt.storage.cache import Cache
from rare_trt.storage.files import sha256

# Scans for the ranges and for the search.
RANGE_SCANS: Final = 24
SEARCH_SCANS: Final = 8

# How far from zero intensities are moved, in multiples of a scan's contrast: about 1e5 for most
# scans of the hippocampus that are stored as fractions; float32 loses their last bits there.
FAR: Final = 100.0

# The search's share of the labels that may change by rounding: its scans are few, and others than
# those of the check.
SEARCH_SHARE: Final = 0.75

# The search's bound for agreement with float32: its scans have the route's own spacing, and thick
# slices lose several times as much.
SEARCH_AGREEMENT: Final = 0.991

# Voxels over the band of a route, in multiples of its spacing; root mean squares of 0.9 to 1.75.
BAND: Final[tuple[Triple, ...]] = (
    NATIVE,
    (0.9, 0.9, 0.9),
    (1.25, 1.25, 1.25),
    (0.6, 0.6, 1.6),
    (1.75, 1.75, 1.75),
    (1.8, 0.7, 0.7),
)

# Share of the labels of a golden vector that may differ on another CPU, whose kernels round
# differently: at least this, and at least FACTOR times the share measured here. A fault changes
# far more.
MIN_BOUNDS: Final[Mapping[Arithmetic, float]] = {
    "fp16+bf16": 2e-3,
    "int8": 5e-3,
    "int8+bf16": 5e-3,
}
FACTOR: Final = 4.0


@dataclass(frozen=True, eq=False)
class RouteCalibration:
    """Calibration of one route: its entry for the manifest, its INT8 graph where it has one, the
    table of the search as CSV, and the variants' bounds per golden vector, by its scan's name."""

    entry: CalibrationEntry
    model: ModelProto | None
    table: bytes
    bounds: Mapping[str, Mapping[Arithmetic, float]]


def calibrate_route(
    package: Package,
    entry: RouteEntry,
    training_cases: Sequence[Case],
    held_out_cases: Sequence[Case],
    dice_budget: float,
    cache: Cache,
    steps: Steps,
) -> RouteCalibration:
    """Calibrates the route `entry` of `package`.

    Ranges and search use `training_cases`, the check of the result `held_out_cases`; `dice_budget`
    is the mean Dice against manual labels that a variant may lose. It takes as many of `steps` as
    `count_steps` expects, and those of later rounds of the search. Raises RareTrtError where a
    graph cannot be quantised.
    """
    manifest = package.manifest
    graph = package.graph(entry.index, "fp32")
    model = load_graph(package.read(graph.file), package.read(graph.weights))
    budget, name = Budget(dice_budget), f"route {entry.index}"
    range_cases = training_cases[-RANGE_SCANS:]
    scans = [
        inputs
        for case, relative in zip(range_cases, cycle(BAND))
        for inputs in prepare_case(manifest, entry, case, relative).inputs()
    ]
    digest = sha256(b"".join(array.tobytes() for scan in scans for array in scan.values()))
    ranges = {
        method: _load_ranges(model, manifest.graph_sha256(graph), method, scans, digest, cache)
        for method in steps.each(METHODS, f"{name}: ranges")
    }
    trials = _make_trials(manifest, entry, model, training_cases[:SEARCH_SCANS])
    stricter = replace(budget, agreement=SEARCH_AGREEMENT, moved=SEARCH_SHARE * budget.moved)
    outcome = search(model, ranges, trials, stricter, steps, bf16=_has_bf16())
    graphs: dict[Precision, ModelProto] = {}
    if outcome.names:
        graphs["int8"] = int8_from_float32(model, ranges[outcome.method], outcome.names)
    check = _make_trials(manifest, entry, model, held_out_cases)
    graphs["fp16"] = fp16_from_float32(model)
    with steps.one(f"{name}: variants"):
        variants = _measure_variants(graphs, check, budget)
    outcome, graphs = _confirm_int8(outcome, graphs, variants)
    variants = [v for v in variants if GRAPH_PRECISION[v.arithmetic] in graphs]
    return RouteCalibration(
        entry=CalibrationEntry(
            route=entry.index,
            method=outcome.method,
            scans=len(range_cases),
            scans_sha256=digest,
            dice_budget=budget.dice,
            convolutions=len(find_quantisable(model)),
            int8_convolutions=outcome.names,
            reason=outcome.reason,
            table=f"calibration/route{entry.index}.csv",
            measured_scans=len(held_out_cases),
            variants=tuple(variants),
        ),
        model=graphs.get("int8"),
        table=outcome.table(),
        bounds=_measure_bounds(package, entry.index, graphs, variants),
    )


def count_steps(models: Sequence[ModelProto]) -> int:
    """The steps that calibrating every route, whose float32 graphs are `models`, takes at least:
    ranges by each method, one round of the search, the variants."""
    return sum(len(METHODS) + len(find_quantisable(model)) + 1 for model in models)


def _make_trials(
    manifest: Manifest, entry: RouteEntry, model: ModelProto, cases: Sequence[Case]
) -> Trials:
    """Trials on `cases` at the spacing of the route, and on the same ones far from zero."""
    samples, far = (
        [prepare_case(manifest, entry, case, far=far) for case in cases] for far in (0.0, FAR)
    )
    return Trials(model, samples, far, len(manifest.model.labels))


def _load_ranges(
    model: ModelProto,
    graph_sha256: str,
    method: Method,
    scans: Sequence[Inputs],
    scans_sha256: str,
    cache: Cache,
) -> Ranges:
    """The ranges by `method` over `scans`; from the cache where graph and scans are unchanged."""
    names = sorted({node.input[0] for node in model.graph.node if node.op_type == "Conv"})
    key = ("ranges", graph_sha256, scans_sha256, method, version("onnxruntime"))
    known = cache.load(*key)
    if known is not None:
        return dict(zip(names, np.frombuffer(known, np.float64).tolist(), strict=True))
    ranges = measure_ranges(model, scans, method)
    cache.store(np.array([ranges[name] for name in names]).tobytes(), *key)
    return ranges


def _has_bf16() -> bool:
    return "BF16" in openvino_facts().capabilities


def _measure_variants(
    graphs: Mapping[Precision, ModelProto], check: Trials, budget: Budget
) -> list[Variant]:
    """Every way to run `graphs` on this CPU that is within the budget, fastest first."""
    found = []
    for precision, graph in graphs.items():
        for bf16 in (False, True) if _has_bf16() else (False,):
            score = check.score(graph, bf16=bf16)
            if budget.allows(score):
                lost, agreement = round(score.dice_lost, 6), round(score.agreement, 6)
                speed = round(score.speed, 3)
                found.append(
                    Variant(IN_BF16[precision] if bf16 else precision, lost, agreement, speed)
                )
    return sorted(found, key=lambda variant: -variant.speed)


def _confirm_int8(
    outcome: Outcome, graphs: dict[Precision, ModelProto], variants: Sequence[Variant]
) -> tuple[Outcome, dict[Precision, ModelProto]]:
    """Search result and graphs after the check: without INT8 where no INT8 variant passed it, or
    none is clearly faster than fp16."""
    if "int8" not in graphs:
        return outcome, graphs
    int8, fp16 = (
        max((v.speed for v in variants if GRAPH_PRECISION[v.arithmetic] == one), default=0.0)
        for one in ("int8", "fp16")
    )
    if int8 == 0.0:
        reason = "INT8 was within the budget on the scans of the search, and not on held-out ones"
    elif int8 < MIN_SPEEDUP * fp16:
        reason = f"INT8 runs at {int8 / fp16:.2f} times the speed of fp16"
    else:
        return outcome, graphs
    others = dict(graphs)
    del others["int8"]
    return replace(outcome, names=(), score=None, reason=reason), others


def _measure_bounds(
    package: Package,
    route: int,
    graphs: Mapping[Precision, ModelProto],
    variants: Sequence[Variant],
) -> dict[str, dict[Arithmetic, float]]:
    """Per golden vector of `route`, by its scan's name, the share of labels that may differ."""
    bounded = {variant.arithmetic for variant in variants} & set(MIN_BOUNDS)
    if "int8" in graphs:
        # Engines are built from the graph whether or not it is faster on a CPU.
        bounded.add("int8")
    runs = {
        computed: OpenVinoRun(
            graphs[GRAPH_PRECISION[computed]].SerializeToString(), bf16=computed in NEEDS_BF16
        )
        for computed in sorted(bounded)
    }
    return {
        vector.entry.scan: {
            computed: max(MIN_BOUNDS[computed], FACTOR * vector.disagreement(run))
            for computed, run in runs.items()
        }
        for vector in read_golden_vectors(package, route)
    }
