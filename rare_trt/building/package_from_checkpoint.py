"""From a checkpoint to a package: the whole road on one screen."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from math import ceil
from pathlib import Path
from typing import Final

import numpy as np
import torch
from tqdm import tqdm

from rare_trt.backends import Precision
from rare_trt.building.model_card import MODEL_CARD, model_card
from rare_trt.calibration.calibrate import DICE_BUDGET, calibrated
from rare_trt.calibration.fp16 import fp16_model
from rare_trt.calibration.golden import Golden, golden_vectors
from rare_trt.calibration.training_distribution import MAX_CASES, seen
from rare_trt.errors import BackendError, RareTrtError
from rare_trt.evaluation.cases import Case, find_cases, load_cases
from rare_trt.export.agreement import Agreement, agreement
from rare_trt.export.onnx_from_route import GraphFiles, graph_files, onnx_from_route
from rare_trt.package.manifest import (
    GraphEntry,
    Manifest,
    Model,
    Profile,
    RouteEntry,
    TrainingRecord,
)
from rare_trt.package.reading import Package
from rare_trt.package.writing import refuse_folder, write_package
from rare_trt.scan.field_of_view import FieldOfView
from rare_trt.scan.geometry import Shape, Triple
from rare_trt.sessions.openvino import OpenVinoSession
from rare_trt.sessions.session import INPUT_NAMES, Inputs
from rare_trt.storage.cache import Cache
from rare_trt.training.checkpoint import Checkpoint, TrainingFacts, load_checkpoint
from rare_trt.training.downsampling import pad_to_multiple
from rare_trt.training.inputs import downsampled_inputs
from rare_trt.training.recipe import Recipe

WEIGHTS: Final = "weights.bin"
UNCALIBRATED: Final[tuple[Precision, ...]] = ("fp32", "fp16")

# How far beyond the training data a field of view may be: training crops and pads as much.
SMALLEST_VIEW, LARGEST_VIEW = 0.6, 2.0

# Relative to the base spacing. Finer voxels than trained on are averaged to it before the network
# sees them.
FINEST = 0.5

MAX_PROOF_CASES: Final = 24


def build_package(
    checkpoint_folder: Path, data: Path, out: Path, *, overwrite: bool
) -> tuple[Package, list[Agreement]]:
    """Exports, proves and writes the package `out`; gives it and the proof of each route.

    `data` holds labelled scans; those kept back from training are preferred for the proof and
    the golden vectors. Raises BackendError, with nothing written, where a graph's labels are not
    the network's.
    """
    refuse_folder(out, overwrite=overwrite)
    checkpoint = load_checkpoint(checkpoint_folder)
    facts, epochs = checkpoint.facts, checkpoint.recipe.epochs
    if facts.epochs < epochs or not facts.dice:
        raise RareTrtError(
            f"{checkpoint_folder}: the training stopped after {facts.epochs} of {epochs} epochs, "
            "not validated; expected a finished run: run `rare-trt train` again to go on"
        )
    cases = proof_cases(data, checkpoint)
    graphs = typed_graphs(checkpoint)
    view = field_of_view(checkpoint.facts, checkpoint.recipe.base_spacing_mm)
    golden = golden_vectors(checkpoint, cases, view)
    manifest = manifest_of(out.stem, checkpoint, view, golden)
    manifest = replace(manifest, model=with_seen(manifest, data, checkpoint.recipe))
    card = model_card(manifest, checkpoint.recipe)
    contents = {MODEL_CARD: card, **graph_contents(graphs), **golden.files}
    with tempfile.TemporaryDirectory(prefix="rare-trt-") as folder:
        draft = write_package(Path(folder) / out.name, manifest, contents, overwrite=False)
        cache = Cache(Path(folder) / "cache")
        agreements = prove(draft, checkpoint, cases, cache)
        if all(result.holds for result in agreements):
            manifest, contents = calibrated(draft, data, DICE_BUDGET, cache)
    broken = [str(result) for result in agreements if not result.holds]
    if broken:
        raise BackendError(
            f"the exported graphs do not answer as the network does ({'; '.join(broken)}); "
            "no package was written: report the versions of torch, onnx and openvino"
        )
    return write_package(out, manifest, contents, overwrite=overwrite), agreements


def typed_graphs(checkpoint: Checkpoint) -> dict[Precision, GraphFiles]:
    """Every route's graph in the precisions that need no calibration."""
    network = checkpoint.network
    fp32 = [onnx_from_route(network, route) for route in range(network.config.routes)]
    fp16 = [fp16_model(model) for model in fp32]
    return {"fp32": graph_files(fp32, WEIGHTS), "fp16": graph_files(fp16, WEIGHTS)}


def proof_cases(data: Path, checkpoint: Checkpoint) -> list[Case]:
    """Kept-back cases of `data` where it has them, else its first ones."""
    files = find_cases(data)
    kept_back = [case for case in files if case.name in checkpoint.facts.validation]
    network = checkpoint.recipe.network
    return load_cases((kept_back or files)[:MAX_PROOF_CASES], network.channels, network.classes)


