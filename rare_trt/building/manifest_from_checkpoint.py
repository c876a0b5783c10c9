"""The manifest of a package from a checkpoint: what it takes, its routes, graphs and origin."""

from __future__ import annotations

from importlib.metadata import version
from math import ceil
from typing import Final

import numpy as np

from rare_trt.backends import Precision
from rare_trt.calibration.golden import GoldenFiles
from rare_trt.package.manifest import (
    GraphEntry,
    Manifest,
    Model,
    Profile,
    RouteEntry,
    TrainingRecord,
)
from rare_trt.scan.field_of_view import FieldOfView
from rare_trt.scan.geometry import Shape, Triple
from rare_trt.training.checkpoint import Checkpoint, TrainingFacts
from rare_trt.training.recipe import Recipe

WEIGHTS: Final = "weights.bin"
UNCALIBRATED: Final[tuple[Precision, ...]] = ("fp32", "fp16")

# How far beyond the training data a field of view may be: training crops and pads as much.
SMALLEST_VIEW, LARGEST_VIEW = 0.6, 2.0

# Of the base spacing. Finer voxels than the training data's are averaged to it before the network.
FINEST = 0.5


def manifest_from_checkpoint(
    name: str, checkpoint: Checkpoint, view: FieldOfView, golden: GoldenFiles
) -> Manifest:
    """The manifest of the package `name`, without its files and its training distribution."""
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
        routes=tuple(_make_route_entry(recipe, route, view) for route in routes),
        graphs=tuple(
            GraphEntry(
                precision,
                route,
                graph_path(precision, f"route{route}.onnx"),
                graph_path(precision, WEIGHTS),
            )
            for precision in UNCALIBRATED
            for route in routes
        ),
        engines=(),
        golden=golden.entries,
        calibration=(),
        files={},
    )


def field_of_view_from_facts(facts: TrainingFacts, base_spacing_mm: float) -> FieldOfView:
    """The fields of view in mm that a package accepts, from those that it was trained on.

    The typical one, of boxes and static engines, is a whole number of voxels.
    """
    i, j, k = (float(max(1, round(mm / base_spacing_mm))) for mm in facts.typical_fov_mm)
    return FieldOfView(
        min=_scale(facts.smallest_fov_mm, SMALLEST_VIEW),
        typical=_scale((i, j, k), base_spacing_mm),
        max=_scale(facts.largest_fov_mm, LARGEST_VIEW),
    )


def graph_path(precision: Precision, name: str) -> str:
    """The path in the package of the file `name` of the graphs in `precision`."""
    return f"graphs/{precision}/{name}"


def _make_route_entry(recipe: Recipe, index: int, view: FieldOfView) -> RouteEntry:
    """Route `index` with the working shapes that follow from `view`."""
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


def _scale(size_mm: Triple, factor: float) -> Triple:
    i, j, k = np.round(np.array(size_mm) * factor, 3).tolist()
    return i, j, k


def _working_shape(size_mm: Triple, spacing_mm: float, multiple: int) -> Shape:
    i, j, k = (ceil(ceil(size / spacing_mm) / multiple) * multiple for size in size_mm)
    return i, j, k
