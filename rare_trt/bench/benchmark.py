"""How long a package takes on this machine, from file to file, and what memory it takes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from shutil import copyfile
from time import perf_counter
from typing import Final, Literal, TypeAlias, TypeVar

import numpy as np
from tqdm import tqdm

from rare_trt.backends import Arithmetic, Backend
from rare_trt.bench.machine_load import require_quiet
from rare_trt.bench.scans import package_scans
from rare_trt.errors import BackendError, ScanError
from rare_trt.jobs import with_scan_name
from rare_trt.package.reading import Package
from rare_trt.scan.geometry import Shape, Triple
from rare_trt.segmenter import Segmenter
from rare_trt.sessions.candidates import SessionCandidates
from rare_trt.sessions.machine import this_machine
from rare_trt.storage.cache import Cache

Item = TypeVar("Item")

# As a new shape costs more than a known one, they are told apart.
Kind: TypeAlias = Literal["first call", "new shape", "repeated"]

# The stages that a run is made of, in order: as the runtime's own stopwatch names them.
STAGES: Final = ("read", "prepare", "plan", "inputs", "graph", "labels", "encode", "write")

# A folder holds every scan this many times.
COPIES: Final = 4

# What a process of its own runs to show how much memory a route takes.
ALONE: Final = """
import sys
from rare_trt import Segmenter
from rare_trt.bench.benchmark import peak_host_bytes
package, backend, precision, scan, labels, key = sys.argv[1:]
with Segmenter.load(
    package, backend, precision=precision or None, require_signature=key or None
) as segmenter:
    segmenter.segment(scan).save(labels)
    print(peak_host_bytes(), segmenter.device_bytes)
"""


@dataclass(frozen=True)
class Repeats:
    """How often everything is measured: `rounds` are fresh starts of `turns` over all scans."""

    cold: int = 7
    rounds: int = 3
    turns: int = 20
    folders: int = 3


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
    route; None where that cannot be told.
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
class Folder:
    """`rare-trt infer` of a folder of `scans` scans, from the process's start to its end."""

    scans: int
    process: Spread
    scans_per_second: float


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
    folder: Folder


@dataclass(frozen=True)
class Run:
    """One scan from file to file; `asked` is the precision asked for, None the package's choice."""

    asked: Arithmetic | None
    scan: BenchScan
    round: int
    kind: Kind
    backend: str
    precision: Arithmetic
    milliseconds: float
    stages: Mapping[str, float]


Pairs: TypeAlias = Sequence[tuple[Path, BenchScan]]

# The precisions to measure, per route.
Offered: TypeAlias = Mapping[int, Sequence[Arithmetic | None]]


def bench(
    package: Package,
    backend: Backend,
    precisions: Sequence[Arithmetic],
    scans: Sequence[Path],
    repeats: Repeats,
    *,
    anyway: bool,
    key: Path | None = None,
) -> Bench:
    """Measures `package`, which processes of their own open again and hold to the signature of
    `key`, if one is named; without `precisions` in what it chooses itself, without `scans` on scans
    cut out of its golden vectors.

    All precisions and routes take turns, so that whatever else the machine does slows all of them.
    Raises RareTrtError where a precision is not on offer, where a scan cannot be segmented, and,
    unless `anyway`, where other processes load the machine before, during or after.
    """
    require_quiet(anyway)
    offered = _offered(package, backend, precisions)
    with tempfile.TemporaryDirectory(prefix="rare-trt-bench-") as name:
        folder = Path(name)
        measured = list(scans) or package_scans(package, folder / "scans")
        with Segmenter(package, backend) as segmenter:
            shown = [_shown(segmenter, path) for path in measured]
        _check_names(shown)
        if not any(offered[scan.route] for scan in shown):
            raise BackendError(
                f"no route of these scans runs in {', '.join(precisions)}: name other scans or "
                "another precision"
            )
        pairs = list(zip(measured, shown, strict=True))
        cold = _cold(package, backend, key, pairs, repeats.cold, folder)
        memory = _memory(package, backend, key, offered, pairs, folder)
        # Compiles and proves what is not in the cache yet.
        warm_runs(package, backend, offered, pairs, 1, 0, folder / "out")
        runs: list[Run] = []
        for number in tqdm(range(repeats.rounds), "warm", unit="round", leave=False):
            # One turn more, since the first of them is not repeated.
            turns = repeats.turns + 1
            runs += warm_runs(package, backend, offered, pairs, turns, number, folder / "out")
            require_quiet(anyway)
        through = _folder(package, backend, key, measured, repeats.folders, folder)
    load = require_quiet(anyway)
    return Bench(
        versions={name: version(name) for name in ("rare-trt", "openvino", "numpy")},
        machine=machine(),
        load=load,
        package=package.manifest.name,
        manifest_sha256=package.manifest_sha256,
        backend=backend,
        scans=tuple(shown),
        cold=cold,
        warm=tuple(
            _summary(runs, route, precision, peak) for (route, precision), peak in memory.items()
        ),
        folder=through,
    )


