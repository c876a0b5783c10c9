"""A package's manifest as types, read from and written to JSON.

manifest.schema.json is the published description of the file; it is checked first, so that the
types below are built from values of the right kind.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from math import isfinite
from typing import Any, Final, Literal, TypeAlias

from rare_trt.errors import PackageError
from rare_trt.files import sha256
from rare_trt.geometry import Shape, Triple
from rare_trt.intensity import IntensityRule
from rare_trt.routing import Route

FORMAT: Final = "rare-trt package"
FORMAT_VERSION: Final = 2

Precision: TypeAlias = Literal["fp32", "fp16"]
PRECISIONS: Final[tuple[Precision, ...]] = ("fp32", "fp16")

EngineBackend: TypeAlias = Literal["tensorrt", "tensorrt-rtx"]
ENGINE_BACKENDS: Final[tuple[EngineBackend, ...]] = ("tensorrt", "tensorrt-rtx")

HardwareCompatibility: TypeAlias = Literal["none", "ampere_plus", "same_compute_capability"]

# Smallest, typical and largest shape of an input.
Shapes: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

# Every integer of the file stands for itself as a float too.
MAX_INTEGER: Final = 1 << 53


@dataclass(frozen=True)
class FieldOfView:
    """Accepted fields of view per canonical axis in mm; `typical` is what --at cuts out."""

    min: Triple
    typical: Triple
    max: Triple


@dataclass(frozen=True)
class TrainingRecord:
    """Where the weights come from; `dice[route][label - 1]` was measured on validation cases."""

    data: str
    licence: str
    cases: int
    validation_cases: tuple[str, ...]
    epochs: int
    dice: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Model:
    """What the network answers, and for which scans."""

    task: str
    labels: tuple[str, ...]
    channels: tuple[str, ...]
    base_spacing_mm: float
    spacing_limits_mm: tuple[float, float]
    intensity: IntensityRule
    field_of_view_mm: FieldOfView
    volume_range_mm3: tuple[tuple[float, float], ...]
    network: Mapping[str, Any]
    training: TrainingRecord


@dataclass(frozen=True)
class Profile:
    """Working shapes of a route: smallest, typical, and the largest run in one piece."""

    min: Shape
    typical: Shape
    max: Shape


@dataclass(frozen=True)
class RouteEntry:
    """One route of the package."""

    index: int
    spacing_mm: float
    native_band: tuple[float, float]
    multiple: int
    profile: Profile

    def route(self) -> Route:
        return Route(self.index, self.spacing_mm, self.native_band, self.multiple, self.profile.max)


@dataclass(frozen=True)
class GraphEntry:
    """One route's graph at one precision; `weights` is its external data."""

    precision: Precision
    route: int
    file: str
    weights: str


@dataclass(frozen=True)
class BuilderOptions:
    """How an engine is built. The precision is none of these: it is in the graph.

    `workspace_mib` caps the scratch memory of any one layer, `optimization_level` is the library's
    0 (quick build) to 5, None is its own default. `version_compatible` engines run on later
    TensorRT releases of the same major version; they carry no host code. `static_shapes` builds
    for the typical shapes alone.
    """

    workspace_mib: int | None = None
    optimization_level: int | None = None
    hardware_compatibility: HardwareCompatibility = "none"
    version_compatible: bool = False
    tf32: bool = False
    static_shapes: bool = False


@dataclass(frozen=True)
class EngineEntry:
    """One route's engine: what it was made from, with what, and what it runs on.

    `graph_sha256` stands for graph and weights (Manifest.graph_sha256). `gpu` is the GPU it was
    built on, None where it was built without one. `compute_capabilities` lists those it is for.
    `profile` holds the smallest, typical and largest shape of each input.
    """

    backend: EngineBackend
    precision: Precision
    route: int
    file: str
    graph_sha256: str
    library: str
    platform: str
    gpu: str | None
    compute_capabilities: tuple[str, ...]
    options: BuilderOptions
    profile: Mapping[str, Shapes]


@dataclass(frozen=True)
class GoldenEntry:
    """A scan at a route's spacing and the labels the reference gives it, at base spacing."""

    route: int
    kind: str
    scan: str
    labels: str
    max_disagreement: Mapping[str, float]


@dataclass(frozen=True)
class FileEntry:
    """What a file of the package must be."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """The whole manifest. Paths are relative to the package's folder, with forward slashes."""

    name: str
    created_with: str
    model: Model
    routes: tuple[RouteEntry, ...]
    graphs: tuple[GraphEntry, ...]
    engines: tuple[EngineEntry, ...]
    golden: tuple[GoldenEntry, ...]
    files: Mapping[str, FileEntry]

    def graph_sha256(self, graph: GraphEntry) -> str:
        """One hash for a graph together with its weights."""
        digests = self.files[graph.file].sha256 + self.files[graph.weights].sha256
        return sha256(digests.encode())

    def to_json(self) -> bytes:
        values = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        return (json.dumps(values, indent=1, sort_keys=False) + "\n").encode()


