"""INT8 graphs and CPU variants for a package: calibrated, searched, proven and recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import Final

import numpy as np
from onnx import ModelProto
from tqdm import tqdm

from rare_trt.backends import Arithmetic, Precision, arithmetic, graph_precision, needs_bf16
from rare_trt.calibration.fp16 import fp16_model
from rare_trt.calibration.int8 import (
    METHODS,
    Method,
    Ranges,
    activation_ranges,
    convolutions,
    int8_model,
)
from rare_trt.calibration.search import LEAST_GAIN, Budget, Outcome, search
from rare_trt.calibration.trial import Score, Trials, sample_inputs
from rare_trt.errors import RareTrtError
from rare_trt.evaluation.cases import Case, find_cases, load_cases
from rare_trt.evaluation.prepared_cases import NATIVE, prepare_case
from rare_trt.export.onnx_from_route import GraphFiles, graph_files, load_graph
from rare_trt.package.manifest import (
    CalibrationEntry,
    GoldenEntry,
    GraphEntry,
    Manifest,
    RouteEntry,
    Variant,
)
from rare_trt.package.reading import Package
from rare_trt.package.writing import refuse_changed, write_package
from rare_trt.scan.geometry import Triple
from rare_trt.sessions.golden import read_golden_vectors
from rare_trt.sessions.openvino import OpenVinoRun, openvino_facts
from rare_trt.sessions.session import Inputs
from rare_trt.storage.cache import Cache
from rare_trt.storage.files import sha256

# Mean Dice that INT8 may lose on the two finest routes; coarser ones, where a structure is a few
# voxels wide, may lose twice as much.
DICE_BUDGET: Final = 0.003
FINE_ROUTES: Final = 2

# Scans for the ranges, for the search, and (kept back from training) for the proof.
RANGE_SCANS: Final = 24
SEARCH_SCANS: Final = 8
PROOF_SCANS: Final = 20

# How far from zero scans are moved, in multiples of their contrast: about 1e5 for most scans of the
# hippocampus that are stored as fractions, whose last bits float32 loses up there.
FAR: Final = 100.0

# What the search may use of the labels that may move: its scans are few, and the proof's others.
SEARCH_SHARE: Final = 0.75

# What the search asks of agreement with float32: its scans have the route's own spacing, and thick
# slices lose several times as much.
SEARCH_AGREEMENT: Final = 0.991

# Voxels over the band of a route, in multiples of its spacing; root mean squares of .9 to 1.75.
BAND: Final[tuple[Triple, ...]] = (
    NATIVE,
    (0.9, 0.9, 0.9),
    (1.25, 1.25, 1.25),
    (0.6, 0.6, 1.6),
    (1.75, 1.75, 1.75),
    (1.8, 0.7, 0.7),
)

# How many labels of a golden vector another CPU may give otherwise: its kernels round differently.
# A fault moves far more. A share of all voxels, and at least four times what was seen here.
LEAST_BOUND: Final[Mapping[Arithmetic, float]] = {
    "fp16+bf16": 2e-3,
    "int8": 5e-3,
    "int8+bf16": 5e-3,
}
TIMES_SEEN: Final = 4.0


@dataclass(frozen=True, eq=False)
class _Calibrated:
    """One route: its INT8 graph where it has one, what the manifest says of it, and its table."""

    entry: CalibrationEntry
    model: ModelProto | None
    table: bytes
    bounds: Mapping[str, Mapping[Arithmetic, float]]


def calibrate_package(
    package: Package, data: Path, dice_budget: float, out: Path, *, overwrite: bool
) -> Package:
    """`package` with INT8 graphs where they hold the budget, written to `out`.

    `data` holds labelled scans: ranges and search take those that the network was trained on, the
    proof those kept back. Raises RareTrtError, with nothing written, where something does not fit.
    """
    manifest, contents = calibrated(package, data, dice_budget, Cache())
    if out.exists() and out.samefile(package.folder):
        refuse_changed(package)
    return write_package(out, manifest, contents, overwrite=overwrite)


def calibrated(
    package: Package, data: Path, dice_budget: float, cache: Cache
) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest and all files of `package` once it is calibrated on the scans in `data`."""
    weights, beside = _half(package)
    seen, kept_back = _cases(package.manifest, data)
    routes = [
        _route(package, entry, seen, kept_back, dice_budget, cache)
        for entry in tqdm(package.manifest.routes, "calibrating", unit="route")
    ]
    typed = [(one.entry.route, one.model) for one in routes if one.model is not None]
    folder, _, weights_name = weights.rpartition("/")
    files = graph_files([model for _, model in typed], weights_name, beside)
    graphs = tuple(
        GraphEntry("int8", route, f"{folder}/route{route}_int8.onnx", weights) for route, _ in typed
    )
    contents = {graph.file: data for graph, data in zip(graphs, files.graphs, strict=True)}
    contents[weights] = files.weights
    contents |= {one.entry.table: one.table for one in routes}
    manifest = _manifest(package.manifest, graphs, routes)
    kept = _kept(package.manifest, manifest) - contents.keys()
    contents |= {name: package.read(name) for name in sorted(kept)}
    return manifest, contents


