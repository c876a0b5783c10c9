"""A package's manifest as types, read from and written to JSON.

manifest.schema.json is the published description of the file; it is checked first, so that the
types below are built from values of the right kind.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib import resources
from math import isfinite
from typing import Any, Final, Literal, TypeAlias

from rare_trt.backends import Arithmetic, EngineBackend, Precision, graph_precision
from rare_trt.constants import FORMAT_VERSION, MAX_INTEGER
from rare_trt.errors import PackageError
from rare_trt.plan.routing import Route
from rare_trt.scan.field_of_view import FieldOfView
from rare_trt.scan.geometry import Shape, Triple
from rare_trt.scan.intensity import IntensityRule
from rare_trt.scan.out_of_distribution import RouteDistribution, TrainingDistribution
from rare_trt.storage.files import sha256

FORMAT: Final = "rare-trt package"

# Beside the files that it lists.
MANIFEST: Final = "manifest.json"
SIGNATURE: Final = "manifest.sig"

HardwareCompatibility: TypeAlias = Literal["none", "ampere_plus", "same_compute_capability"]

# Smallest, typical and largest shape of an input.
Shapes: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class TrainingRecord:
    """Where the weights come from; `dice[route][label - 1]` was measured on validation cases.

    `cases` is 0 where it is not known which the network was trained on, as of a converted one."""

    data: str
    licence: str
    cases: int
    validation_cases: tuple[str, ...]
    epochs: int
    dice: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Model:
    """What the network answers, and for which scans. `seen` may be unknown: older packages."""

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
    seen: TrainingDistribution | None = None


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
    max_disagreement: Mapping[Arithmetic, float]


@dataclass(frozen=True)
class Variant:
    """A way to run a route on a CPU, measured against float32 on labelled scans.

    `dice_lost` is how much lower its mean Dice against manual labels is, `agreement` the mean Dice
    between the two answers, `speed` how many times as fast it ran on the CPU it was measured on.
    """

    arithmetic: Arithmetic
    dice_lost: float
    agreement: float
    speed: float


@dataclass(frozen=True)
class CalibrationEntry:
    """How a route was quantised, and what may run it on a CPU.

    Ranges by `method` over `scans` scans whose hash is `scans_sha256`. `int8_convolutions` of
    `convolutions` are INT8; none: `reason` says why. `table` is the file with every step of the
    search. `variants` held the budget on `measured_scans` other scans, fastest first.
    """

    route: int
    method: str
    scans: int
    scans_sha256: str
    dice_budget: float
    convolutions: int
    int8_convolutions: tuple[str, ...]
    reason: str | None
    table: str
    measured_scans: int
    variants: tuple[Variant, ...]


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
    calibration: tuple[CalibrationEntry, ...]
    files: Mapping[str, FileEntry]

    def graph_sha256(self, graph: GraphEntry) -> str:
        """One hash for a graph together with its weights."""
        digests = self.files[graph.file].sha256 + self.files[graph.weights].sha256
        return sha256(digests.encode())

    def fp16_holds(self, route: int) -> bool:
        """Whether fp16 keeps the Dice budget on `route`, as far as calibration looked."""
        measured = [entry.variants for entry in self.calibration if entry.route == route]
        return all("fp16" in [one.arithmetic for one in variants] for variants in measured)

    def to_json(self) -> bytes:
        return sealed({"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)})


def sealed(values: Mapping[str, Any]) -> bytes:
    """`values` as the bytes of a manifest, their SHA-256 as its last entry."""
    body = json.dumps(values, indent=1, sort_keys=False).removesuffix("\n}").encode()
    return body + seal(body)


def manifest_from_json(data: bytes, *, fits_schema: bool = False) -> Manifest:
    """The manifest in `data`; raises PackageError that names what is wrong.

    `fits_schema` says that these very bytes were held to the schema before.
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
        values = _upgraded(values, data)
    if not fits_schema:
        _check_schema(values)
    manifest = _manifest(values)
    fault = _fault(manifest)
    if fault:
        raise PackageError(f"manifest.json contradicts itself ({fault}); build the package again")
    return manifest


def _upgraded(values: dict[str, Any], data: bytes) -> dict[str, Any]:
    """`values` in the newest format; refuses a newer one, and one whose seal is broken."""
    version = values.get("format_version")
    if isinstance(version, bool) or not isinstance(version, int | float):
        return values
    if version > FORMAT_VERSION:
        raise PackageError(
            f"the package has format version {version}; this rare-trt reads up to "
            f"{FORMAT_VERSION}: install a newer rare-trt"
        )
    if version == FORMAT_VERSION:
        _check_seal(data)
        return values
    if "sha256" in values:
        # One byte of the version would make a sealed manifest one that needs no seal.
        raise PackageError(
            f"{MANIFEST} has a seal, which format version {version} has not; it was damaged or "
            "changed by hand: install the package again"
        )
    # Version 2 added engines, version 3 INT8 and its calibration, version 4 the seal and what the
    # training scans look like, and they changed nothing else.
    if version == 1:
        values, version = {**values, "engines": []}, 2
    if version == 2:
        values, version = {**values, "calibration": []}, 3
    if version == 3:
        values = {**values, "format_version": 4, "sha256": sha256(data)}
    return values


def seal(body: bytes) -> bytes:
    """What a manifest ends with after `body`: the SHA-256 of those very bytes, white space too."""
    return f',\n "sha256": "{sha256(body)}"\n}}\n'.encode()


