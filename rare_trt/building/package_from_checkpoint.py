"""A package from a checkpoint: export, check against the network, calibrate, write."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from tqdm import tqdm

from rare_trt.backends import Precision
from rare_trt.building.manifest_from_checkpoint import (
    WEIGHTS,
    field_of_view_from_facts,
    graph_path,
    manifest_from_checkpoint,
)
from rare_trt.building.model_card import MODEL_CARD, card_from_manifest
from rare_trt.calibration.fp16 import fp16_from_float32
from rare_trt.calibration.golden import make_golden_vectors
from rare_trt.calibration.package_calibration import DICE_BUDGET, compute_calibration
from rare_trt.calibration.training_distribution import (
    MAX_CASES,
    measure_label_distribution,
    measure_training_distribution,
)
from rare_trt.errors import BackendError, RareTrtError
from rare_trt.evaluation.cases import Case, find_cases, load_cases
from rare_trt.export.agreement import Agreement, compare_with_network
from rare_trt.export.graph_files import GraphFiles, files_from_models
from rare_trt.export.onnx_from_route import onnx_from_route
from rare_trt.package.manifest import Manifest
from rare_trt.package.reading import Package
from rare_trt.package.writing import refuse_folder, write_package
from rare_trt.sessions.openvino import OpenVinoSession
from rare_trt.sessions.session import INPUT_NAMES, Inputs
from rare_trt.storage.cache import Cache
from rare_trt.training.checkpoint import Checkpoint, load_checkpoint
from rare_trt.training.downsampling import pad_to_multiple
from rare_trt.training.inputs import downsampled_inputs
from rare_trt.training.recipe import Recipe

MAX_CHECK_CASES: Final = 24


def build_package(
    checkpoint_folder: Path, data: Path, out: Path, *, overwrite: bool
) -> tuple[Package, list[Agreement]]:
    """Exports and checks the network of a checkpoint, calibrates it, and writes the package `out`.

    `data` holds labelled scans; those held out from training are preferred for the check and the
    golden vectors. Returns the package and the agreement of each route's graph with the network.
    Raises RareTrtError for an unfinished checkpoint and BackendError where a graph's labels differ
    from the network's, with nothing written.
    """
    refuse_folder(out, overwrite=overwrite)
    checkpoint = load_checkpoint(checkpoint_folder)
    facts, recipe = checkpoint.facts, checkpoint.recipe
    if facts.epochs < recipe.epochs or not facts.dice:
        raise RareTrtError(
            f"{checkpoint_folder}: the training stopped after {facts.epochs} of {recipe.epochs} "
            "epochs, not validated; expected a finished run: run `rare-trt train` again to go on"
        )
    cases = load_check_cases(data, checkpoint)
    graphs = graphs_from_checkpoint(checkpoint)
    view = field_of_view_from_facts(facts, recipe.base_spacing_mm)
    golden = make_golden_vectors(checkpoint, cases, view)
    manifest = manifest_from_checkpoint(out.stem, checkpoint, view, golden)
    training = load_training_cases(data, manifest)
    seen = measure_training_distribution(training, manifest.model, manifest.routes, recipe)
    manifest = replace(manifest, model=replace(manifest.model, seen=seen))
    card = card_from_manifest(manifest, recipe)
    contents = {MODEL_CARD: card, **contents_from_graphs(graphs), **golden.files}
    with tempfile.TemporaryDirectory(prefix="rare-trt-") as folder:
        draft = write_package(Path(folder) / out.name, manifest, contents, overwrite=False)
        cache = Cache(Path(folder) / "cache")
        agreements = check_against_network(draft, checkpoint, cases, cache)
        differing = [str(result) for result in agreements if not result.within_bounds]
        if differing:
            raise BackendError(
                f"the exported graphs do not give the network's labels ({'; '.join(differing)}); "
                "no package was written: report the versions of torch, onnx and openvino"
            )
        manifest, contents = compute_calibration(draft, data, DICE_BUDGET, cache)
        labels, volumes = measure_label_distribution(draft, training, recipe)
        model = replace(manifest.model, label_distribution=labels, volume_range_mm3=volumes)
        manifest = replace(manifest, model=model)
    return write_package(out, manifest, contents, overwrite=overwrite), agreements


def load_check_cases(data: Path, checkpoint: Checkpoint) -> list[Case]:
    """The cases of `data` that were held out from training; all where there are none."""
    files = find_cases(data)
    held_out = [case for case in files if case.name in checkpoint.facts.validation]
    network = checkpoint.recipe.network
    return load_cases((held_out or files)[:MAX_CHECK_CASES], network.channels, network.classes)


def graphs_from_checkpoint(checkpoint: Checkpoint) -> dict[Precision, GraphFiles]:
    """Every route's graph in the precisions that need no calibration."""
    network = checkpoint.network
    fp32 = [onnx_from_route(network, route) for route in range(network.config.routes)]
    fp16 = [fp16_from_float32(model) for model in fp32]
    return {"fp32": files_from_models(fp32, WEIGHTS), "fp16": files_from_models(fp16, WEIGHTS)}


def contents_from_graphs(graphs: Mapping[Precision, GraphFiles]) -> dict[str, bytes]:
    """The graphs' files by their path in the package."""
    contents = {}
    for precision, files in graphs.items():
        contents[graph_path(precision, WEIGHTS)] = files.weights
        for route, graph in enumerate(files.graphs):
            contents[graph_path(precision, f"route{route}.onnx")] = graph
    return contents


def check_against_network(
    package: Package, checkpoint: Checkpoint, cases: Sequence[Case], cache: Cache
) -> list[Agreement]:
    """The agreement of every route's float32 graph with the network on `cases`."""
    found = []
    for route in tqdm(range(checkpoint.recipe.network.routes), "checking", unit="route"):
        session = OpenVinoSession(package, package.graph(route, "fp32"), cache)
        scans = [_inputs_from_case(case, route, checkpoint.recipe) for case in cases]
        found.append(compare_with_network(checkpoint.network, route, session, scans))
    return found


def _inputs_from_case(case: Case, route: int, recipe: Recipe) -> Inputs:
    """The graph's inputs for `case` averaged to the spacing of `route`, labels at base spacing."""
    voxels, _ = pad_to_multiple(case.voxels, case.labels, 2**route)
    inputs = downsampled_inputs(voxels, case.grid.spacing_mm, route, recipe, torch.device("cpu"))
    return {
        name: tensor.numpy() for name, tensor in zip(INPUT_NAMES, inputs.tensors(), strict=True)
    }


def load_training_cases(data: Path, manifest: Manifest) -> list[Case]:
    """The cases of `data` that were not held out, every n-th of many; all where there are none."""
    files = find_cases(data)
    held_out = manifest.model.training.validation_cases
    training = [case for case in files if case.name not in held_out] or files
    # Every n-th case, so that there are at most MAX_CASES.
    some = training[:: -(-len(training) // MAX_CASES)]
    return load_cases(some, len(manifest.model.channels), len(manifest.model.labels))
