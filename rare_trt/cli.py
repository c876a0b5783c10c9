"""The command line: `rare-trt COMMAND`. Each command lives in rare_trt/commands."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from typing import TextIO

from rare_trt.commands import build, convert, doctor, evaluate, infer, info, train, verify
from rare_trt.errors import RareTrtError

COMMANDS = (infer, info, evaluate, train, convert, build, verify, doctor)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command: 0 done, 1 a user's error in one sentence on stderr, 2 wrong usage."""
    options = parser().parse_args(arguments)
    warnings.showwarning = _show_warning
    try:
        status: int = options.run(options)
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


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = argparse.ArgumentParser(
        prog="rare-trt",
        description="RARE-UNet segmentation: one route per scan resolution. Research use only.",
    )
    top.add_argument("--version", action="version", version=version("rare-trt"))
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return top


if __name__ == "__main__":
    sys.exit(main())
