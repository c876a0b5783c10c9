"""The command line: `rare-trt COMMAND`. Each command lives in rare_trt/commands."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from typing import Final, TextIO

from rare_trt._version import VERSION
from rare_trt.errors import RareTrtError

# What a shell adds to 128 where a reader went away; Windows has no name for it.
SIGPIPE: Final = 13

# Each is a module of rare_trt.commands, in the order of the help.
COMMANDS: Final = (
    *("infer", "serve", "info", "evaluate", "train", "convert"),
    *("build", "calibrate", "verify", "sign", "doctor", "bench"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command: 0 done, 1 a user's error in one sentence on stderr, 2 wrong usage."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    # One command's options are read without loading the others: they would double the start.
    options = parser(given[:1] if given[:1] and given[0] in COMMANDS else COMMANDS).parse_args(
        given
    )
    warnings.showwarning = _show_warning
    if isinstance(sys.stdout, TextIOWrapper):
        # A file's name may hold what the terminal's encoding does not.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status: int = options.run(options)
        # What fails here would fail unheard at the end of the process.
        print(end="", flush=True)
    except BrokenPipeError:
        # Whoever read stopped, as `head` does. What is left to print goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + SIGPIPE
    except RareTrtError as error:
        print(f"rare-trt: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        # What no module met on purpose: a folder that may not be entered, a full disk.
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
