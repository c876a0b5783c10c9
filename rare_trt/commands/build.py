"""`rare-trt build`: a package from a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rare_trt.commands import missing_extra

if TYPE_CHECKING:
    from rare_trt.commands import Parsers


def add_parser(commands: Parsers) -> None:
    parser = commands.add_parser(
        "build",
        help="build a package from a checkpoint",
        description="Exports one graph per route, proves each against the network on real scans, "
        "records golden vectors and writes the package.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="what `train` wrote")
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="labelled scans for the proof; the first ones become golden vectors in the package",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="NAME.rare")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing package")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    try:
        from rare_trt.engines.build import build_package
    except ImportError as error:
        raise missing_extra(error, "export") from error
    package, agreements = build_package(
        options.checkpoint, options.data, options.output, overwrite=options.overwrite
    )
    for agreement in agreements:
        print(agreement)
    print(package.folder)
    return 0
