"""`rare-trt verify`: files against their hashes, graphs and engines against float32."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tqdm import tqdm

from rare_trt.commands import add_package_arguments
from rare_trt.commands.tables import text_table
from rare_trt.evaluation.verification import Finding, compare_with_float32, golden_scans
from rare_trt.package.reading import Package, open_package
from rare_trt.sessions.candidates import SessionCandidates
from rare_trt.sessions.run import PreparedScan
from rare_trt.storage.cache import Cache

if TYPE_CHECKING:
    from rare_trt.commands import Parsers

MAX_CASES: Final = 20

HEAD: Final = (
    *("route", "variant", "scans", "other labels", "Dice with fp32", "Dice lost", "logit error"),
    "not finite",
)


def add_parser(commands: Parsers) -> None:
    """Adds `verify` to the command line."""
    parser = commands.add_parser(
        "verify",
        help="check a package: files, golden vectors, agreement with float32",
        description="Checks every file against its hash, then compares every graph and every "
        "engine that this machine can run with the float32 graph: on the package's golden "
        "vectors, or with --data on labelled scans averaged to each route's spacing. Exits 1 "
        "where a bound is broken.",
    )
    add_package_arguments(parser)
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help=f"labelled scans; the first {MAX_CASES} are used"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints one row per graph and engine; returns 1 where a bound is broken."""
    package = open_package(options.package, require_signature=options.require_signature)
    package.check()
    print(f"{len(package.manifest.files)} files match the manifest\n")
    routes = [entry.index for entry in package.manifest.routes]
    prepare = open_scans(package, options.data)
    candidates = SessionCandidates(package, "auto", Cache())
    found: list[Finding] = []
    try:
        for route in tqdm(routes, "verifying", unit="route", leave=False):
            found += compare_with_float32(package, route, prepare(route), candidates)
        skipped = [item for route in routes for item in candidates.incompatible_engines(route)]
    finally:
        candidates.close()
    print(text_table([HEAD, *map(_row, found)]), end="\n\n")
    for engine, reason in skipped:
        print(f"not run  route {engine.route}, {engine.backend} {engine.precision}: {reason}")
    broken = [f"route {f.route}, {f.name}: {fault}" for f in found for fault in f.broken]
    for line in broken:
        print(f"FAILED  {line}")
    return 1 if broken else 0


def open_scans(package: Package, data: Path | None) -> Callable[[int], list[PreparedScan]]:
    """A function of a route that prepares the scans to compare on.

    They are labelled scans of `data`, first those that were held out from training, or without
    `data` those of the package's golden vectors.
    """
    if data is None:
        return lambda route: golden_scans(package, route)
    from rare_trt.evaluation.cases import find_cases, load_cases
    from rare_trt.evaluation.prepared_cases import prepare_case

    manifest = package.manifest
    held_out = manifest.model.training.validation_cases
    files = sorted(find_cases(data), key=lambda one: one.name not in held_out)[:MAX_CASES]
    model = manifest.model
    cases = load_cases(files, len(model.channels), len(model.labels), model.intensity)
    entries = {entry.index: entry for entry in manifest.routes}
    return lambda route: [prepare_case(manifest, entries[route], case) for case in cases]


def _row(found: Finding) -> tuple[str, ...]:
    return (
        str(found.route),
        found.name,
        str(found.samples),
        "failed" if found.different is None else f"{found.different:.1e}",
        "failed" if found.dice is None else f"{found.dice:.5f}",
        "" if found.loss is None else f"{found.loss:+.5f}",
        "" if found.logit_error is None else f"{found.logit_error:.2g}",
        "" if found.non_finite is None else str(found.non_finite),
    )
