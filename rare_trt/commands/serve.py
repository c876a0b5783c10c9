"""`rare-trt serve`: a package loaded once, answering requests of this machine."""

from __future__ import annotations

import argparse
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rare_trt.backends import BACKENDS
from rare_trt.commands import add_signature_option, byte_count, missing_extra
from rare_trt.errors import BackendError, EngineWarning, SignatureWarning

if TYPE_CHECKING:
    from rare_trt.commands import Parsers


def add_parser(commands: Parsers) -> None:
    parser = commands.add_parser(
        "serve",
        help="answer requests of this machine with a package loaded once",
        description="Loads a package, warms every route, and answers POST /v1/segment on a Unix "
        "socket of this user or on a port of the loopback; docs/how-to/serve.md says how. SIGTERM "
        "stops it once what it has taken is answered.",
    )
    parser.add_argument("package", nargs="?", default="hippocampus", metavar="NAME|DIR")
    parser.add_argument("--backend", choices=BACKENDS, default="auto")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--socket", type=Path, metavar="PATH", help="for this user alone")
    place.add_argument("--port", type=_count, metavar="N", help="on 127.0.0.1; 0: a free one")
    parser.add_argument(
        "--allow",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="requests may name scans and outputs under this folder (with --socket only)",
    )
    parser.add_argument(
        "--memory-limit", type=byte_count, metavar="BYTES", help="as with infer; default: the same"
    )
    parser.add_argument(
        "--queue", type=_count, default=8, metavar="N", help="requests that wait; default: 8"
    )
    parser.add_argument(
        "--max-upload", type=_positive, default=256.0, metavar="MIB", help="default: 256"
    )
    parser.add_argument(
        "--timeout",
        type=_positive,
        default=30.0,
        metavar="SECONDS",
        help="for a client to send its request, and to take its answer; default: 30",
    )
    add_signature_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from rare_trt.segmenter import Segmenter

    try:
        from rare_trt.serving.app import Limits
        from rare_trt.serving.listening import on_port, on_socket
        from rare_trt.serving.server import serve
    except ImportError as error:
        raise missing_extra(error, "serve") from error

    if options.allow and options.socket is None:
        raise BackendError(
            "--allow goes with --socket: every user of this machine can reach a port, and would "
            "read and write there as this one"
        )
    for folder in options.allow:
        if not folder.is_dir():
            raise BackendError(f"{folder}: no such folder; expected one for --allow: check it")
    warnings.showwarning = _logged
    limits = Limits(
        max_bytes=int(options.max_upload * (1 << 20)),
        seconds=options.timeout,
        folders=tuple(folder.resolve() for folder in options.allow),
        any_host=options.socket is not None,
    )
    load = partial(
        Segmenter.load,
        options.package,
        options.backend,
        memory_limit=options.memory_limit,
        require_signature=options.require_signature,
    )
    with on_socket(options.socket) if options.socket else on_port(options.port) as listener:
        serve(listener, load, options.queue, limits)
    return 0


def _logged(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    from rare_trt.serving.log import log

    # Ours speak of packages and engines; what others say, nobody here knows.
    own = issubclass(category, (EngineWarning, SignatureWarning))
    log("warning", kind=category.__name__, message=str(message) if own else f"{filename}:{lineno}")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number; expected 0 or more")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0 and below 1000000")
    return value
