"""The optimisation profile of a route: smallest, typical and largest shape of each input."""

from __future__ import annotations

from math import ceil

from rare_trt.constants import BUCKET
from rare_trt.package.manifest import Model, RouteEntry, Shapes
from rare_trt.scan.geometry import Shape


def profile_from_route(entry: RouteEntry, model: Model, *, static: bool) -> dict[str, Shapes]:
    """The profile of a route: smallest, typical and largest shape of the graph's seven inputs.

    With `static` all three are the typical one. A maximum costs GPU memory, so it is no larger than
    the scans that the package takes: the largest field of view at the finest spacing, and the
    largest working shape run in one piece.
    """
    typical = _buckets(model.field_of_view_mm.typical, entry.spacing_mm)
    output = _buckets(model.field_of_view_mm.typical, model.base_spacing_mm)
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
        shapes[f"out_{name}"] = ((BUCKET, low), (output[axis], mid), (largest[axis], high))
    if static:
        return {name: (typical, typical, typical) for name, (_, typical, _) in shapes.items()}
    return shapes


def _buckets(size_mm: tuple[float, float, float], spacing_mm: float) -> Shape:
    i, j, k = (ceil(size / spacing_mm / BUCKET) * BUCKET for size in size_mm)
    return i, j, k
