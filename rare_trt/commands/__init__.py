"""The commands of `rare-trt`: each module adds its parser and runs on the parsed arguments."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from rare_trt.errors import BackendError

if TYPE_CHECKING:
    Parsers: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]


def missing_extra(error: ImportError, extra: str) -> BackendError:
    """The error for an installation that lacks a package of `extra`, which a command needs."""
    return BackendError(
        f"this command needs the package {error.name}, which the base install leaves out: "
        f"pip install 'rare-trt[{extra}]'"
    )


def require(extra: str, *packages: str) -> None:
    """Raises BackendError unless `packages`, which belong to `extra`, can be imported.

    For packages that a command imports late, so that it fails before the long work.
    """
    try:
        for name in packages:
            import_module(name)
    except ImportError as error:
        raise missing_extra(error, extra) from error


def add_signature_option(parser: argparse.ArgumentParser) -> None:
    """Adds --require-signature to a command that opens a package."""
    parser.add_argument(
        "--require-signature",
        type=Path,
        metavar="KEY.pem",
        help="public key that must have signed the package; nothing else of it is used otherwise",
    )


def add_threads_option(parser: argparse.ArgumentParser) -> None:
    """Adds --threads to a command that segments on CPUs."""
    parser.add_argument(
        "--threads",
        type=_thread_count,
        metavar="N",
        help="CPU threads for OpenVINO (default: RARE_TRT_THREADS, or the CPUs that this process "
        "may use, a container's quota included)",
    )


def _thread_count(text: str) -> int:
    if not text.isdecimal() or len(text) > 9 or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of threads; expected 1 or more")
    return int(text)


def byte_count(text: str) -> int:
    """Bytes from a text such as 4GiB, as a parser's type."""
    from rare_trt.plan.memory import bytes_of

    try:
        return bytes_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_package_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the package, by default the shipped one, and --require-signature to a command."""
    parser.add_argument("package", nargs="?", default="hippocampus", metavar="NAME|DIR")
    add_signature_option(parser)


def print_validation_dice(scores: Sequence[Sequence[float]]) -> None:
    """Prints a checkpoint's Dice on validation cases: `scores` per route and label."""
    for route, by_label in enumerate(scores):
        print(f"route {route}: validation Dice {' / '.join(f'{s:.3f}' for s in by_label)}")
