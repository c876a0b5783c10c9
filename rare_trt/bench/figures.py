"""The figures of a benchmark as types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from rare_trt.backends import Arithmetic, Backend
from rare_trt.scan.geometry import Shape, Triple

# A new shape costs more than a known one, so they are counted apart.
Kind: TypeAlias = Literal["first call", "new shape", "repeated"]


@dataclass(frozen=True)
class Repeats:
    """How often everything is measured: `rounds` are fresh starts of `turns` over all scans."""

    cold: int = 7
    rounds: int = 3
    turns: int = 20


@dataclass(frozen=True)
class Spread:
    """Milliseconds of `runs` runs."""

    runs: int
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True)
class BenchScan:
    """A scan that was measured, and the route that it takes."""

    name: str
    route: int
    shape: Shape
    spacing_mm: Triple


@dataclass(frozen=True)
class Warm:
    """One route in one precision in a process that has loaded it; times are from file to file.

    `first_call` includes loading the route from the cache, `new_shape` are the first runs of a
    shape on a loaded route, `repeated` all others. `round_p50` is the median of `repeated` in each
    round, `stages` are the stages of `repeated` with `other` for what lies between them, `scans`
    its medians by scan. Memory is the peak of a process that segments the largest scan of the
    route; None where the system does not report it.
    """

    route: int
    backend: str
    precision: Arithmetic
    first_call: Spread
    new_shape: Spread | None
    repeated: Spread
    round_p50: tuple[float, ...]
    stages: Mapping[str, Spread]
    scans: Mapping[str, float]
    host_bytes: int | None
    device_bytes: int


@dataclass(frozen=True)
class Cold:
    """`rare-trt infer` of one scan, from the process's start to its end, compiled model cached."""

    route: int
    scan: str
    process: Spread


@dataclass(frozen=True)
class Bench:
    """Everything that was measured, and where."""

    versions: Mapping[str, str]
    machine: Mapping[str, str]
    load: str
    package: str
    manifest_sha256: str
    backend: Backend
    scans: tuple[BenchScan, ...]
    cold: tuple[Cold, ...]
    warm: tuple[Warm, ...]


@dataclass(frozen=True)
class Run:
    """One scan from file to file; `asked` is the precision requested, None the package's choice."""

    asked: Arithmetic | None
    scan: BenchScan
    round: int
    kind: Kind
    backend: str
    precision: Arithmetic
    milliseconds: float
    stages: Mapping[str, float]


def spread(milliseconds: Sequence[float]) -> Spread:
    """Percentiles of `milliseconds`."""
    p50, p90, p99 = np.percentile(milliseconds, (50, 90, 99)).round(3).tolist()
    return Spread(len(milliseconds), p50, p90, p99)
