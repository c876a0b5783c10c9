"""Options of a segmentation: one table for the command line, the server and its client.

Imports nothing of the package: clients start with it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
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
    Segmenter.segment; `parse` converts a text to its value or raises ArgumentTypeError.
    """

    name: str
    keyword: str
    parse: Callable[[str], Any]
    metavar: str
    help: str


OPTIONS: Final = (
    Option("route", "route", parse_route, "auto|0..3", "default: by voxel spacing"),
    Option(
        "at",
        "at",
        parse_point,
        "X,Y,Z",
        "segment a box of the trained size around this point (world mm; write --at=-20,...)",
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
        parser.add_argument(flag, dest=option.keyword, help=option.help, **kind)


def options_from_query(query: Mapping[str, str]) -> SegmentOptions:
    """The options in a query; raises ArgumentTypeError for an unknown name or an invalid value."""
    known = {option.name: option for option in OPTIONS}
    unknown = [name for name in query if name not in known]
    if unknown:
        names = ", ".join(known)
        raise argparse.ArgumentTypeError(
            f"{unknown[0]!r} is not an option; expected one of {names}"
        )
    found = {}
    for name, text in query.items():
        try:
            found[known[name].keyword] = known[name].parse(text)
        except ValueError as error:
            # Python does not read numbers of thousands of digits.
            message = f"{name}: {len(text)} characters are not a valid value"
            raise argparse.ArgumentTypeError(message) from error
    return {keyword: value for keyword, value in found.items() if value is not None}


def query_from_options(options: SegmentOptions) -> dict[str, str]:
    """`options` as texts that `options_from_query` reads as the same values, to the last bit."""
    return {o.name: _text(options[o.keyword]) for o in OPTIONS if o.keyword in options}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ",".join(map(repr, value)) if isinstance(value, tuple) else repr(value)