def _half(package: Package) -> tuple[str, GraphFiles]:
    """The file of weights of the fp16 graphs, which INT8 graphs share, and what it holds."""
    found = [graph for graph in package.manifest.graphs if graph.precision == "fp16"]
    files = {graph.weights for graph in found}
    if len(files) != 1:
        raise RareTrtError(
            f"{package.folder}: has {len(files)} files of fp16 weights; expected one, which INT8 "
            "graphs can share: build the package again from its checkpoint"
        )
    (weights,) = files
    graphs = tuple(package.read(graph.file) for graph in found)
    return weights, GraphFiles(graphs, package.read(weights))


def _manifest(
    old: Manifest, graphs: Sequence[GraphEntry], routes: Sequence[_Calibrated]
) -> Manifest:
    """`old` with these INT8 graphs. Engines of the graphs whose file of weights changes are left
    out: they would be engines of other graphs."""
    bounds = {name: more for one in routes for name, more in one.bounds.items()}
    return replace(
        old,
        graphs=(*(graph for graph in old.graphs if graph.precision != "int8"), *graphs),
        engines=tuple(engine for engine in old.engines if engine.precision == "fp32"),
        golden=tuple(_bounded(vector, bounds[vector.scan]) for vector in old.golden),
        calibration=tuple(one.entry for one in routes),
    )


def _bounded(vector: GoldenEntry, more: Mapping[Arithmetic, float]) -> GoldenEntry:
    known = {n: b for n, b in vector.max_disagreement.items() if n not in LEAST_BOUND}
    return replace(vector, max_disagreement={**known, **more})


def _kept(old: Manifest, new: Manifest) -> set[str]:
    """The files of `old` but those of its INT8, its tables, and engines that `new` leaves out."""
    left = {
        name
        for graph in old.graphs
        if graph.precision == "int8"
        for name in (graph.file, graph.weights)
    }
    left |= {entry.table for entry in old.calibration}
    engines = {engine.file for engine in new.engines}
    left |= {name for name in old.files if name.startswith("engines/") and name not in engines}
    return set(old.files) - left


def _cases(manifest: Manifest, data: Path) -> tuple[list[Case], list[Case]]:
    """Scans that the network was trained on, and scans kept back; all, where one kind is absent."""
    files = find_cases(data)
    held = set(manifest.model.training.validation_cases)
    seen = [one for one in files if one.name not in held][: RANGE_SCANS + SEARCH_SCANS]
    kept_back = [one for one in files if one.name in held][:PROOF_SCANS]
    counts = len(manifest.model.channels), len(manifest.model.labels)
    return load_cases(seen or kept_back, *counts), load_cases(kept_back or seen, *counts)


