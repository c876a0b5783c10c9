"""Options of a segmentation: one table for the command line, the server and its client.

Imports nothing of the package: clients start with it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

# Keywords of Segmenter.segment and their values; an option that was not given is absent.
SegmentOptions: TypeAlias = dict[str, Any]

YES_OR_NO: Final = {"yes": True, "no": False}


def parse_route(text: str) -> int | None:
    """A route's number, or None for auto."""
    if text != "auto" and not text.isdecimal():
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a valid route; expected auto or a number"
        )
    return None if text == "auto" else int(text)


def parse_point(text: str) -> tuple[float, float, float]:
    """A point X,Y,Z in world millimetres."""
    try:
        x, y, z = (float(part) for part in text.split(","))
    except ValueError as error:
        message = f"{text!r} is not a valid point; expected three numbers X,Y,Z in mm"
        raise argparse.ArgumentTypeError(message) from error
    return x, y, z


def parse_voxel(text: str) -> tuple[int, int, int]:
    """A voxel I,J,K: whole numbers along the scan's stored axes, counted from 0."""
    try:
        i, j, k = (int(part) for part in text.split(","))
    except ValueError as error:
        message = f"{text!r} is not a valid voxel; expected three whole numbers I,J,K from 0 up"
        raise argparse.ArgumentTypeError(message) from error
    return i, j, k


def parse_millimetres(text: str) -> float:
    """A length in millimetres."""
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number; expected mm") from error


def parse_yes_or_no(text: str) -> bool:
    """A switch: yes or no."""
    if text not in YES_OR_NO:
        raise argparse.ArgumentTypeError(f"{text!r} is neither yes nor no; expected one of them")
    return YES_OR_NO[text]


@dataclass(frozen=True)
class Option:
    """One option of a segmentation.

    `name` is its name in a query, and with dashes on the command line; `keyword` is that of
    Segmenter.segment; `parse` converts a text to its value or raises ArgumentTypeError. An option
    that `repeats` can be given several times; its value is a tuple with one entry for each.
    """

    name: str
    keyword: str
    parse: Callable[[str], Any]
    metavar: str
    help: str
    repeats: bool = False


OPTIONS: Final = (
    Option("route", "route", parse_route, "auto|0..3", "default: by voxel spacing"),
    Option(
        "at",
        "at",
        parse_point,
        "X,Y,Z",
        "segment a box of the trained size around this point (world mm); once per box",
        repeats=True,
    ),
    Option(
        "at_voxel",
        "at_voxel",
        parse_voxel,
        "I,J,K",
        "as --at, around this voxel of the scan's stored axes, counted from 0",
        repeats=True,
    ),
    Option(
        "spacing_out", "spacing_out_mm", parse_millimetres, "MM", "labels on a grid of this spacing"
    ),
    Option("strict", "strict", parse_yes_or_no, "", "refuse scans whose labels are doubtful"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds every option to a command."""
    for option in OPTIONS:
        flag = f"--{option.name.replace('_', '-')}"
        kind: dict[str, Any] = {"type": option.parse, "metavar": option.metavar}
        if option.parse is parse_yes_or_no:
            kind = {"action": "store_const", "const": True}
        elif option.repeats:
            kind["action"] = "append"
        parser.add_argument(flag, dest=option.keyword, help=option.help, **kind)


def join_negative_values(texts: Sequence[str]) -> list[str]:
    """Arguments of a command line with `--at -28,...` written as `--at=-28,...`.

    argparse takes a value that begins with a minus and is not one number for an option.
    """
    flags = [f"--{option.name.replace('_', '-')}" for option in OPTIONS if option.repeats]
    joined: list[str] = []
    for text in texts:
        if joined and joined[-1] in flags and re.match(r"-[\d.]", text):
            joined[-1] = f"{joined[-1]}={text}"
        else:
            joined.append(text)
    return joined


def options_from_query(query: Iterable[tuple[str, str]]) -> SegmentOptions:
    """The options in the fields of a query, whose names are known; raises ArgumentTypeError for an
    invalid value, or an option given twice that does not repeat."""
    known = {option.name: option for option in OPTIONS}
    found: SegmentOptions = {}
    for name, text in query:
        option = known[name]
        try:
            value = option.parse(text)
        except ValueError as error:
            # Python does not read numbers of thousands of digits.
            message = f"{name}: {len(text)} characters are not a valid value"
            raise argparse.ArgumentTypeError(message) from error
        if option.repeats:
            value = (*found.get(option.keyword, ()), value)
        elif option.keyword in found:
            raise argparse.ArgumentTypeError(f"{name} is given twice: give it once")
        found[option.keyword] = value
    return {keyword: value for keyword, value in found.items() if value is not None}


def query_from_options(options: SegmentOptions) -> list[tuple[str, str]]:
    """`options` as fields that `options_from_query` reads as the same values, to the last bit."""
    return [
        (option.name, _text(value))
        for option in OPTIONS
        if option.keyword in options
        for value in (options[option.keyword] if option.repeats else [options[option.keyword]])
    ]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ",".join(map(repr, value)) if isinstance(value, tuple) else repr(value)