def machine() -> dict[str, str]:
    """What the figures hang on, in words."""
    from rare_trt.sessions.openvino import openvino_facts

    here = this_machine()
    gpu = "none" if here.gpu is None else f"{here.gpu.name}, driver {here.gpu.driver}"
    libraries = [f"{name} {release}" for name, release in here.libraries.items()]
    return {
        "platform": here.platform,
        "cpu": openvino_facts().cpu,
        "threads": str(usable_cpus()),
        "gpu": gpu,
        "libraries": ", ".join(libraries) or "none",
    }


def usable_cpus() -> int:
    """How many CPUs this process may run on (taskset counts), which is how many threads run."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_host_bytes() -> int | None:
    """The most memory that this process has held so far; None where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return found[0] if found else None


def spread(milliseconds: Sequence[float]) -> Spread:
    """Percentiles of `milliseconds`."""
    p50, p90, p99 = np.percentile(milliseconds, (50, 90, 99)).round(3).tolist()
    return Spread(len(milliseconds), p50, p90, p99)


def _offered(package: Package, backend: Backend, precisions: Sequence[Arithmetic]) -> Offered:
    """The precisions to measure per route; None is the package's own choice."""
    routes = [entry.index for entry in package.manifest.routes]
    if not precisions:
        return {route: [None] for route in routes}
    choice = SessionCandidates(package, backend, Cache())
    try:
        known = {route: {one.arithmetic for one in choice.offered(route)} for route in routes}
    finally:
        choice.close()
    every = sorted(set().union(*known.values()))
    for precision in precisions:
        if precision not in every:
            raise BackendError(
                f"precision {precision} is not on offer here (backend {backend}); the package "
                f"offers {', '.join(every) or 'none'}: choose among those"
            )
    return {route: [p for p in precisions if p in known[route]] for route in routes}


def _check_names(scans: Sequence[BenchScan]) -> None:
    names = [scan.name for scan in scans]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ScanError(
            f"{twice[0]}: two scans have this name; expected different ones, since results are "
            "told by name: rename one"
        )


def _shown(segmenter: Segmenter, path: Path) -> BenchScan:
    try:
        result = segmenter.segment(path)
    except ScanError as error:
        raise with_scan_name((path,), error) from error
    grid = result.scan.volume.grid
    i, j, k = (round(size, 3) for size in grid.spacing_mm)
    return BenchScan(path.name, result.route.route, grid.shape, (i, j, k))


def warm_runs(
    package: Package,
    backend: Backend,
    offered: Offered,
    pairs: Pairs,
    turns: int,
    number: int,
    out: Path,
) -> list[Run]:
    """One round: every precision loaded afresh, then `turns` over all scans, precisions in turn."""
    out.mkdir(exist_ok=True)
    runs: list[Run] = []
    precisions = list(dict.fromkeys(p for of_route in offered.values() for p in of_route))
    opened = {p: Segmenter(package, backend, precision=p) for p in precisions}
    seen: set[object] = set()
    try:
        for turn, (path, scan) in product(range(turns), _rotated(pairs, number)):
            for precision in _rotated(offered[scan.route], turn):
                route = (precision, scan.route)
                shape = (*route, scan.shape, scan.spacing_mm)
                kind: Kind = "repeated" if shape in seen else "new shape"
                kind = kind if route in seen else "first call"
                seen |= {route, shape}
                run = _timed(opened[precision], path, out)
                runs.append(Run(precision, scan, number, kind, *run))
    finally:
        for segmenter in opened.values():
            segmenter.close()
    return runs


def _rotated(items: Sequence[Item], by: int) -> Sequence[Item]:
    start = by % max(1, len(items))
    return [*items[start:], *items[:start]]


def _timed(
    segmenter: Segmenter, path: Path, out: Path
) -> tuple[str, Arithmetic, float, Mapping[str, float]]:
    """Backend, precision, milliseconds from file to file, and those of the stages.

    Nothing is replaced: what that costs is the file system's affair.
    """
    start = perf_counter()
    result = segmenter.segment(path)
    result.save(out / "labels.nii.gz")
    milliseconds = (perf_counter() - start) * 1e3
    for file in out.iterdir():
        file.unlink()
    return result.backend, result.precision, milliseconds, result.timings_ms


