"""`rare-trt serve`: a package loaded once, which segments scans for programs of this machine."""

from __future__ import annotations

import argparse
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rare_trt.backends import BACKENDS
from rare_trt.commands import add_signature_option, add_threads_option, byte_count, missing_extra
from rare_trt.errors import CacheWarning, EngineWarning, SignatureWarning

if TYPE_CHECKING:
    from rare_trt.commands import Parsers


def add_parser(commands: Parsers) -> None:
    """Adds `serve` to the command line."""
    parser = commands.add_parser(
        "serve",
        help="load a package once and segment scans for programs of this machine",
        description="Loads a package, warms every route, and serves POST /v1/segment on a Unix "
        "socket of this user or on a port of the loopback; see docs/how-to/serve.md. SIGTERM stops "
        "it once the requests that it has taken are finished.",
    )
    parser.add_argument("package", nargs="?", default="hippocampus", metavar="NAME|DIR")
    parser.add_argument("--backend", choices=BACKENDS, default="auto")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--socket", type=Path, metavar="PATH", help="for this user alone")
    place.add_argument("--port", type=_count, metavar="N", help="on 127.0.0.1; 0: a free one")
    parser.add_argument(
        "--memory-limit", type=byte_count, metavar="BYTES", help="as with infer; default: the same"
    )
    add_threads_option(parser)
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
        help="for a client to send its request, and to read the response; default: 30",
    )
    add_signature_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT."""
    from rare_trt.segmenter import Segmenter

    try:
        from rare_trt.serving.app import Limits
        from rare_trt.serving.listeners import listen_on_port, listen_on_socket
        from rare_trt.serving.server import serve
    except ImportError as error:
        raise missing_extra(error, "serve") from error

    warnings.showwarning = _log_warning
    limits = Limits(
        max_bytes=int(arguments.max_upload * (1 << 20)),
        seconds=arguments.timeout,
        any_host=arguments.socket is not None,
    )
    load = partial(
        Segmenter.load,
        arguments.package,
        arguments.backend,
        memory_limit=arguments.memory_limit,
        threads=arguments.threads,
        require_signature=arguments.require_signature,
    )
    listening = (
        listen_on_socket(arguments.socket) if arguments.socket else listen_on_port(arguments.port)
    )
    with listening as listener:
        serve(listener, load, arguments.queue, limits)
    return 0


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    from rare_trt.serving.log import log

    # Third-party warnings may contain user data; omit their text.
    own = issubclass(category, (CacheWarning, EngineWarning, SignatureWarning))
    log("warning", kind=category.__name__, message=str(message) if own else f"{filename}:{lineno}")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number; expected 0 or more")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and below 1000000")
    return value
