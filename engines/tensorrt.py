"""TensorRT engines from a route's graph: parse, profile, build.

The precision is in the graph, never in builder flags. TensorRT for RTX parses and builds on a
machine without a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any, TypeAlias

from rare_trt.errors import BackendError
from rare_trt.geometry import Shape
from rare_trt.manifest import Model, RouteEntry
from rare_trt.planning import BUCKET

Shapes: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def profile_shapes(entry: RouteEntry, model: Model) -> dict[str, Shapes]:
    """Smallest, typical and largest shape of each of the graph's seven inputs for a route."""
    typical = _buckets(model.field_of_view_mm.typical, entry.spacing_mm)
    answer = _buckets(model.field_of_view_mm.typical, model.base_spacing_mm)
    # The finest scan the package takes decides the largest image and the largest answer.
    largest = _buckets(model.field_of_view_mm.max, model.spacing_limits_mm[0])
    smallest = (BUCKET, BUCKET, BUCKET)
    working = entry.profile
    channels = len(model.channels)
    shapes: dict[str, Shapes] = {
        "image": ((1, channels, *smallest), (1, channels, *typical), (1, channels, *largest))
    }
    for axis, name in enumerate("ijk"):
        low, mid, high = working.min[axis], working.typical[axis], working.max[axis]
        shapes[f"in_{name}"] = ((low, BUCKET), (mid, typical[axis]), (high, largest[axis]))
        shapes[f"out_{name}"] = ((BUCKET, low), (answer[axis], mid), (largest[axis], high))
    return shapes


def engine_from_onnx(graph: Path, shapes: Mapping[str, Shapes]) -> bytes:
    """A serialized TensorRT for RTX engine from the ONNX file `graph` and one profile.

    Raises BackendError with the library's own words where it refuses to parse or to build.
    """
    try:
        import tensorrt_rtx as trt
    except ImportError as error:
        raise BackendError(
            "TensorRT for RTX is not installed: pip install 'rare-trt[rtx]'"
        ) from error
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        faults = "; ".join(parser.get_error(n).desc() for n in range(parser.num_errors))
        raise BackendError(f"{graph}: TensorRT cannot parse the graph ({faults})")
    config = builder.create_builder_config()
    config.add_optimization_profile(_profile(builder, graph, shapes))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError(f"{graph}: TensorRT built no engine; its log says why")
    return bytes(plan)


def _profile(builder: Any, graph: Path, shapes: Mapping[str, Shapes]) -> Any:
    profile = builder.create_optimization_profile()
    for name, (low, typical, high) in shapes.items():
        profile.set_shape(name, low, typical, high)
    if not profile:
        raise BackendError(f"{graph}: the optimisation profile contradicts itself: {shapes}")
    return profile


def _buckets(size_mm: tuple[float, float, float], spacing_mm: float) -> Shape:
    i, j, k = (ceil(size / spacing_mm / BUCKET) * BUCKET for size in size_mm)
    return i, j, k
