"""A package's manifest as types. manifest_json.py reads and writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from rare_trt.backends import Arithmetic, EngineBackend, Precision
from rare_trt.scan.field_of_view import FieldOfView
from rare_trt.scan.geometry import Shape
from rare_trt.scan.intensity import IntensityRule
from rare_trt.scan.out_of_distribution import LabelDistribution, TrainingDistribution
from rare_trt.storage.files import sha256

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
    """What the network predicts, and for which scans. `seen` and `label_distribution`, the training
    distribution of scans and of labels, are unknown in older packages."""

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
    label_distribution: LabelDistribution | None = None


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


@dataclass(frozen=True)
class GraphEntry:
    """One route's graph at one precision; `weights` is its external data."""

    precision: Precision
    route: int
    file: str
    weights: str


@dataclass(frozen=True)
class BuilderOptions:
    """How an engine is built. The precision is not among them: it is in the graph.

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
    `profile` lists the smallest, typical and largest shape of each input.
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
    """A scan at a route's spacing and the reference network's labels of it, at base spacing."""

    route: int
    kind: str
    scan: str
    labels: str
    max_disagreement: Mapping[Arithmetic, float]


@dataclass(frozen=True)
class Variant:
    """A way to run a route on a CPU, measured against float32 on labelled scans.

    `dice_lost` is how much lower its mean Dice against manual labels is, `agreement` the mean Dice
    between the two label maps, `speed` how many times as fast it ran on the CPU it was measured on.
    """

    arithmetic: Arithmetic
    dice_lost: float
    agreement: float
    speed: float


@dataclass(frozen=True)
class CalibrationEntry:
    """How a route was quantised, and what may run it on a CPU.

    Ranges by `method` over `scans` scans whose hash is `scans_sha256`. `int8_convolutions` of
    `convolutions` are INT8; none: `reason` is why. `table` is the file with every step of the
    search. `variants` kept within the budget on `measured_scans` other scans, fastest first.
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