def manifest_from_json(data: bytes) -> Manifest:
    """The manifest in `data`; raises PackageError that names what is wrong."""
    try:
        values = json.loads(
            data, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_bounded
        )
    except (ValueError, RecursionError) as error:
        raise PackageError(
            f"manifest.json is not JSON ({error}); build the package again"
        ) from error
    version = values.get("format_version") if isinstance(values, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise PackageError(
            f"the package has format version {version}; this rare-trt reads up to "
            f"{FORMAT_VERSION}: install a newer rare-trt"
        )
    if version == 1:
        # Version 2 added engines, and changed nothing else.
        values = {**values, "format_version": 2, "engines": []}
    _check_schema(values)
    manifest = _manifest(values)
    fault = _fault(manifest)
    if fault:
        raise PackageError(f"manifest.json contradicts itself ({fault}); build the package again")
    return manifest


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

    schema = (resources.files("rare_trt") / "manifest.schema.json").read_text()
    validate: Callable[[Any], Any] = compile_schema(json.loads(schema))
    return validate


def _manifest(values: dict[str, Any]) -> Manifest:
    model = values["model"]
    training = model["training"]
    return Manifest(
        name=values["name"],
        created_with=values["created_with"],
        model=Model(
            task=model["task"],
            labels=tuple(model["labels"]),
            channels=tuple(model["channels"]),
            base_spacing_mm=model["base_spacing_mm"],
            spacing_limits_mm=_pair(model["spacing_limits_mm"]),
            intensity=IntensityRule(
                _pair(model["intensity"]["clip_percentiles"]),
                model["intensity"]["foreground_share"],
            ),
            field_of_view_mm=FieldOfView(**_triples(model["field_of_view_mm"])),
            volume_range_mm3=tuple(_pair(pair) for pair in model["volume_range_mm3"]),
            network=model["network"],
            training=TrainingRecord(
                **training
                | {
                    "validation_cases": tuple(training["validation_cases"]),
                    "dice": tuple(tuple(row) for row in training["dice"]),
                }
            ),
        ),
        routes=tuple(
            RouteEntry(
                **entry
                | {
                    # JSON's 8.0 is an integer to the schema, and must be one here.
                    "index": int(entry["index"]),
                    "multiple": int(entry["multiple"]),
                    "native_band": _pair(entry["native_band"]),
                    "profile": Profile(**_shapes(entry["profile"])),
                }
            )
            for entry in values["routes"]
        ),
        graphs=tuple(GraphEntry(**entry) for entry in values["graphs"]),
        engines=tuple(_engine(entry) for entry in values["engines"]),
        golden=tuple(GoldenEntry(**entry) for entry in values["golden"]),
        files={
            name: FileEntry(entry["sha256"], int(entry["bytes"]))
            for name, entry in values["files"].items()
        },
    )


def _engine(entry: dict[str, Any]) -> EngineEntry:
    return EngineEntry(
        **entry
        | {
            "compute_capabilities": tuple(entry["compute_capabilities"]),
            "options": BuilderOptions(**entry["options"]),
            "profile": {
                name: (_ints(low), _ints(typical), _ints(high))
                for name, (low, typical, high) in entry["profile"].items()
            },
        }
    )


def _ints(values: list[Any]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _fault(manifest: Manifest) -> str | None:
    """What the schema cannot say: entries that must agree with each other."""
    model = manifest.model
    indices = [entry.index for entry in manifest.routes]
    typed: list[GraphEntry | EngineEntry] = [*manifest.graphs, *manifest.engines]
    used = [entry.route for entry in typed] + [g.route for g in manifest.golden]
    named = [name for graph in manifest.graphs for name in (graph.file, graph.weights)]
    named += [engine.file for engine in manifest.engines]
    named += [name for golden in manifest.golden for name in (golden.scan, golden.labels)]
    missing = sorted(set(named) - set(manifest.files))
    pairs = [model.spacing_limits_mm, model.intensity.clip_percentiles]
    pairs += [entry.native_band for entry in manifest.routes]
    if len(set(indices)) != len(indices):
        return f"routes {indices} name one twice"
    if not set(used) <= set(indices):
        return f"graphs, engines or golden vectors name a route that is not among {indices}"
    if missing:
        return f"{missing[0]} is named but not among the files"
    bounded = {(g.route, precision) for g in manifest.golden for precision in g.max_disagreement}
    unproven = sorted({(entry.route, entry.precision) for entry in typed} - bounded)
    if unproven:
        route, precision = unproven[0]
        return f"no golden vector for route {route} in {precision}"
    unbounded = [g.scan for g in manifest.golden if not _bounds_all(g, typed)]
    if unbounded:
        return f"golden vector {unbounded[0]} has no bound for a precision of its route"
    if len(model.volume_range_mm3) != len(model.labels) - 1:
        return f"{len(model.volume_range_mm3)} volume ranges for {len(model.labels) - 1} labels"
    if any(not low < high for low, high in pairs):
        return "a lower limit is not below its upper one"
    if any(g.file.rpartition("/")[0] != g.weights.rpartition("/")[0] for g in manifest.graphs):
        return "a graph and its weights lie in different folders"
    return None


def _bounds_all(golden: GoldenEntry, typed: Sequence[GraphEntry | EngineEntry]) -> bool:
    needed = {entry.precision for entry in typed if entry.route == golden.route}
    return needed <= set(golden.max_disagreement)


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no number")


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


def _pair(values: list[float]) -> tuple[float, float]:
    return values[0], values[1]


def _shapes(values: Mapping[str, list[Any]]) -> dict[str, Shape]:
    return {key: (int(i), int(j), int(k)) for key, (i, j, k) in values.items()}


def _triples(values: Mapping[str, list[Any]]) -> dict[str, Triple]:
    return {key: (triple[0], triple[1], triple[2]) for key, triple in values.items()}
