"""What a manifest's schema cannot say: entries that must agree with each other.

Each rule gives the first fault that it finds, in a few words, or None. They run in order, so that a
rule can rely on those before it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Final, TypeAlias

from rare_trt.backends import GRAPH_PRECISION
from rare_trt.package.manifest import (
    MANIFEST,
    SIGNATURE,
    EngineEntry,
    GraphEntry,
    Manifest,
)

Rule: TypeAlias = Callable[[Manifest], str | None]


def first_fault(manifest: Manifest) -> str | None:
    """Why `manifest` contradicts itself, None where it does not."""
    found = (rule(manifest) for rule in RULES)
    return next((fault for fault in found if fault is not None), None)


def _routes_are_distinct(manifest: Manifest) -> str | None:
    indices = _indices(manifest)
    return f"routes {indices} name one twice" if len(set(indices)) != len(indices) else None


def _routes_exist(manifest: Manifest) -> str | None:
    used = {entry.route for entry in _typed(manifest)}
    used |= {vector.route for vector in manifest.golden}
    used |= {entry.route for entry in manifest.calibration}
    indices = _indices(manifest)
    if used <= set(indices):
        return None
    return f"graphs, engines or golden vectors name a route that is not among {indices}"


def _files_are_not_the_manifest(manifest: Manifest) -> str | None:
    if manifest.files.keys().isdisjoint((MANIFEST, SIGNATURE)):
        return None
    return f"{MANIFEST} or {SIGNATURE} is among the files, which they describe"


def _files_are_listed(manifest: Manifest) -> str | None:
    named = chain(
        (name for graph in manifest.graphs for name in (graph.file, graph.weights)),
        (engine.file for engine in manifest.engines),
        (entry.table for entry in manifest.calibration),
        (name for vector in manifest.golden for name in (vector.scan, vector.labels)),
    )
    missing = sorted(set(named) - set(manifest.files))
    return f"{missing[0]} is named but not among the files" if missing else None


def _every_precision_has_a_golden_vector(manifest: Manifest) -> str | None:
    bounded = {(g.route, precision) for g in manifest.golden for precision in g.max_disagreement}
    missing = sorted({(entry.route, entry.precision) for entry in _typed(manifest)} - bounded)
    if not missing:
        return None
    route, precision = missing[0]
    return f"no golden vector for route {route} in {precision}"


def _every_golden_vector_bounds_its_route(manifest: Manifest) -> str | None:
    for vector in manifest.golden:
        needed = {one.precision for one in _typed(manifest) if one.route == vector.route}
        if not needed <= vector.max_disagreement.keys():
            return f"golden vector {vector.scan} has no bound for a precision of its route"
    return None


def _variants_have_graphs_and_bounds(manifest: Manifest) -> str | None:
    graphs = _graphs(manifest)
    for entry in manifest.calibration:
        vectors = [vector for vector in manifest.golden if vector.route == entry.route]
        for variant in entry.variants:
            if (entry.route, GRAPH_PRECISION[variant.arithmetic]) not in graphs:
                return f"route {entry.route} has a variant {variant.arithmetic} without its graph"
            if any(variant.arithmetic not in vector.max_disagreement for vector in vectors):
                return f"no bound for {variant.arithmetic} on route {entry.route}"
    return None


def _routes_are_calibrated_once(manifest: Manifest) -> str | None:
    routes = [entry.route for entry in manifest.calibration]
    return f"routes {routes} were calibrated twice" if len(set(routes)) != len(routes) else None


def _int8_graphs_are_calibrated(manifest: Manifest) -> str | None:
    calibrated = {entry.route for entry in manifest.calibration}
    int8 = {route for route, precision in _graphs(manifest) if precision == "int8"}
    if int8 <= calibrated:
        return None
    return f"route {min(int8 - calibrated)} has an INT8 graph without its calibration"


def _distribution_fits_the_channels(manifest: Manifest) -> str | None:
    seen, channels = manifest.model.seen, len(manifest.model.channels)
    if seen is None:
        return None
    per_channel = [len(seen.patterns), *(len(route.ranges) for route in seen.routes)]
    if all(found == channels for found in per_channel):
        return None
    return f"the training distribution is not there once per channel ({channels})"


def _every_label_has_a_volume_range(manifest: Manifest) -> str | None:
    ranges, labels = len(manifest.model.volume_range_mm3), len(manifest.model.labels) - 1
    return f"{ranges} volume ranges for {labels} labels" if ranges != labels else None


def _limits_are_in_order(manifest: Manifest) -> str | None:
    model = manifest.model
    pairs = [model.spacing_limits_mm, model.intensity.clip_percentiles]
    pairs += [entry.native_band for entry in manifest.routes]
    if all(low < high for low, high in pairs):
        return None
    return "a lower limit is not below its upper one"


def _weights_lie_beside_their_graph(manifest: Manifest) -> str | None:
    if all(_folder(g.file) == _folder(g.weights) for g in manifest.graphs):
        return None
    return "a graph and its weights lie in different folders"


RULES: Final[tuple[Rule, ...]] = (
    _routes_are_distinct,
    _routes_exist,
    _files_are_not_the_manifest,
    _files_are_listed,
    _every_precision_has_a_golden_vector,
    _every_golden_vector_bounds_its_route,
    _variants_have_graphs_and_bounds,
    _routes_are_calibrated_once,
    _int8_graphs_are_calibrated,
    _distribution_fits_the_channels,
    _every_label_has_a_volume_range,
    _limits_are_in_order,
    _weights_lie_beside_their_graph,
)


def _indices(manifest: Manifest) -> list[int]:
    return [entry.index for entry in manifest.routes]


def _typed(manifest: Manifest) -> list[GraphEntry | EngineEntry]:
    return [*manifest.graphs, *manifest.engines]


def _graphs(manifest: Manifest) -> set[tuple[int, str]]:
    return {(graph.route, graph.precision) for graph in manifest.graphs}


def _folder(name: str) -> str:
    return name.rpartition("/")[0]
