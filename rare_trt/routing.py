"""Which route answers a scan: decided from its voxel spacing alone, and explained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

from rare_trt.errors import ScanError
from rare_trt.geometry import Shape, Triple


@dataclass(frozen=True)
class Route:
    """An entry into the network, as far as geometry is concerned.

    `spacing_mm` is the spacing it was trained at, `native_band` the spacings (relative to that)
    it takes as they are, `multiple` what each working axis must be a multiple of, and
    `max_shape` the largest working shape it runs in one piece.
    """

    index: int
    spacing_mm: float
    native_band: tuple[float, float]
    multiple: int
    max_shape: Shape

    def working_spacing_mm(self, spacing_mm: Triple) -> Triple:
        """What a scan of `spacing_mm` is run at: per axis its own inside the native band."""
        low, high = self.native_band
        i, j, k = (s if low <= s / self.spacing_mm <= high else self.spacing_mm for s in spacing_mm)
        return i, j, k


@dataclass(frozen=True)
class RouteDecision:
    """The route taken for a scan and why.

    `factors` is working spacing over scan spacing per axis (1: not resampled, above 1: made
    coarser). `distance` is how far the scan's mean spacing is from the route's, as a ratio of at
    least 1, and `next_distance` the same for `next_route`, the nearest other one.
    """

    route: int
    spacing_mm: Triple
    mean_spacing_mm: float
    working_spacing_mm: Triple
    factors: Triple
    distance: float
    next_route: int | None
    next_distance: float | None
    forced: bool

    @property
    def resampled(self) -> bool:
        return self.factors != (1.0, 1.0, 1.0)

    def __str__(self) -> str:
        spacing = " x ".join(f"{s:.3g}" for s in self.spacing_mm)
        why = "as asked" if self.forced else f"mean spacing {self.mean_spacing_mm:.3g} mm"
        if self.resampled:
            how = "resampled by " + " x ".join(f"{f:.3g}" for f in self.factors)
        else:
            how = "not resampled"
        return f"scan at {spacing} mm -> route {self.route} ({why}), {how}"


def choose_route(
    spacing_mm: Triple,
    routes: Sequence[Route],
    limits_mm: tuple[float, float],
    forced: int | None = None,
) -> RouteDecision:
    """The route whose spacing is nearest, as a ratio, to the geometric mean of `spacing_mm`.

    Raises ScanError where an axis is finer or coarser than `limits_mm`, or where `forced` names a
    route that `routes` lacks.
    """
    low, high = limits_mm
    if not all(low <= s <= high for s in spacing_mm):
        spacing = " x ".join(f"{s:.4g}" for s in spacing_mm)
        raise ScanError(
            f"the voxel spacing is {spacing} mm; this package takes {low:g} to {high:g} mm "
            "along each axis: resample the scan, or use a package trained for it"
        )
    mean = exp(sum(log(s) for s in spacing_mm) / 3)
    near = sorted(routes, key=lambda route: abs(log(mean / route.spacing_mm)))
    if forced is not None:
        near.sort(key=lambda route: route.index != forced)
        if near[0].index != forced:
            known = ", ".join(str(route.index) for route in routes)
            raise ScanError(f"route {forced} was asked for; this package has {known}: choose one")
    distances = [exp(abs(log(mean / route.spacing_mm))) for route in near]
    working = near[0].working_spacing_mm(spacing_mm)
    i, j, k = (w / s for w, s in zip(working, spacing_mm, strict=True))
    return RouteDecision(
        route=near[0].index,
        spacing_mm=spacing_mm,
        mean_spacing_mm=mean,
        working_spacing_mm=working,
        factors=(i, j, k),
        distance=distances[0],
        next_route=near[1].index if len(near) > 1 else None,
        next_distance=distances[1] if len(near) > 1 else None,
        forced=forced is not None,
    )
