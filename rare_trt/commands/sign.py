"""`rare-trt sign`: a signature that identifies the maker of a package."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rare_trt.package.writing import sign_package

if TYPE_CHECKING:
    from rare_trt.commands import Parsers


def add_parser(commands: Parsers) -> None:
    """Adds `sign` to the command line."""
    parser = commands.add_parser(
        "sign",
        help="sign a package, so that --require-signature accepts it",
        description="Checks every file of the package against its hash, then signs the manifest "
        "with an Ed25519 key (openssl genpkey -algorithm ed25519 -out key.pem). Users who have "
        "the public half (openssl pkey -in key.pem -pubout) can require this signature with "
        "--require-signature. A change of the package removes its signature.",
    )
    parser.add_argument("package", metavar="NAME|DIR")
    parser.add_argument("--key", type=Path, required=True, metavar="KEY.pem", help="private key")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Signs the package and prints the path of the signature."""
    print(sign_package(options.package, options.key))
    return 0