def _summary(
    runs: Sequence[Run], route: int, asked: Arithmetic | None, memory: tuple[int | None, int]
) -> Warm:
    """What `runs` say of one route in one precision."""
    own = [run for run in runs if (run.scan.route, run.asked) == (route, asked)]
    by_kind = {
        kind: [run for run in own if run.kind == kind]
        for kind in ("first call", "new shape", "repeated")
    }
    repeated = by_kind["repeated"]
    stages = {name: [run.stages.get(name, 0.0) for run in repeated] for name in STAGES}
    stages["other"] = [run.milliseconds - sum(run.stages.values()) for run in repeated]
    return Warm(
        route=route,
        backend=own[-1].backend,
        precision=own[-1].precision,
        first_call=_spread_of(by_kind["first call"]),
        new_shape=_spread_of(by_kind["new shape"]) if by_kind["new shape"] else None,
        repeated=_spread_of(repeated),
        round_p50=tuple(
            _spread_of([run for run in repeated if run.round == number]).p50
            for number in sorted({run.round for run in repeated})
        ),
        stages={name: spread(values) for name, values in stages.items()},
        scans={
            name: _spread_of([run for run in repeated if run.scan.name == name]).p50
            for name in dict.fromkeys(run.scan.name for run in repeated)
        },
        host_bytes=memory[0],
        device_bytes=memory[1],
    )


def _spread_of(runs: Sequence[Run]) -> Spread:
    return spread([run.milliseconds for run in runs])


def _memory(
    package: Package,
    backend: Backend,
    key: Path | None,
    offered: Offered,
    pairs: Pairs,
    folder: Path,
) -> dict[tuple[int, Arithmetic | None], tuple[int | None, int]]:
    """Peak bytes on the host and on the device, per route and precision, each in a process."""
    found: dict[tuple[int, Arithmetic | None], tuple[int | None, int]] = {}
    for route in dict.fromkeys(scan.route for _, scan in pairs):
        path, _ = max(
            (pair for pair in pairs if pair[1].route == route),
            key=lambda pair: np.prod(pair[1].shape),
        )
        for precision in offered[route]:
            labels = folder / f"memory{len(found)}.nii.gz"
            asked = (package.folder, backend, precision or "", path, labels, key or "")
            host, device = _process("-c", ALONE, *asked)[1].split()
            found[route, precision] = (None if host == "None" else int(host), int(device))
    return found


def _cold(
    package: Package, backend: Backend, key: Path | None, pairs: Pairs, times: int, folder: Path
) -> tuple[Cold, ...]:
    """The first scan of every route in processes of their own, routes in turn, one untimed."""
    first = {scan.route: (path, scan) for path, scan in reversed(pairs)}
    took: dict[int, list[float]] = {route: [] for route in first}
    for turn in tqdm(range(times + 1), "cold", unit="turn", leave=False):
        for route, (path, _) in first.items():
            labels = folder / f"cold{route}_{turn}.nii.gz"
            took[route].append(_infer(package, backend, key, path, labels))
    return tuple(
        Cold(route, scan.name, spread(took[route][1:]))
        for route, (_, scan) in sorted(first.items())
    )


def _folder(
    package: Package,
    backend: Backend,
    key: Path | None,
    scans: Sequence[Path],
    times: int,
    folder: Path,
) -> Folder:
    """A folder of every scan COPIES times."""
    source = folder / "folder"
    source.mkdir()
    for copy, (number, path) in product(range(COPIES), enumerate(scans)):
        # By a name that `infer` takes in a folder; what the file is it tells by its content.
        copyfile(path, source / f"{copy}_{number}.nii.gz")
    took = [
        _infer(package, backend, key, source, folder / f"answers{turn}")
        for turn in tqdm(range(times), "folder", unit="turn", leave=False)
    ]
    count = COPIES * len(scans)
    process = spread(took)
    return Folder(count, process, round(count / process.p50 * 1e3, 3))


def _infer(
    package: Package, backend: Backend, key: Path | None, source: Path, output: Path
) -> float:
    """Milliseconds of a whole `rare-trt infer`."""
    asked = ("infer", source, "-o", output, "--package", package.folder, "--backend", backend)
    signed = () if key is None else ("--require-signature", key)
    return _process("-m", "rare_trt.cli", *asked, *signed)[0]


def _process(*arguments: str | Path) -> tuple[float, str]:
    """Milliseconds of a Python process and what it printed; raises BackendError where it fails."""
    start = perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    milliseconds = (perf_counter() - start) * 1e3
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise BackendError(f"a process that was to be measured failed: {said[-1]}")
    return milliseconds, done.stdout
