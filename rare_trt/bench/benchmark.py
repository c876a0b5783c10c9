"""How long a package takes on this machine, from file to file, and what memory it takes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Final, TypeAlias, TypeVar

import numpy as np
from tqdm import tqdm

from rare_trt.backends import Arithmetic, Backend
from rare_trt.bench.figures import Bench, BenchScan, Cold, Kind, Repeats, Run, Spread, Warm, spread
from rare_trt.bench.machine_load import require_quiet
from rare_trt.bench.scans import package_scans
from rare_trt.errors import BackendError, ScanError
from rare_trt.jobs import prefix_scan_name
from rare_trt.package.reading import Package
from rare_trt.segmenter import Segmenter
from rare_trt.sessions.candidates import SessionCandidates
from rare_trt.sessions.machine import this_machine
from rare_trt.storage.cache import Cache

Item = TypeVar("Item")

# The stages that a run is made of, in order: as the runtime's own stopwatch names them.
STAGES: Final = ("read", "prepare", "plan", "inputs", "graph", "labels", "encode", "write")

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
    """Measures `package`, in the precisions that it chooses itself where `precisions` is empty, on
    scans cut out of its golden vectors where `scans` is empty.

    Some figures come from processes of their own, which open the package again; with `key` they
    verify its signature.

    All precisions and routes take turns, so that other work of the machine slows all of them.
    Raises RareTrtError where a precision is not on offer, where a scan cannot be segmented, and,
    unless `anyway`, where other processes load the machine before, during or after.
    """
    require_quiet(anyway)
    offered = _offered(package, backend, precisions)
    with tempfile.TemporaryDirectory(prefix="rare-trt-bench-") as name:
        folder = Path(name)
        measured = list(scans) or package_scans(package, folder / "scans")
        with Segmenter(package, backend) as segmenter:
            described = [_describe(segmenter, path) for path in measured]
        _check_names(described)
        if not any(offered[scan.route] for scan in described):
            raise BackendError(
                f"no route of these scans runs in {', '.join(precisions)}: name other scans or "
                "another precision"
            )
        pairs = list(zip(measured, described, strict=True))
        cold = _cold(package, backend, key, pairs, repeats.cold, folder)
        memory = _memory(package, backend, key, offered, pairs, folder)
        # Compiles and checks what is not in the cache yet.
        warm_runs(package, backend, offered, pairs, 1, 0, folder / "out")
        runs: list[Run] = []
        for number in tqdm(range(repeats.rounds), "warm", unit="round", leave=False):
            # One turn more, since the first of them is not repeated.
            turns = repeats.turns + 1
            runs += warm_runs(package, backend, offered, pairs, turns, number, folder / "out")
            require_quiet(anyway)
    load = require_quiet(anyway)
    return Bench(
        versions={name: version(name) for name in ("rare-trt", "openvino", "numpy")},
        machine=machine(),
        load=load,
        package=package.manifest.name,
        manifest_sha256=package.manifest_sha256,
        backend=backend,
        scans=tuple(described),
        cold=cold,
        warm=tuple(
            _summary(runs, route, precision, peak) for (route, precision), peak in memory.items()
        ),
    )


def machine() -> dict[str, str]:
    """What the figures depend on, in words."""
    from rare_trt.sessions.openvino import openvino_facts, usable_cpus

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


def peak_host_bytes() -> int | None:
    """The peak memory of this process so far; None where the system does not report it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return found[0] if found else None


def _offered(package: Package, backend: Backend, precisions: Sequence[Arithmetic]) -> Offered:
    """The precisions to measure per route; None is the package's own choice."""
    routes = [entry.index for entry in package.manifest.routes]
    if not precisions:
        return {route: [None] for route in routes}
    choice = SessionCandidates(package, backend, Cache())
    try:
        known = {route: {one.arithmetic for one in choice.find_all(route)} for route in routes}
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
            "listed by name: rename one"
        )


def _describe(segmenter: Segmenter, path: Path) -> BenchScan:
    with prefix_scan_name((path,)):
        result = segmenter.segment(path)
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
                run = _time_scan(opened[precision], path, out)
                runs.append(Run(precision, scan, number, kind, *run))
    finally:
        for segmenter in opened.values():
            segmenter.close()
    return runs


def _rotated(items: Sequence[Item], by: int) -> Sequence[Item]:
    start = by % max(1, len(items))
    return [*items[start:], *items[:start]]


def _time_scan(
    segmenter: Segmenter, path: Path, out: Path
) -> tuple[str, Arithmetic, float, Mapping[str, float]]:
    """Backend, precision, milliseconds from file to file, and those of the stages.

    No file is replaced: that cost is the file system's.
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
    """The summary of `runs` for one route in one precision."""
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