SEAL_BYTES: Final = len(seal(b""))


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
            seen=_seen(model["seen"]) if model.get("seen") else None,
        ),
        routes=tuple(
            RouteEntry(
                **_whole(RouteEntry, entry)
                | {
                    "native_band": _pair(entry["native_band"]),
                    "profile": Profile(**_shapes(entry["profile"])),
                }
            )
            for entry in values["routes"]
        ),
        graphs=tuple(GraphEntry(**_whole(GraphEntry, entry)) for entry in values["graphs"]),
        engines=tuple(_engine(entry) for entry in values["engines"]),
        golden=tuple(GoldenEntry(**_whole(GoldenEntry, entry)) for entry in values["golden"]),
        calibration=tuple(_calibration(entry) for entry in values["calibration"]),
        files={
            name: FileEntry(entry["sha256"], int(entry["bytes"]))
            for name, entry in values["files"].items()
        },
    )


def _whole(kind: type[Any], entry: dict[str, Any]) -> dict[str, Any]:
    """`entry` of a `kind`; JSON's 8.0 is an integer to the schema, and must be one here."""
    names = {field.name for field in fields(kind) if field.type in ("int", "int | None")}
    return {n: int(v) if n in names and v is not None else v for n, v in entry.items()}


def _seen(entry: dict[str, Any]) -> TrainingDistribution:
    return TrainingDistribution(
        scans=int(entry["scans"]),
        **_triples({name: entry[name] for name in ("min_view_mm", "max_view_mm")}),
        patterns=tuple(tuple(pattern) for pattern in entry["patterns"]),
        routes=tuple(
            RouteDistribution(
                int(route["route"]),
                tuple(
                    {name: _pair(limits) for name, limits in channel.items()}
                    for channel in route["ranges"]
                ),
            )
            for route in entry["routes"]
        ),
    )


def _calibration(entry: dict[str, Any]) -> CalibrationEntry:
    return CalibrationEntry(
        **_whole(CalibrationEntry, entry)
        | {
            "int8_convolutions": tuple(entry["int8_convolutions"]),
            "variants": tuple(Variant(**variant) for variant in entry["variants"]),
        }
    )


def _engine(entry: dict[str, Any]) -> EngineEntry:
    return EngineEntry(
        **_whole(EngineEntry, entry)
        | {
            "compute_capabilities": tuple(entry["compute_capabilities"]),
            "options": BuilderOptions(**_whole(BuilderOptions, entry["options"])),
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
    used += [entry.route for entry in manifest.calibration]
    named = [name for graph in manifest.graphs for name in (graph.file, graph.weights)]
    named += [engine.file for engine in manifest.engines]
    named += [entry.table for entry in manifest.calibration]
    named += [name for golden in manifest.golden for name in (golden.scan, golden.labels)]
    missing = sorted(set(named) - set(manifest.files))
    pairs = [model.spacing_limits_mm, model.intensity.clip_percentiles]
    pairs += [entry.native_band for entry in manifest.routes]
    if len(set(indices)) != len(indices):
        return f"routes {indices} name one twice"
    if not set(used) <= set(indices):
        return f"graphs, engines or golden vectors name a route that is not among {indices}"
    if not manifest.files.keys().isdisjoint((MANIFEST, SIGNATURE)):
        return f"{MANIFEST} or {SIGNATURE} is among the files, which they describe"
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
    unfit = _calibration_fault(manifest) or _seen_fault(model)
    if unfit:
        return unfit
    if len(model.volume_range_mm3) != len(model.labels) - 1:
        return f"{len(model.volume_range_mm3)} volume ranges for {len(model.labels) - 1} labels"
    if any(not low < high for low, high in pairs):
        return "a lower limit is not below its upper one"
    if any(g.file.rpartition("/")[0] != g.weights.rpartition("/")[0] for g in manifest.graphs):
        return "a graph and its weights lie in different folders"
    return None


def _calibration_fault(manifest: Manifest) -> str | None:
    """What of the calibration does not fit the graphs and the golden vectors."""
    graphs = {(graph.route, graph.precision) for graph in manifest.graphs}
    for entry in manifest.calibration:
        for variant in entry.variants:
            if (entry.route, graph_precision(variant.arithmetic)) not in graphs:
                return f"route {entry.route} has a variant {variant.arithmetic} without its graph"
            vectors = [golden for golden in manifest.golden if golden.route == entry.route]
            if any(variant.arithmetic not in vector.max_disagreement for vector in vectors):
                return f"no bound for {variant.arithmetic} on route {entry.route}"
    calibrated = [entry.route for entry in manifest.calibration]
    if len(set(calibrated)) != len(calibrated):
        return f"routes {calibrated} were calibrated twice"
    uncalibrated = {route for route, precision in graphs if precision == "int8"} - set(calibrated)
    if uncalibrated:
        return f"route {min(uncalibrated)} has an INT8 graph without its calibration"
    return None


def _seen_fault(model: Model) -> str | None:
    """What of the training scans' looks does not fit the channels."""
    if model.seen is None:
        return None
    per_channel = [len(model.seen.patterns), *(len(r.ranges) for r in model.seen.routes)]
    if any(found != len(model.channels) for found in per_channel):
        return f"what training saw is not there once per channel ({len(model.channels)})"
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
