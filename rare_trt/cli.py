"""The command line: `rare-trt COMMAND`. Each command is a module of rare_trt.commands."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from io import TextIOWrapper
from typing import Final, TextIO

from rare_trt._version import VERSION
from rare_trt.errors import RareTrtError
from rare_trt.options import join_negative_values

# The signal of a closed pipe, which a shell adds to 128; Windows has no name for it.
SIGPIPE: Final = 13

# Each is a module of rare_trt.commands, in the order of the help.
COMMANDS: Final = (
    *("infer", "serve", "info", "evaluate", "train", "convert"),
    *("build", "calibrate", "verify", "sign", "doctor", "bench"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    0: done; 1: a user's error, printed as one sentence on stderr. Wrong usage exits with 2.
    """
    texts = join_negative_values(sys.argv[1:] if arguments is None else arguments)
    # Importing one command only halves the start.
    known = texts[:1] if texts and texts[0] in COMMANDS else COMMANDS
    parsed = parser(known).parse_args(texts)
    # A program that calls this function keeps its own warnings and its own stdout.
    with warnings.catch_warnings(), _any_character_printed():
        warnings.showwarning = _show_warning
        return _run(parsed)


@contextmanager
def _any_character_printed() -> Iterator[None]:
    """A file's name may hold characters that the terminal's encoding lacks."""
    stdout = sys.stdout
    if not isinstance(stdout, TextIOWrapper):
        yield
        return
    errors = stdout.errors
    stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        # Flushes, which fails once more where printing did.
        with suppress(OSError, ValueError):
            stdout.reconfigure(errors=errors)


def _run(parsed: argparse.Namespace) -> int:
    """Runs the parsed command; its exit code."""
    try:
        status: int = parsed.run(parsed)
        # A failure to flush at the end of the process would not be reported.
        print(end="", flush=True)
    except BrokenPipeError:
        # The reader stopped, as `head` does: drop the rest of the output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + SIGPIPE
    except RareTrtError as error:
        print(f"rare-trt: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        # No module expected it: a folder that may not be entered, a full disk.
        print(
            f"rare-trt: {error.filename or 'the system'}: {error.strerror or error}: check the "
            "path, its permissions and the free space",
            file=sys.stderr,
        )
        return 1
    except MemoryError as error:
        print(
            f"rare-trt: not enough memory ({str(error) or 'for a small block'}): free memory, or "
            "raise this process's limit",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("rare-trt: interrupted", file=sys.stderr)
        return 130
    return status


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"rare-trt: warning: {message}", file=sys.stderr)


def parser(commands: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """The parser of `commands`."""
    top = argparse.ArgumentParser(
        prog="rare-trt",
        description="RARE-UNet segmentation: one route per scan resolution. Research use only.",
    )
    top.add_argument("--version", action="version", version=VERSION)
    added = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in commands:
        import_module(f"rare_trt.commands.{name}").add_parser(added)
    return top


if __name__ == "__main__":
    sys.exit(main())
