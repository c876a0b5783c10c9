"""`rare-trt sign`: says with a key who made a package."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rare_trt.package.writing import sign_package

if TYPE_CHECKING:
    from rare_trt.commands import Parsers


def add_parser(commands: Parsers) -> None:
    parser = commands.add_parser(
        "sign",
        help="sign a package, so that --require-signature takes it",
        description="Checks every file of the package against its hash, then signs the manifest "
        "with an Ed25519 key (openssl genpkey -algorithm ed25519 -out key.pem). Whoever has the "
        "public half (openssl pkey -in key.pem -pubout) can ask for this signature with "
        "--require-signature. A package that is changed afterwards is no longer signed.",
    )
    parser.add_argument("package", metavar="NAME|DIR")
    parser.add_argument("--key", type=Path, required=True, metavar="KEY.pem", help="private key")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    print(sign_package(options.package, options.key))
    return 0
