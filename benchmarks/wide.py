"""What the benchmarks of large volumes run: packages without a limit on the field of view, and
scans of any size made from real ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from rare_trt import Scan
from rare_trt.backends import Arithmetic
from rare_trt.building.package_from_checkpoint import (
    field_of_view,
    graph_contents,
    manifest_of,
    typed_graphs,
)
from rare_trt.calibration.golden import golden_vectors
from rare_trt.evaluation.cases import Case
from rare_trt.package.reading import Package, open_package
from rare_trt.package.writing import write_package
from rare_trt.scan.geometry import Array, Shape
from rare_trt.scan.gz import compress
from rare_trt.training.checkpoint import Checkpoint, TrainingFacts
from rare_trt.training.network import NetworkConfig, RareUNet
from rare_trt.training.recipe import Recipe

LARGEST_MM = (1e4, 1e4, 1e4)


def wide_package(folder: Path, computed: Arithmetic) -> Package:
    """The shipped package for any field of view, made to compute in `computed`."""
    package = open_package("hippocampus")
    manifest = package.manifest
    limits = replace(manifest.model.field_of_view_mm, max=LARGEST_MM)
    calibration = tuple(
        replace(entry, variants=tuple(v for v in entry.variants if v.arithmetic == computed))
        for entry in manifest.calibration
    )
    left = [graph for graph in manifest.graphs if computed == "fp32" and graph.precision == "fp16"]
    manifest = replace(
        manifest,
        model=replace(manifest.model, field_of_view_mm=limits),
        calibration=calibration,
        graphs=tuple(graph for graph in manifest.graphs if graph not in left),
    )
    contents = {name: package.read(name) for name in package.manifest.files}
    return write_package(folder, manifest, contents, overwrite=False)


def mirrored(voxels: Array, shape: Shape) -> Array:
    """`voxels` [i, j, k], mirrored at their borders until they fill `shape`, or cut to it."""
    pad = [(0, max(0, n - m)) for n, m in zip(shape, voxels.shape, strict=True)]
    i, j, k = shape
    filled: Array = np.pad(voxels, pad, mode="symmetric")[:i, :j, :k]
    return filled


def large_scan(real: Scan, shape: Shape, spacing_mm: float, path: Path) -> None:
    """Writes `real`, mirrored at its borders until it fills `shape`, as a scan of int16 with voxels
    of `spacing_mm`."""
    voxels = mirrored(real.volume.voxels, shape).astype(np.int16)
    affine = real.volume.grid.regridded((spacing_mm,) * 3, shape).affine
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, 1)
    path.write_bytes(compress(image.to_bytes()))


def four_channel_package(folder: Path, real: Scan) -> Package:
    """A small network of random weights for scans of four channels like `real`, of any size."""
    torch.manual_seed(0)
    network = NetworkConfig(depth=3, filters=4, gate_blocks=1, channels=4, classes=4, routes=1)
    recipe = Recipe(
        name="four",
        task="timing",
        labels=("background", "one", "two", "three"),
        channels=("T1", "T1c", "T2", "FLAIR"),
        data_source="none",
        data_licence="none",
        network=network,
    )
    view = (32.0, 32.0, 32.0)
    volumes = ((0.0, 1e9),) * 3
    facts = TrainingFacts(1, (), view, view, view, volumes, 1, ((0.0, 0.0, 0.0),))
    checkpoint = Checkpoint(RareUNet(network).eval(), recipe, facts)
    voxels = np.moveaxis(real.volume.voxels, 3, 0).astype(np.float32)
    case = Case("real", voxels, np.zeros(voxels.shape[1:], np.uint8), real.volume.grid)
    limits = field_of_view(facts, recipe.base_spacing_mm)
    golden = golden_vectors(checkpoint, [case], limits)
    manifest = manifest_of(folder.stem, checkpoint, limits, golden)
    wide = replace(manifest.model, field_of_view_mm=replace(limits, max=LARGEST_MM))
    contents = {**graph_contents(typed_graphs(checkpoint)), **golden.files}
    return write_package(folder, replace(manifest, model=wide), contents, overwrite=False)


def stacked(channels: list[Path], path: Path) -> None:
    """Writes the scans `channels`, which lie on one grid, as one scan of as many channels."""
    images = [nib.load(channel) for channel in channels]
    voxels = np.stack([np.asanyarray(image.dataobj) for image in images], axis=-1)
    image = nib.Nifti1Image(voxels, images[0].affine)
    path.write_bytes(compress(image.to_bytes()))
