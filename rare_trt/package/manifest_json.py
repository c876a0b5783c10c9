"""manifest.json read, checked and written.

manifest.schema.json is the published description of the file. It is checked first, so that msgspec
builds the types of manifest.py from values of the right kind; then RULES are checked, which a
schema cannot express: entries that must agree with each other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache
from importlib import resources
from itertools import chain
from math import isfinite
from threading import Lock
from typing import Any, Final, TypeAlias

import msgspec

from rare_trt.backends import GRAPH_PRECISION
from rare_trt.constants import FORMAT_VERSION, MAX_INTEGER
from rare_trt.errors import PackageError
from rare_trt.package.manifest import MANIFEST, SIGNATURE, EngineEntry, GraphEntry, Manifest
from rare_trt.scan.out_of_distribution import CONTENT_NAMES, POSITION_NAMES, SHAPE_NAMES
from rare_trt.storage.files import sha256

FORMAT: Final = "rare-trt package"

# The versions of the format whose manifests end with a seal.
SEALED: Final = (4, 5)

# msgspec prepares a type on its first use, and lets other threads see it half done: two that open
# packages at once crashed the process (msgspec 0.22.0).
CONVERSION: Final = Lock()

# The first fault that a rule finds, in a few words, or None.
Rule: TypeAlias = Callable[[Manifest], str | None]


def json_from_manifest(manifest: Manifest) -> bytes:
    """The bytes of manifest.json in today's format, with its seal."""
    return json_with_seal({"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(manifest)})


def json_with_seal(values: Mapping[str, Any]) -> bytes:
    """`values` as the bytes of a manifest, their SHA-256 as its last entry."""
    body = json.dumps(values, indent=1, sort_keys=False).removesuffix("\n}").encode()
    return body + seal(body)


def seal(body: bytes) -> bytes:
    """What a manifest ends with after `body`: the SHA-256 of those very bytes, white space too."""
    return f',\n "sha256": "{sha256(body)}"\n}}\n'.encode()


SEAL_BYTES: Final = len(seal(b""))


def manifest_from_json(data: bytes, *, fits_schema: bool = False) -> Manifest:
    """The manifest in `data`; raises PackageError that names what is wrong.

    `fits_schema`: these very bytes were checked against the schema before.
    """
    try:
        values = json.loads(
            data.decode(), parse_constant=_refuse_constant, parse_float=_finite, parse_int=_bounded
        )
        # Halves of surrogate pairs can be escaped, but neither printed nor written.
        json.dumps(values, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise PackageError(
            f"manifest.json is not JSON ({error}); build the package again"
        ) from error
    if isinstance(values, dict):
        values = _upgrade(values, data)
    if not fits_schema:
        _check_schema(values)
    # Not strict: 8.0 is an integer to the schema, and must become one here.
    with CONVERSION:
        manifest = msgspec.convert(values, Manifest, strict=False)
    fault = first_fault(manifest)
    if fault is not None:
        raise PackageError(f"manifest.json contradicts itself ({fault}); build the package again")
    return manifest


def _upgrade(values: dict[str, Any], data: bytes) -> dict[str, Any]:
    """`values` in the newest format; refuses a newer one, and one whose seal is broken."""
    version = values.get("format_version")
    if isinstance(version, bool) or not isinstance(version, int | float):
        return values
    if version > FORMAT_VERSION:
        raise PackageError(
            f"the package has format version {version}; this rare-trt reads up to "
            f"{FORMAT_VERSION}: install a newer rare-trt"
        )
    if version in SEALED:
        _check_seal(data)
        # Version 5 added the distribution of labels, and changed nothing else.
        return {**values, "format_version": FORMAT_VERSION}
    if "sha256" in values:
        # One byte of the version would make a sealed manifest one that needs no seal.
        raise PackageError(
            f"{MANIFEST} has a seal, which format version {version} has not; it was damaged or "
            "changed by hand: install the package again"
        )
    # Version 2 added engines, version 3 INT8 and its calibration, version 4 the seal and the
    # training distribution, and they changed nothing else.
    if version == 1:
        values, version = {**values, "engines": []}, 2
    if version == 2:
        values, version = {**values, "calibration": []}, 3
    if version == 3:
        values = {**values, "format_version": FORMAT_VERSION, "sha256": sha256(data)}
    return values


def _check_seal(data: bytes) -> None:
    if data[-SEAL_BYTES:] != seal(data[:-SEAL_BYTES]):
        raise PackageError(
            f"{MANIFEST} does not end with the SHA-256 of what stands before; it was damaged or "
            "changed by hand: install the package again"
        )


def _check_schema(values: Any) -> None:
    from fastjsonschema import JsonSchemaValueException

    try:
        _validator()(values)
    except JsonSchemaValueException as error:
        raise PackageError(
            f"manifest.json does not fit its schema ({error.message}); build the package again"
        ) from error


@cache
def _validator() -> Callable[[Any], Any]:
    from fastjsonschema import compile as compile_schema

    validate: Callable[[Any], Any] = compile_schema(json.loads(schema_json()))
    return validate


def schema_json() -> bytes:
    """The published description of manifest.json."""
    return (resources.files("rare_trt.package") / "manifest.schema.json").read_bytes()


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _bounded(text: str) -> int:
    value = int(text)
    if abs(value) > MAX_INTEGER:
        raise ValueError(f"an integer of {len(text)} digits is too large")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(f"{text} is too large")
    return value


def first_fault(manifest: Manifest) -> str | None:
    """Why `manifest` contradicts itself, None where it does not.

    Rules run in order, so that a rule can rely on those before it.
    """
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


def _label_distribution_fits_labels_and_channels(manifest: Manifest) -> str | None:
    model = manifest.model
    labels, channels = len(model.labels) - 1, len(model.channels)
    shape = labels * len(SHAPE_NAMES) + (labels - 1) * len(POSITION_NAMES)
    content = labels * channels * len(CONTENT_NAMES)
    for entry in model.label_distribution.routes if model.label_distribution else ():
        for gaussian, size in ((entry.shape, shape), (entry.content, content)):
            rows = [len(row) for row in gaussian.whitening]
            known = len(gaussian.mean), len(gaussian.deviation)
            if known != (size, size) or rows != list(range(1, size + 1)):
                return (
                    f"the distribution of labels on route {entry.route} does not have {size} "
                    "statistics"
                )
    return None


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
    _label_distribution_fits_labels_and_channels,
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
