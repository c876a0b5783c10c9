"""`rare-trt bench`: how long scans take on this machine, from file to file."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rare_trt.backends import ARITHMETICS, BACKENDS, Arithmetic
from rare_trt.bench.benchmark import bench
from rare_trt.bench.figures import Bench, Repeats, Warm
from rare_trt.commands import add_signature_option, add_threads_option
from rare_trt.commands.tables import markdown_table
from rare_trt.package.reading import open_package
from rare_trt.sessions.openvino import THREADS
from rare_trt.storage.files import refuse_existing, write_files

if TYPE_CHECKING:
    from rare_trt.commands import Parsers


def add_parser(commands: Parsers) -> None:
    """Adds `bench` to the command line."""
    parser = commands.add_parser(
        "bench",
        help="measure latency: cold, warm, per route and stage",
        description="Measures scans from file to file: processes from start to end, first calls, "
        "first runs of a shape and repeated ones, their stages, and memory. Without "
        "SCAN on scans of several sizes at every route's spacing, cut out of the package's golden "
        "vectors. Refuses to report while other processes load the machine.",
    )
    parser.add_argument("package", nargs="?", default="hippocampus", metavar="PACKAGE")
    parser.add_argument("scans", nargs="*", type=Path, metavar="SCAN")
    parser.add_argument("--backend", choices=BACKENDS, default="auto")
    parser.add_argument(
        "--precision",
        type=_precisions,
        default=(),
        metavar="P,...",
        help=f"some of {', '.join(ARITHMETICS)}, in turn; default: what the package chooses",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything that was measured")
    parser.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    parser.add_argument(
        "--anyway", action="store_true", help="report on a loaded machine too, and say so"
    )
    add_threads_option(parser)
    add_signature_option(parser)
    parser.set_defaults(run=run, repeats=Repeats())


def run(options: argparse.Namespace) -> int:
    """Prints the measurements as Markdown tables, and writes them as JSON with --json."""
    if options.json is not None and not options.overwrite:
        refuse_existing([options.json])
    if options.threads is not None:
        # Also for the processes that are measured.
        os.environ[THREADS] = str(options.threads)
    found = bench(
        open_package(options.package, require_signature=options.require_signature),
        options.backend,
        options.precision,
        options.scans,
        options.repeats,
        anyway=options.anyway,
        key=options.require_signature,
    )
    print("\n".join(_lines(found)))
    if options.json is not None:
        text = json.dumps(asdict(found), indent=2) + "\n"
        write_files({options.json: text.encode()}, overwrite=options.overwrite)
    return 0


def _lines(found: Bench) -> Iterator[str]:
    """Markdown tables, and before them what they depend on."""
    where = {**found.versions, **found.machine}
    yield "; ".join(f"{name} {value}" for name, value in where.items())
    yield f"package {found.package} ({found.manifest_sha256[:12]}); {found.load}"
    yield "\nWarm, file to file, milliseconds:\n"
    head = ("route", "runs in", "p50", "rounds' p50", "p90", "p99", "new shape", "first call")
    yield markdown_table([(*head, "peak MiB"), *map(_warm_row, found.warm)])
    yield "\nOf that by stage (p50):\n"
    stages = list(found.warm[0].stages)
    by_stage = [
        (
            str(warm.route),
            f"{warm.backend} {warm.precision}",
            *(f"{warm.stages[name].p50:.2f}" for name in stages),
        )
        for warm in found.warm
    ]
    yield markdown_table([("route", "runs in", *stages), *by_stage])
    yield "\nCold, from the start of `rare-trt infer` to its end, milliseconds:\n"
    cold = [
        (str(c.route), c.scan, str(c.process.runs), f"{c.process.p50:.0f}", f"{c.process.p90:.0f}")
        for c in found.cold
    ]
    yield markdown_table([("route", "scan", "processes", "p50", "p90"), *cold])


def _warm_row(warm: Warm) -> tuple[str, ...]:
    repeated, new = warm.repeated, warm.new_shape
    return (
        str(warm.route),
        f"{warm.backend} {warm.precision}",
        f"{repeated.p50:.1f}",
        f"{min(warm.round_p50):.1f} to {max(warm.round_p50):.1f}",
        f"{repeated.p90:.1f}",
        f"{repeated.p99:.1f}",
        "" if new is None else f"{new.p50:.1f}",
        f"{warm.first_call.p50:.1f}",
        _memory(warm),
    )


def _memory(warm: Warm) -> str:
    host = "unknown" if warm.host_bytes is None else f"{warm.host_bytes / 2**20:.0f}"
    return f"{host} + {warm.device_bytes / 2**20:.0f} on the GPU" if warm.device_bytes else host


def _precisions(text: str) -> tuple[Arithmetic, ...]:
    known = {str(one): one for one in ARITHMETICS}
    unknown = [name for name in text.split(",") if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"{unknown[0]!r} is not a precision; expected some of {', '.join(known)} with commas"
        )
    return tuple(dict.fromkeys(known[name] for name in text.split(",")))
