"""A package for scans of three channels, and such a scan: for Python's tests and C++'s."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from rare_trt.building.manifest_from_checkpoint import (
    field_of_view_from_facts,
    manifest_from_checkpoint,
)
from rare_trt.building.package_from_checkpoint import contents_from_graphs, graphs_from_checkpoint
from rare_trt.calibration.golden import make_golden_vectors
from rare_trt.calibration.training_distribution import (
    measure_label_distribution,
    measure_training_distribution,
)
from rare_trt.evaluation.cases import Case
from rare_trt.package.reading import Package
from rare_trt.package.writing import write_package
from rare_trt.scan.geometry import Volume
from rare_trt.scan.nifti import read_scan
from rare_trt.training.checkpoint import Checkpoint, TrainingFacts
from rare_trt.training.network import NetworkConfig, RareUNet
from rare_trt.training.recipe import Recipe

NAMES = ("T1w", "FLAIR", "T2w")


def three_channel_scan(path: Path) -> Volume:
    """[i, j, k, channel] int16: the real scan at `path`, its gradient and its negative."""
    volume = read_scan(path).volume
    one = volume.voxels.astype(np.float64)
    gradient = np.linalg.norm(np.gradient(one), axis=0)
    channels = [one, gradient, one.max() - one]
    stacked = np.stack([1 + 200 * c / c.max() for c in channels], axis=-1)
    return Volume(stacked.astype(np.int16), volume.grid)


def three_channel_package(folder: Path, scan: Volume) -> Package:
    """A small network of random weights, which knows what the channels of `scan` look like."""
    torch.manual_seed(0)
    recipe = Recipe(
        task="test",
        labels=("background", "one", "two", "three"),
        channels=NAMES,
        data_source="none",
        data_licence="none",
        network=NetworkConfig(
            depth=2, filters=4, gate_blocks=1, channels=len(NAMES), classes=4, routes=1
        ),
    )
    grid = scan.grid
    facts = TrainingFacts(1, (), *[grid.extent_mm] * 3, ((0.0, 1e9),) * 3, 1, ((0.0,) * 3,))
    checkpoint = Checkpoint(RareUNet(recipe.network).eval(), recipe, facts)
    images = np.moveaxis(scan.voxels, 3, 0).astype(np.float32)
    case = Case("real", images, np.zeros(grid.shape, np.uint8), grid)
    view = field_of_view_from_facts(facts, recipe.base_spacing_mm)
    golden = make_golden_vectors(checkpoint, [case], view)
    manifest = manifest_from_checkpoint("three", checkpoint, view, golden)
    known = measure_training_distribution([case], manifest.model, manifest.routes, recipe)
    manifest = replace(manifest, model=replace(manifest.model, seen=known))
    contents = {**contents_from_graphs(graphs_from_checkpoint(checkpoint)), **golden.files}
    package = write_package(folder, manifest, contents, overwrite=True)
    labels, _ = measure_label_distribution(package, [case], recipe)
    model = replace(manifest.model, label_distribution=labels)
    return write_package(folder, replace(manifest, model=model), contents, overwrite=True)