def _route(
    package: Package,
    entry: RouteEntry,
    seen: Sequence[Case],
    kept_back: Sequence[Case],
    dice_budget: float,
    cache: Cache,
) -> _Calibrated:
    manifest = package.manifest
    graph = package.graph(entry.index, "fp32")
    model = load_graph(package.read(graph.file), package.read(graph.weights))
    budget = Budget(dice_budget if entry.index < FINE_ROUTES else min(1.0, 2.0 * dice_budget))
    band = [
        prepare_case(manifest, entry, case, relative)
        for case, relative in zip(seen[-RANGE_SCANS:], cycle(BAND))
    ]
    scans = [inputs for sample in band for inputs in sample_inputs(sample)]
    digest = sha256(b"".join(array.tobytes() for scan in scans for array in scan.values()))
    ranges = {
        method: _ranges(model, manifest.graph_sha256(graph), method, scans, digest, cache)
        for method in METHODS
    }
    trials = _trials(manifest, entry, model, seen[:SEARCH_SCANS])
    stricter = replace(budget, agreement=SEARCH_AGREEMENT, moved=SEARCH_SHARE * budget.moved)
    outcome = search(model, ranges, trials, stricter, bf16=_has_bf16())
    typed = int8_model(model, ranges[outcome.method], outcome.names) if outcome.names else None
    proof = _trials(manifest, entry, model, kept_back)
    graphs: dict[Precision, ModelProto] = {} if typed is None else {"int8": typed}
    graphs["fp16"] = fp16_model(model)
    variants = _variants(graphs, proof, budget)
    outcome, graphs = _proven(outcome, graphs, variants)
    variants = [v for v in variants if graph_precision(v.arithmetic) in graphs]
    return _Calibrated(
        entry=CalibrationEntry(
            route=entry.index,
            method=outcome.method,
            scans=len(band),
            scans_sha256=digest,
            dice_budget=budget.dice,
            convolutions=len(convolutions(model)),
            int8_convolutions=outcome.names,
            reason=outcome.reason,
            table=f"calibration/route{entry.index}.csv",
            measured_scans=len(kept_back),
            variants=tuple(variants),
        ),
        model=graphs.get("int8"),
        table=outcome.table(),
        bounds=_bounds(package, entry.index, graphs, variants),
    )


def _trials(
    manifest: Manifest, entry: RouteEntry, model: ModelProto, cases: Sequence[Case]
) -> Trials:
    """Scans at the spacing of the route, and the same ones far from zero."""
    samples, far = (
        [prepare_case(manifest, entry, case, far=far) for case in cases] for far in (0.0, FAR)
    )
    return Trials(model, samples, far, len(manifest.model.labels))


def _ranges(
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
    ranges = activation_ranges(model, scans, method)
    cache.store(np.array([ranges[name] for name in names]).tobytes(), *key)
    return ranges


def _has_bf16() -> bool:
    return "BF16" in openvino_facts().capabilities


def _variants(
    graphs: Mapping[Precision, ModelProto], proof: Trials, budget: Budget
) -> list[Variant]:
    """Every way this CPU can run `graphs` that holds the budget, fastest first."""
    found = []
    for precision, graph in graphs.items():
        for bf16 in (False, True) if _has_bf16() else (False,):
            score = proof.score(graph, bf16=bf16)
            if budget.holds(score):
                found.append(_variant(arithmetic(precision, bf16=bf16), score))
    return sorted(found, key=lambda variant: -variant.speed)


def _variant(computed: Arithmetic, score: Score) -> Variant:
    return Variant(
        computed, round(score.dice_lost, 6), round(score.agreement, 6), round(score.speed, 3)
    )


def _proven(
    outcome: Outcome, graphs: dict[Precision, ModelProto], variants: Sequence[Variant]
) -> tuple[Outcome, dict[Precision, ModelProto]]:
    """The outcome of the search after the proof on scans it has not seen, and what is left."""
    if "int8" not in graphs:
        return outcome, graphs
    speeds = {
        precision: max(
            (v.speed for v in variants if graph_precision(v.arithmetic) == precision), default=0.0
        )
        for precision in ("int8", "fp16")
    }
    if speeds["int8"] == 0.0:
        reason = "INT8 held the budget on the scans of the search, and not on those kept back"
    elif speeds["int8"] < LEAST_GAIN * speeds["fp16"]:
        gain = speeds["int8"] / speeds["fp16"]
        reason = f"INT8 runs at {gain:.2f} times the speed of fp16"
    else:
        return outcome, graphs
    left = dict(graphs)
    del left["int8"]
    return replace(outcome, names=(), score=None, reason=reason), left


def _bounds(
    package: Package,
    route: int,
    graphs: Mapping[Precision, ModelProto],
    variants: Sequence[Variant],
) -> dict[str, dict[Arithmetic, float]]:
    """Per golden vector of `route` how many labels each variant may give otherwise."""
    bounded = {variant.arithmetic for variant in variants} & set(LEAST_BOUND)
    if "int8" in graphs:
        # Engines are built from the graph whether or not a CPU gains by it.
        bounded.add("int8")
    runs = {
        computed: OpenVinoRun(
            graphs[graph_precision(computed)].SerializeToString(), bf16=needs_bf16(computed)
        )
        for computed in sorted(bounded)
    }
    return {
        vector.entry.scan: {
            computed: max(LEAST_BOUND[computed], TIMES_SEEN * vector.disagreement(run))
            for computed, run in runs.items()
        }
        for vector in read_golden_vectors(package, route)
    }
