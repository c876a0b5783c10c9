"""`rare-trt verify`: is a package whole, and does everything in it answer as float32 does?"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from rare_trt.commands import add_signature_option
from rare_trt.evaluation.verification import Finding, compare_with_float32, golden_scans
from rare_trt.package.reading import Package, open_package
from rare_trt.sessions.candidates import SessionCandidates
from rare_trt.sessions.run import PreparedScan
from rare_trt.storage.cache import Cache

if TYPE_CHECKING:
    from rare_trt.commands import Parsers
    from rare_trt.evaluation.cases import Case

MAX_CASES = 20


def add_parser(commands: Parsers) -> None:
    parser = commands.add_parser(
        "verify",
        help="check a package: files, golden vectors, agreement with float32",
        description="Reads every file against its hash, then compares every graph and every "
        "engine that this machine can run with the float32 graph: on the package's golden "
        "vectors, or with --data on labelled scans averaged to each route's spacing. Exits 1 "
        "where a bound is broken.",
    )
    parser.add_argument("package", nargs="?", default="hippocampus", metavar="NAME|DIR")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help=f"labelled scans; the first {MAX_CASES} are used"
    )
    add_signature_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    package = open_package(options.package, require_signature=options.require_signature)
    package.check()
    print(f"{len(package.manifest.files)} files are what the manifest says")
    scans_of = scans_by_route(package, options.data)
    choice = SessionCandidates(package, "auto", Cache())
    found: list[Finding] = []
    try:
        for entry in tqdm(package.manifest.routes, "verifying", unit="route", leave=False):
            found += compare_with_float32(package, entry.index, scans_of(entry.index), choice)
        skipped = [
            item for entry in package.manifest.routes for item in choice.skipped(entry.index)
        ]
    finally:
        choice.close()
    print("\n".join(_table(found)))
    for engine, reason in skipped:
        print(f"not run  route {engine.route}, {engine.backend} {engine.precision}: {reason}")
    broken = [f"route {f.route}, {f.name}: {fault}" for f in found for fault in f.broken]
    for line in broken:
        print(f"FAILED  {line}")
    return 1 if broken else 0


def scans_by_route(package: Package, data: Path | None) -> Callable[[int], list[PreparedScan]]:
    """The scans to compare on, per route: those of `data`, or the package's golden vectors."""
    if data is None:
        return lambda route: golden_scans(package, route)
    from rare_trt.evaluation.prepared_cases import prepare_case

    cases = _cases(package, data)
    manifest = package.manifest
    entries = {entry.index: entry for entry in manifest.routes}
    return lambda route: [prepare_case(manifest, entries[route], case) for case in cases]


def _cases(package: Package, data: Path) -> list[Case]:
    """The first cases of `data`, those kept back from training before all others."""
    from rare_trt.evaluation.cases import find_cases, load_cases

    model = package.manifest.model
    kept_back = set(model.training.validation_cases)
    files = sorted(find_cases(data), key=lambda one: one.name not in kept_back)
    return load_cases(files[:MAX_CASES], len(model.channels), len(model.labels))


def _table(found: list[Finding]) -> list[str]:
    lines = [
        "",
        "route  variant              scans  other labels  Dice with fp32  Dice lost  logit error  "
        "not finite",
    ]
    for f in found:
        different = "failed" if f.different is None else f"{f.different:.1e}"
        agreement = "failed" if f.dice is None else f"{f.dice:.5f}"
        loss = "" if f.loss is None else f"{f.loss:+.5f}"
        error = "" if f.logit_error is None else f"{f.logit_error:.2g}"
        non_finite = "" if f.non_finite is None else str(f.non_finite)
        lines.append(
            f"{f.route:<5}  {f.name:<19}  {f.samples:>5}  {different:>12}  {agreement:>14}  "
            f"{loss:>9}  {error:>11}  {non_finite:>10}"
        )
    return [*lines, ""]
