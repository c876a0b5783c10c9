"""Which route a scan takes: decided from its voxel spacing alone, and explained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum, log, sqrt

from rare_trt.constants import COARSER_FROM, SPACING_TOLERANCE
from rare_trt.errors import ScanError
from rare_trt.scan.geometry import Shape, Triple


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

    `effective_spacing_mm` is the one number the choice was made by. `factors` is working spacing
    over scan spacing per axis (1: not resampled, above 1: made coarser). `spacing_ratio` is
    effective over route spacing; `next_spacing_ratio` the same for `next_route`, the nearest other
    one.
    """

    route: int
    spacing_mm: Triple
    effective_spacing_mm: float
    working_spacing_mm: Triple
    factors: Triple
    spacing_ratio: float
    next_route: int | None
    next_spacing_ratio: float | None
    forced: bool

    @property
    def resampled(self) -> bool:
        """Whether the working grid has another spacing than the scan along some axis."""
        return self.factors != (1.0, 1.0, 1.0)

    def __str__(self) -> str:
        spacing = " x ".join(f"{s:.3g}" for s in self.spacing_mm)
        why = (
            "as requested"
            if self.forced
            else f"effective spacing {self.effective_spacing_mm:.3g} mm"
        )
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
    """The coarsest route that the scan's effective spacing reaches, else the finest one.

    The effective spacing is the root mean square over the axes; a route is reached at COARSER_FROM
    of its own spacing. The rule was chosen by measurement (docs/measurements/routes.md).

    Raises ScanError where an axis is finer or coarser than `limits_mm`, or where `forced` names a
    route that `routes` lacks.
    """
    _check_spacing(spacing_mm, limits_mm)
    effective = sqrt(fsum(s * s for s in spacing_mm) / 3)
    by_spacing = sorted(routes, key=lambda route: route.spacing_mm)
    if forced is None:
        reached = [r for r in by_spacing if COARSER_FROM * r.spacing_mm <= effective]
        chosen = reached[-1] if reached else by_spacing[0]
    else:
        chosen = _route_of(forced, routes)
    others = [route for route in by_spacing if route is not chosen]
    nearest = min(others, key=lambda r: abs(log(effective / r.spacing_mm)), default=None)
    working = chosen.working_spacing_mm(spacing_mm)
    i, j, k = (w / s for w, s in zip(working, spacing_mm, strict=True))
    return RouteDecision(
        route=chosen.index,
        spacing_mm=spacing_mm,
        effective_spacing_mm=effective,
        working_spacing_mm=working,
        factors=(i, j, k),
        spacing_ratio=effective / chosen.spacing_mm,
        next_route=None if nearest is None else nearest.index,
        next_spacing_ratio=None if nearest is None else effective / nearest.spacing_mm,
        forced=forced is not None,
    )


def _check_spacing(spacing_mm: Triple, limits_mm: tuple[float, float]) -> None:
    low, high = limits_mm
    if not all(
        low * (1 - SPACING_TOLERANCE) <= s <= high * (1 + SPACING_TOLERANCE) for s in spacing_mm
    ):
        spacing = " x ".join(f"{s:.4g}" for s in spacing_mm)
        raise ScanError(
            f"the voxel spacing is {spacing} mm; this package takes {low:g} to {high:g} mm "
            "along each axis: resample the scan, or use a package trained for it"
        )


def _route_of(index: int, routes: Sequence[Route]) -> Route:
    for route in routes:
        if route.index == index:
            return route
    known = ", ".join(str(route.index) for route in routes)
    raise ScanError(f"route {index} was requested; this package has {known}: choose one")
