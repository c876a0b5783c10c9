"""A package from a checkpoint: export, check against the network, calibrate, write."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from rare_trt.backends import Precision
from rare_trt.building.manifest_from_checkpoint import (
    UNCALIBRATED,
    WEIGHTS,
    field_of_view_from_facts,
    graph_path,
    manifest_from_checkpoint,
)
from rare_trt.building.model_card import MODEL_CARD, card_from_manifest
from rare_trt.calibration.fp16 import fp16_from_float32
from rare_trt.calibration.golden import make_golden_vectors
from rare_trt.calibration.package_calibration import (
    DICE_BUDGET,
    check_draft,
    check_sessions,
    compute_calibration,
)
from rare_trt.calibration.progress import Steps
from rare_trt.calibration.route_calibration import count_steps
from rare_trt.calibration.training_distribution import (
    MAX_CASES,
    measure_label_distribution,
    measure_training_distribution,
)
from rare_trt.errors import AccuracyWarning, BackendError, RareTrtError
from rare_trt.evaluation.cases import Case, check_cases, find_cases, load_cases
from rare_trt.evaluation.verification import find_sessions
from rare_trt.export.agreement import Agreement, compare_with_network
from rare_trt.export.graph_files import GraphFiles, files_from_models, load_graph
from rare_trt.export.onnx_from_route import onnx_from_route
from rare_trt.package.manifest import Manifest
from rare_trt.package.reading import MIN_VALIDATION_DICE, Package, describe_unsegmented
from rare_trt.package.writing import refuse_folder, write_package
from rare_trt.sessions.openvino import OpenVinoSession
from rare_trt.sessions.session import INPUT_NAMES, Inputs
from rare_trt.storage.cache import Cache
from rare_trt.training.checkpoint import Checkpoint, load_checkpoint
from rare_trt.training.downsampling import pad_to_multiple
from rare_trt.training.inputs import downsampled_inputs
from rare_trt.training.recipe import Recipe

MAX_CHECK_CASES: Final = 24

# Steps of a build besides the checks of golden vectors and the calibration: graphs, golden vectors,
# training distribution, agreement with the network, distribution of labels.
OTHER_STEPS: Final = 5


def build_package(
    checkpoint_folder: Path, data: Path, out: Path, *, overwrite: bool, int8: bool = True
) -> tuple[Package, list[Agreement]]:
    """Exports and checks the network of a checkpoint, calibrates it unless `int8` is false, and
    writes the package `out`.

    `data` holds labelled scans; those held out from training are preferred for the check and the
    golden vectors. Returns the package and the agreement of each route's graph with the network;
    labels that the network hardly segments are an AccuracyWarning. Raises RareTrtError for an
    unfinished checkpoint and BackendError where a graph's labels differ from the network's, or a
    precision does not reproduce the golden vectors here, with nothing written.
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
    _warn_unsegmented(checkpoint)
    with (
        tempfile.TemporaryDirectory(prefix="rare-trt-") as folder,
        Steps("building", len(UNCALIBRATED) * recipe.network.routes + OTHER_STEPS) as steps,
    ):
        with steps.one("graphs"):
            graphs = graphs_from_checkpoint(checkpoint)
        if int8:
            fp32 = graphs["fp32"]
            steps.expect(count_steps([load_graph(one, fp32.weights) for one in fp32.graphs]))
        view = field_of_view_from_facts(facts, recipe.base_spacing_mm)
        with steps.one("golden vectors"):
            golden = make_golden_vectors(checkpoint, cases, view)
        manifest = manifest_from_checkpoint(out.stem, checkpoint, view, golden)
        with steps.one("training distribution"):
            training = load_training_cases(data, manifest)
            seen = measure_training_distribution(training, manifest.model, manifest.routes, recipe)
        manifest = replace(manifest, model=replace(manifest.model, seen=seen))
        card = card_from_manifest(manifest, recipe)
        contents = {MODEL_CARD: card, **contents_from_graphs(graphs), **golden.files}
        draft = write_package(Path(folder) / out.name, manifest, contents, overwrite=False)
        cache = Cache(Path(folder) / "cache")
        with steps.one("agreement with the network"):
            agreements = check_against_network(draft, checkpoint, cases, cache)
        differing = [str(result) for result in agreements if not result.within_bounds]
        if differing:
            raise BackendError(
                f"the exported graphs do not give the network's labels ({'; '.join(differing)}); "
                "no package was written: report the versions of torch, onnx and openvino"
            )
        check_sessions(draft, find_sessions(draft, cache), steps)
        if int8:
            manifest, contents = compute_calibration(draft, data, DICE_BUDGET, cache, steps)
        with steps.one("distribution of labels"):
            labels, volumes = measure_label_distribution(draft, training, recipe)
        model = replace(manifest.model, label_distribution=labels, volume_range_mm3=volumes)
        manifest = replace(manifest, model=model)
        if int8:
            check_draft(manifest, contents, cache, steps)
    return write_package(out, manifest, contents, overwrite=overwrite), agreements


def load_check_cases(data: Path, checkpoint: Checkpoint) -> list[Case]:
    """The cases of `data` that were held out from training; all where there are none.

    Raises ScanError with the faults of all cases of `data`, which later steps read.
    """
    files = find_cases(data)
    held_out = [case for case in files if case.name in checkpoint.facts.validation]
    recipe, network = checkpoint.recipe, checkpoint.recipe.network
    rules = network.channels, network.classes, recipe.intensity
    check_cases(files, *rules)
    return load_cases((held_out or files)[:MAX_CHECK_CASES], *rules)


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
    for route in range(checkpoint.recipe.network.routes):
        session = OpenVinoSession(package, package.graph(route, "fp32"), cache)
        scans = [_inputs_from_case(case, route, checkpoint.recipe) for case in cases]
        found.append(compare_with_network(checkpoint.network, route, session, scans))
    return found


def _inputs_from_case(case: Case, route: int, recipe: Recipe) -> Inputs:
    """The graph's inputs for `case` averaged to the spacing of `route`, labels at base spacing."""
    factor = 2**route
    voxels, _ = pad_to_multiple(case.voxels, case.labels, factor)
    spacing, device = case.grid.spacing_mm, torch.device("cpu")
    inputs = downsampled_inputs(voxels, spacing, factor, route, recipe, device)
    return {
        name: tensor.numpy() for name, tensor in zip(INPUT_NAMES, inputs.tensors(), strict=True)
    }


def _warn_unsegmented(checkpoint: Checkpoint) -> None:
    """Gives an AccuracyWarning where the network does not segment a label."""
    unsegmented = describe_unsegmented(checkpoint.recipe.labels, checkpoint.facts.dice)
    if unsegmented is not None:
        warnings.warn(
            f"the network does not segment every label: Dice on the validation scans is below "
            f"{MIN_VALIDATION_DICE:g} ({unsegmented}). The package is built all the same, and its "
            "model card says so: train longer before you use it",
            AccuracyWarning,
            stacklevel=3,
        )


def load_training_cases(data: Path, manifest: Manifest) -> list[Case]:
    """The cases of `data` that were not held out, every n-th of many; all where there are none."""
    files = find_cases(data)
    held_out = manifest.model.training.validation_cases
    training = [case for case in files if case.name not in held_out] or files
    # Every n-th case, so that there are at most MAX_CASES.
    some = training[:: -(-len(training) // MAX_CASES)]
    model = manifest.model
    return load_cases(some, len(model.channels), len(model.labels), model.intensity)
