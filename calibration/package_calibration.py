"""INT8 graphs and CPU variants for a package: calibrates its routes and records the results."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from rare_trt.backends import Arithmetic
from rare_trt.calibration.progress import Steps
from rare_trt.calibration.route_calibration import (
    MIN_BOUNDS,
    RANGE_SCANS,
    SEARCH_SCANS,
    RouteCalibration,
    calibrate_route,
    count_steps,
)
from rare_trt.errors import RareTrtError
from rare_trt.evaluation.cases import Case, find_cases, load_cases
from rare_trt.evaluation.verification import check_session, find_sessions
from rare_trt.export.graph_files import GraphFiles, files_from_models, load_graph
from rare_trt.package.manifest import GoldenEntry, GraphEntry, Manifest
from rare_trt.package.reading import Package
from rare_trt.package.writing import refuse_changed, write_package
from rare_trt.sessions.candidates import Candidate
from rare_trt.storage.cache import Cache

# Mean Dice that INT8 may lose on the two finest routes; coarser ones, where a structure is a few
# voxels wide, may lose twice as much.
DICE_BUDGET: Final = 0.003
FINE_ROUTES: Final = 2

# Scans held out from training that check the result of the search.
CHECK_SCANS: Final = 20


def calibrate_package(
    package: Package, data: Path, dice_budget: float, out: Path, *, overwrite: bool
) -> Package:
    """Writes `package` to `out` with INT8 graphs where they are within the Dice budget.

    `data` holds labelled scans: ranges and search use those that the network was trained on, the
    check of the result those held out. Raises RareTrtError, with nothing written, where the package
    or a scan cannot be used, or where the result does not reproduce its golden vectors here.
    """
    cache = Cache()
    fp32 = [package.graph(entry.index, "fp32") for entry in package.manifest.routes]
    models = [load_graph(package.read(one.file), package.read(one.weights)) for one in fp32]
    with Steps("calibrating", count_steps(models)) as steps:
        manifest, contents = compute_calibration(package, data, dice_budget, cache, steps)
        check_draft(manifest, contents, cache, steps)
    if out.exists() and out.samefile(package.folder):
        refuse_changed(package)
    return write_package(out, manifest, contents, overwrite=overwrite)


def compute_calibration(
    package: Package, data: Path, dice_budget: float, cache: Cache, steps: Steps
) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest and all files of `package`, calibrated on the labelled scans in `data`."""
    weights, fp16_files = _read_fp16_files(package)
    training_cases, held_out_cases = _load_cases(package.manifest, data)
    routes = [
        calibrate_route(
            package,
            entry,
            training_cases,
            held_out_cases,
            dice_budget if entry.index < FINE_ROUTES else min(1.0, 2.0 * dice_budget),
            cache,
            steps,
        )
        for entry in package.manifest.routes
    ]
    int8 = [(one.entry.route, one.model) for one in routes if one.model is not None]
    folder, _, weights_name = weights.rpartition("/")
    files = files_from_models([model for _, model in int8], weights_name, fp16_files)
    graphs = tuple(
        GraphEntry("int8", route, f"{folder}/route{route}_int8.onnx", weights) for route, _ in int8
    )
    contents = {graph.file: data for graph, data in zip(graphs, files.graphs, strict=True)}
    contents[weights] = files.weights
    contents |= {one.entry.table: one.table for one in routes}
    manifest = _update_manifest(package.manifest, graphs, routes)
    unchanged = _find_unchanged_files(package.manifest, manifest) - contents.keys()
    contents |= {name: package.read(name) for name in sorted(unchanged)}
    return manifest, contents


def check_draft(
    manifest: Manifest, contents: Mapping[str, bytes], cache: Cache, steps: Steps
) -> None:
    """Raises BackendError where the package of `manifest` and `contents`, written into a temporary
    folder, fails a machine's own check of its golden vectors in any precision."""
    with tempfile.TemporaryDirectory(prefix="rare-trt-") as folder:
        draft = write_package(Path(folder) / "draft.rare", manifest, contents, overwrite=False)
        sessions = find_sessions(draft, cache)
        steps.expect(len(sessions))
        check_sessions(draft, sessions, steps)


def check_sessions(draft: Package, sessions: Iterable[tuple[int, Candidate]], steps: Steps) -> None:
    """Raises BackendError where one of `sessions`, each with its route, fails the golden vectors of
    the package `draft`; each is one of `steps`."""
    for route, candidate in steps.each(sessions, "check of golden vectors"):
        check_session(draft, route, candidate)


def _read_fp16_files(package: Package) -> tuple[str, GraphFiles]:
    """The name of the weights of the fp16 graphs, which INT8 graphs share, and those files."""
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


def _load_cases(manifest: Manifest, data: Path) -> tuple[list[Case], list[Case]]:
    """Cases that the network was trained on, and cases held out; twice the same where `data` has
    one kind only."""
    files = find_cases(data)
    names = set(manifest.model.training.validation_cases)
    training = [one for one in files if one.name not in names][: RANGE_SCANS + SEARCH_SCANS]
    held_out = [one for one in files if one.name in names][:CHECK_SCANS]
    model = manifest.model
    rules = len(model.channels), len(model.labels), model.intensity
    # Together, so that the faults of all are reported at once.
    cases = load_cases([*training, *held_out], *rules)
    found = cases[: len(training)], cases[len(training) :]
    return found[0] or found[1], found[1] or found[0]


def _update_manifest(
    old: Manifest, graphs: Sequence[GraphEntry], routes: Sequence[RouteCalibration]
) -> Manifest:
    """`old` with these INT8 graphs, without engines of the graphs whose weights file changes."""
    bounds = {name: more for one in routes for name, more in one.bounds.items()}
    return replace(
        old,
        graphs=(*(graph for graph in old.graphs if graph.precision != "int8"), *graphs),
        engines=tuple(engine for engine in old.engines if engine.precision == "fp32"),
        golden=tuple(_update_bounds(vector, bounds[vector.scan]) for vector in old.golden),
        calibration=tuple(one.entry for one in routes),
    )


def _update_bounds(vector: GoldenEntry, bounds: Mapping[Arithmetic, float]) -> GoldenEntry:
    """`vector` with `bounds` in the place of those of an earlier calibration."""
    others = {n: b for n, b in vector.max_disagreement.items() if n not in MIN_BOUNDS}
    return replace(vector, max_disagreement={**others, **bounds})


def _find_unchanged_files(old: Manifest, new: Manifest) -> set[str]:
    """The files of `old` less its INT8 graphs, its tables, and engines that `new` leaves out."""
    gone = {
        name
        for graph in old.graphs
        if graph.precision == "int8"
        for name in (graph.file, graph.weights)
    }
    gone |= {entry.table for entry in old.calibration}
    engines = {engine.file for engine in new.engines}
    gone |= {name for name in old.files if name.startswith("engines/") and name not in engines}
    return set(old.files) - gone
