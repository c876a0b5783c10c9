"""`rare-trt calibrate`: INT8 graphs for a package, where they are within a Dice budget."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rare_trt.commands import add_package_arguments, missing_extra
from rare_trt.commands.tables import text_table
from rare_trt.errors import OutputError
from rare_trt.package.reading import open_package
from rare_trt.package.writing import refuse_folder

if TYPE_CHECKING:
    from rare_trt.commands import Parsers


def add_parser(commands: Parsers) -> None:
    """Adds `calibrate` to the command line."""
    parser = commands.add_parser(
        "calibrate",
        help="add INT8 graphs to a package, where they are within a Dice budget",
        description="Measures ranges on scans over the whole band of each route, searches the "
        "convolutions that gain most time within the budget, checks the result on scans held out "
        "from training, and records every variant that this CPU can run, fastest first. Every step "
        "of the search is in the package's calibration folder.",
    )
    add_package_arguments(parser)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="labelled scans")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="NAME.rare",
        help="default: the package, if it is yours",
    )
    parser.add_argument(
        "--dice-budget",
        type=float,
        metavar="DICE",
        help="mean Dice that INT8 may lose on the two finest routes, half of what coarser ones may "
        "(default: 0.003)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing package")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Writes the calibrated package and prints the variants of every route."""
    try:
        from rare_trt.calibration.package_calibration import DICE_BUDGET, calibrate_package
    except ImportError as error:
        raise missing_extra(error, "calibrate") from error
    budget = DICE_BUDGET if options.dice_budget is None else options.dice_budget
    if not 0.0 <= budget <= 1.0:
        raise OutputError(f"the Dice budget is {budget:g}; expected 0 to 1: correct --dice-budget")
    package = open_package(options.package, require_signature=options.require_signature)
    if options.output is None and package.is_shipped:
        raise OutputError(
            f"{package.folder}: is part of the installation, which is not written to: name a copy "
            "with -o"
        )
    out = options.output or package.folder
    overwrite = options.overwrite or options.output is None
    refuse_folder(out, overwrite=overwrite)
    package = calibrate_package(package, options.data, budget, out, overwrite=overwrite)
    rows = [("route", "variant", "times float32", "Dice lost", "agreement")]
    for entry in package.manifest.calibration:
        int8 = f"{len(entry.int8_convolutions)} of {entry.convolutions} convolutions in INT8"
        print(f"route {entry.route}: {entry.reason or int8}")
        rows += [
            (
                str(entry.route),
                variant.arithmetic,
                f"{variant.speed:.2f}",
                f"{variant.dice_lost:+.4f}",
                f"{variant.agreement:.4f}",
            )
            for variant in entry.variants
        ]
    print(f"\n{text_table(rows)}\n")
    print(package.folder)
    return 0
