"""Which route a spacing chooses, and how the choice explains itself."""

from __future__ import annotations

from itertools import permutations
from math import log

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rare_trt.errors import ScanError
from rare_trt.plan.routing import Route, RouteDecision, choose_route

LIMITS_MM = (0.5, 12.0)
ROUTES = [Route(r, 2.0**r, (0.95, 1.05), 8 >> r, (64, 64, 64)) for r in range(4)]

quick = settings(max_examples=100, deadline=None)
spacings = st.tuples(*[st.floats(*LIMITS_MM)] * 3)


def choose(spacing: tuple[float, float, float], forced: int | None = None) -> RouteDecision:
    return choose_route(spacing, ROUTES, LIMITS_MM, forced)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.spacing_mm:g}mm")
def test_each_routes_own_spacing_chooses_it(route: Route) -> None:
    s = route.spacing_mm
    decision = choose((s, s, s))
    assert (decision.route, decision.forced) == (route.index, False)
    assert decision.spacing_ratio == pytest.approx(1.0)
    assert decision.factors == (1.0, 1.0, 1.0)
    assert decision.working_spacing_mm == (s, s, s)
    assert not decision.resampled


@pytest.mark.parametrize(
    ("spacing", "route"),
    [(1.2, 0), (1.79, 0), (1.81, 1), (3.59, 1), (3.61, 2), (7.19, 2), (7.21, 3)],
)
def test_between_two_routes_the_finer_one_answers_up_to_nine_tenths(
    spacing: float, route: int
) -> None:
    assert choose((spacing, spacing, spacing)).route == route


def test_anisotropic_scan_goes_by_its_root_mean_square() -> None:
    decision = choose((1.0, 1.0, 4.0))
    assert decision.effective_spacing_mm == pytest.approx(6.0**0.5)
    assert decision.route == 1
    assert decision.working_spacing_mm == (2.0, 2.0, 2.0)
    assert decision.factors == (2.0, 2.0, 0.5)
    assert decision.resampled


@quick
@given(spacings)
def test_the_coarsest_route_that_is_reached_is_taken(spacing: tuple[float, float, float]) -> None:
    decision = choose(spacing)
    chosen = ROUTES[decision.route]
    ratio = decision.effective_spacing_mm / chosen.spacing_mm
    assert decision.spacing_ratio == pytest.approx(ratio)
    assert decision.spacing_ratio >= 0.9 or chosen.index == 0
    assert decision.spacing_ratio < 1.8 or chosen.index == 3
    others = [r for r in ROUTES if r.index != chosen.index]
    ratios = {r.index: decision.effective_spacing_mm / r.spacing_mm for r in others}
    nearest = min(ratios, key=lambda index: abs(log(ratios[index])))
    assert decision.next_spacing_ratio == pytest.approx(ratios[nearest])
    assert decision.next_route in ratios


@quick
@given(spacings)
def test_axis_order_does_not_matter(spacing: tuple[float, float, float]) -> None:
    decision = choose(spacing)
    for order in permutations(range(3)):
        i, j, k = (spacing[axis] for axis in order)
        other = choose((i, j, k))
        assert other.effective_spacing_mm == decision.effective_spacing_mm
        assert other.route == decision.route
        assert other.factors == tuple(decision.factors[axis] for axis in order)


@quick
@given(spacings)
def test_factors_lead_from_the_scans_to_the_working_spacing(
    spacing: tuple[float, float, float],
) -> None:
    decision = choose(spacing)
    for own, factor, working in zip(
        spacing, decision.factors, decision.working_spacing_mm, strict=True
    ):
        assert own * factor == pytest.approx(working)
        native = 0.95 <= own / ROUTES[decision.route].spacing_mm <= 1.05
        assert working == (own if native else ROUTES[decision.route].spacing_mm)
        assert (factor == 1.0) == (native or own == working)
    assert decision.resampled == (decision.factors != (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("spacing", "working"),
    [(0.95, 0.95), (1.05, 1.05), (0.949, 1.0), (1.051, 1.0)],
)
def test_native_band_includes_its_edges(spacing: float, working: float) -> None:
    """Inside the band a scan's voxels are taken as they are, axis by axis."""
    decision = choose((1.0, spacing, 1.0))
    assert decision.working_spacing_mm == (1.0, working, 1.0)
    assert decision.resampled == (spacing != working)


def test_decision_explains_itself() -> None:
    assert str(choose((1.0, 1.0, 1.0))) == (
        "scan at 1 x 1 x 1 mm -> route 0 (effective spacing 1 mm), not resampled"
    )
    assert str(choose((1.5, 1.5, 1.5))) == (
        "scan at 1.5 x 1.5 x 1.5 mm -> route 0 (effective spacing 1.5 mm), "
        "resampled by 0.667 x 0.667 x 0.667"
    )
    assert "(as requested)" in str(choose((1.5, 1.5, 1.5), forced=1))


@pytest.mark.parametrize("spacing", [(0.4, 1.0, 1.0), (1.0, 1.0, 12.5)])
def test_spacing_beyond_the_limits_is_refused(spacing: tuple[float, float, float]) -> None:
    with pytest.raises(ScanError) as error:
        choose(spacing)
    sentence = str(error.value)
    assert " x ".join(f"{s:g}" for s in spacing) in sentence
    assert "0.5 to 12 mm" in sentence
    assert "\n" not in sentence


def test_limits_themselves_are_accepted() -> None:
    assert choose((0.5, 0.5, 0.5)).route == 0
    assert choose((12.0, 12.0, 12.0)).route == 3


def test_forced_route_is_taken_and_the_nearest_other_is_named() -> None:
    decision = choose((1.0, 1.0, 1.0), forced=2)
    assert (decision.route, decision.forced) == (2, True)
    assert decision.spacing_ratio == pytest.approx(0.25)
    assert decision.next_route == 0
    assert decision.next_spacing_ratio == pytest.approx(1.0)
    assert decision.factors == (4.0, 4.0, 4.0)


def test_forced_route_that_the_package_lacks_is_refused() -> None:
    with pytest.raises(ScanError, match=r"route 7 .* 0, 1, 2, 3"):
        choose((1.0, 1.0, 1.0), forced=7)


def test_a_package_of_one_route_has_no_next_one() -> None:
    decision = choose_route((3.0, 3.0, 3.0), ROUTES[:1], LIMITS_MM)
    assert (decision.route, decision.next_route, decision.next_spacing_ratio) == (0, None, None)
