"""Builds, verifies and times engines on a machine with an NVIDIA GPU: one command, one report.

    python scripts/gpu_check.py [PACKAGE] > report.md

It compares fp32, fp16 and int8 and, in fp16, static with dynamic shapes, runs with and without a
CUDA graph, and TensorRT's own instance norm with the plug-in's. Times are of one run on the typical
golden vector, copies included. A failure is a row of the table. The package is not changed: engines
are written to copies of it in a temporary folder.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np

from rare_trt import cli
from rare_trt.backends import EngineBackend, Precision
from rare_trt.engines.engines_from_package import BuiltEngine, build_engines
from rare_trt.errors import BackendError, RareTrtError
from rare_trt.package.manifest import BuilderOptions, EngineEntry
from rare_trt.package.reading import Package, open_package
from rare_trt.sessions.compatibility import incompatibility
from rare_trt.sessions.engine import Engine
from rare_trt.sessions.engine_host import EngineHost
from rare_trt.sessions.engine_session import EngineSession
from rare_trt.sessions.golden import read_golden_vectors
from rare_trt.sessions.machine import INSTALL, Machine, import_library, this_machine
from rare_trt.sessions.nvidia import RtxContexts
from rare_trt.storage.cache import Cache

WARM_UP: Final = 20
RUNS: Final = 300

HEAD: Final = (
    *("backend", "variant", "route", "build s", "MiB", "load ms", "first ms", "median ms"),
    *("p99 ms", "other labels", "notes"),
)


@dataclass(frozen=True)
class Variant:
    """One way to build and run the engines."""

    name: str
    precision: Precision = "fp16"
    static: bool = False
    graph: bool = True
    plugin_norm: bool = False


VARIANTS: Final = (
    Variant("fp32", precision="fp32"),
    Variant("fp16"),
    Variant("int8", precision="int8"),
    Variant("fp16, static shapes", static=True),
    Variant("fp16, no CUDA graph", graph=False),
    Variant("fp16, plug-in norm", plugin_norm=True),
)


class GraphlessSession(EngineSession):
    """A session that queues every run anew instead of launching a CUDA graph."""

    def _load(self) -> Engine:
        engine = super()._load()
        contexts = engine._contexts
        contexts.capturable = False
        if isinstance(contexts, RtxContexts):
            # Takes effect when a context is made, which is not before the first run.
            strategies: Any = import_library("tensorrt-rtx").CudaGraphStrategy
            contexts._config.cuda_graph_strategy = strategies.DISABLED
        return engine


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the report; returns 0 where everything passed, else 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("package", nargs="?", default="hippocampus", metavar="NAME|DIR")
    options = parser.parse_args(arguments)
    try:
        machine = this_machine()
        _refuse_without_gpu(machine)
        package = open_package(options.package)
    except RareTrtError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 1
    status, rows = 0, []
    sections: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory(prefix="rare-trt-") as name:
        for backend in machine.libraries:
            folder = Path(name) / backend
            folder.mkdir()
            for variant in VARIANTS:
                rows += list(_rows(package, backend, variant, machine, folder))
            for command in ("verify", "doctor"):
                code, text = _run_command([command, str(_target(folder, VARIANTS[0]))])
                sections.append((f"rare-trt {command}, engines of {backend}: exit {code}", text))
                status = status or code
    _print(rows, sections)
    return status or int(any(row[-1] for row in rows))


def _refuse_without_gpu(machine: Machine) -> None:
    if machine.gpu is None:
        raise BackendError(f"this check needs an NVIDIA GPU: {machine.no_gpu}")
    if not machine.libraries:
        raise BackendError(
            f"no library that builds engines is installed: {' or '.join(INSTALL.values())}"
        )


def _rows(
    package: Package, backend: EngineBackend, variant: Variant, machine: Machine, folder: Path
) -> Iterator[tuple[str, ...]]:
    """Yields one row per route, and one with the error where the variant fails."""
    if variant.plugin_norm and backend == "tensorrt-rtx":
        return
    head = (backend, variant.name)
    host = None
    try:
        package, built = _build(package, backend, variant, machine, folder)
        host = EngineHost()
        for item in built:
            reason = incompatibility(item.entry, package.manifest, machine)
            if reason:
                raise BackendError(reason)
            size = package.manifest.files[item.entry.file].bytes / 2**20
            facts = (f"{item.seconds:.1f}" if item.seconds else "", f"{size:.1f}")
            measures = _measure(host, package, item.entry, variant, Cache(folder / "cache"))
            yield (*head, str(item.entry.route), *facts, *measures)
    except Exception as error:
        # The report keeps the rows measured so far, whatever the error.
        message = " ".join(f"{type(error).__name__}: {error}".split())
        yield (*head, *[""] * (len(HEAD) - 3), message)
    finally:
        if host is not None:
            host.close()


def _build(
    package: Package, backend: EngineBackend, variant: Variant, machine: Machine, folder: Path
) -> tuple[Package, list[BuiltEngine]]:
    """Builds the engines of `variant` in a copy of the package."""
    options = BuilderOptions(static_shapes=variant.static)
    out = _target(folder, variant)
    with _plugin_norm() if variant.plugin_norm else nullcontext():
        return build_engines(package, backend, variant.precision, options, machine, out=out)


def _target(folder: Path, variant: Variant) -> Path:
    """Returns the copy for `variant`; those of other precision or execution alone share it."""
    kind = "static" if variant.static else "plugin" if variant.plugin_norm else "dynamic"
    return folder / f"{kind}.rare"


@contextmanager
def _plugin_norm() -> Iterator[None]:
    """Makes TensorRT's parser use the plug-in for instance norm instead of TensorRT's own layer."""
    module = import_library("tensorrt")
    # Registered first, without which an engine with plug-ins can be neither built nor loaded.
    module.init_libnvinfer_plugins(None, "")
    native = module.OnnxParser

    def parser(network: Any, log: Any) -> Any:
        made = native(network, log)
        made.clear_flag(module.OnnxParserFlag.NATIVE_INSTANCENORM)
        return made

    module.OnnxParser = parser
    try:
        yield
    finally:
        module.OnnxParser = native


def _measure(
    host: EngineHost, package: Package, entry: EngineEntry, variant: Variant, cache: Cache
) -> tuple[str, ...]:
    """Returns the cells of a row from `load ms` on: milliseconds, other labels and notes."""
    (golden,) = (g for g in read_golden_vectors(package, entry.route) if g.entry.kind == "typical")
    inputs = list(golden.scan.inputs())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        start = perf_counter()
        kind = EngineSession if variant.graph else GraphlessSession
        session = kind(host, package, entry, cache)
        loaded = (perf_counter() - start) * 1e3
        times = []
        for _ in range(1 + WARM_UP + RUNS):
            start = perf_counter()
            for one in inputs:
                session.run(one)
            times.append((perf_counter() - start) * 1e3)
        share = golden.disagreement(session)
        session.close()
    warm = times[1 + WARM_UP :]
    notes = [" ".join(str(warning.message).split()) for warning in caught]
    bound = golden.entry.max_disagreement[entry.precision]
    if not share <= bound:
        notes.append(f"at most {bound:.1e} of the labels may differ")
    figures = (loaded, times[0], float(np.median(warm)), float(np.percentile(warm, 99)))
    return (*(f"{figure:.2f}" for figure in figures), f"{share:.1e}", "; ".join(notes))


def _run_command(arguments: Sequence[str]) -> tuple[int, str]:
    """Runs a command of rare-trt; returns its exit status and its output."""
    with redirect_stdout(StringIO()) as output:
        status = cli.main(arguments)
    return status, output.getvalue()


def _print(rows: Sequence[Sequence[str]], sections: Sequence[tuple[str, str]]) -> None:
    print("# rare-trt on a GPU\n")
    for row in (HEAD, ["---"] * len(HEAD), *rows):
        print(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |")
    for heading, text in sections:
        print(f"\n## {heading}\n\n```\n{text.strip()}\n```")


if __name__ == "__main__":
    sys.exit(main())