def with_seen(manifest: Manifest, data: Path, recipe: Recipe) -> Model:
    """The manifest's model, and what the scans of `data` look like that were not kept back."""
    files = find_cases(data)
    held = manifest.model.training.validation_cases
    shown = [case for case in files if case.name not in held] or files
    some = shown[:: -(-len(shown) // MAX_CASES)]
    cases = load_cases(some, recipe.network.channels, recipe.network.classes)
    return replace(manifest.model, seen=seen(cases, manifest.model, manifest.routes, recipe))


def prove(
    package: Package, checkpoint: Checkpoint, cases: Sequence[Case], cache: Cache
) -> list[Agreement]:
    """The agreement of every route's graph with the network on `cases`."""
    found = []
    for route in tqdm(range(checkpoint.recipe.network.routes), "proving", unit="route"):
        session = OpenVinoSession(package, package.graph(route, "fp32"), cache)
        scans = [proof_inputs(case, route, checkpoint.recipe) for case in cases]
        found.append(agreement(checkpoint.network, route, session, scans))
    return found


def proof_inputs(case: Case, route: int, recipe: Recipe) -> Inputs:
    """What the graph of `route` takes for `case` averaged to the route's spacing, answered at
    base spacing."""
    voxels, _ = pad_to_multiple(case.voxels, case.labels, 2**route)
    inputs = downsampled_inputs(voxels, case.grid.spacing_mm, route, recipe, torch.device("cpu"))
    return {
        name: tensor.numpy() for name, tensor in zip(INPUT_NAMES, inputs.tensors(), strict=True)
    }


def graph_contents(graphs: Mapping[Precision, GraphFiles]) -> dict[str, bytes]:
    """The graphs' files under their names in the package."""
    files = {}
    for precision, typed in graphs.items():
        files[_graph_file(precision, WEIGHTS)] = typed.weights
        for route, graph in enumerate(typed.graphs):
            files[_graph_file(precision, f"route{route}.onnx")] = graph
    return files


def _graph_file(precision: Precision, name: str) -> str:
    return f"graphs/{precision}/{name}"


def manifest_of(name: str, checkpoint: Checkpoint, view: FieldOfView, golden: Golden) -> Manifest:
    """The manifest of the package `name`, but for its files."""
    recipe, facts = checkpoint.recipe, checkpoint.facts
    routes = range(recipe.network.routes)
    return Manifest(
        name=name,
        created_with=f"rare-trt {version('rare-trt')}",
        model=Model(
            task=recipe.task,
            labels=recipe.labels,
            channels=recipe.channels,
            base_spacing_mm=recipe.base_spacing_mm,
            spacing_limits_mm=(recipe.base_spacing_mm * FINEST, recipe.acquisition.spacing_mm[1]),
            intensity=recipe.intensity,
            field_of_view_mm=view,
            volume_range_mm3=facts.volume_range_mm3,
            network=recipe.as_json()["network"],
            training=TrainingRecord(
                data=recipe.data_source,
                licence=recipe.data_licence,
                cases=facts.cases,
                validation_cases=facts.validation,
                epochs=facts.epochs,
                dice=facts.dice,
            ),
        ),
        routes=tuple(route_entry(recipe, route, view) for route in routes),
        graphs=tuple(
            GraphEntry(
                precision,
                route,
                _graph_file(precision, f"route{route}.onnx"),
                _graph_file(precision, WEIGHTS),
            )
            for precision in UNCALIBRATED
            for route in routes
        ),
        engines=(),
        golden=golden.entries,
        calibration=(),
        files={},
    )


def route_entry(recipe: Recipe, index: int, view: FieldOfView) -> RouteEntry:
    """Route `index` with the working shapes that `view` leads to."""
    route = recipe.route(index)
    low, high = route.native_band
    return RouteEntry(
        index=index,
        spacing_mm=route.spacing_mm,
        native_band=route.native_band,
        multiple=route.multiple,
        profile=Profile(
            min=_working_shape(view.min, route.spacing_mm * high, route.multiple),
            typical=_working_shape(view.typical, route.spacing_mm, route.multiple),
            max=_working_shape(view.max, route.spacing_mm * low, route.multiple),
        ),
    )


def field_of_view(facts: TrainingFacts, base_spacing_mm: float) -> FieldOfView:
    """The fields of view a package accepts, from those it was trained on. The typical one, which
    boxes and static engines have, is of whole voxels."""
    i, j, k = (float(max(1, round(mm / base_spacing_mm))) for mm in facts.typical_fov_mm)
    return FieldOfView(
        min=_scaled(facts.smallest_fov_mm, SMALLEST_VIEW),
        typical=_scaled((i, j, k), base_spacing_mm),
        max=_scaled(facts.largest_fov_mm, LARGEST_VIEW),
    )


def _scaled(size_mm: Triple, factor: float) -> Triple:
    i, j, k = np.round(np.array(size_mm) * factor, 3).tolist()
    return i, j, k


def _working_shape(size_mm: Triple, spacing_mm: float, multiple: int) -> Shape:
    i, j, k = (ceil(ceil(size / spacing_mm) / multiple) * multiple for size in size_mm)
    return i, j, k
