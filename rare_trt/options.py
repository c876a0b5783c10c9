"""How a scan is to be segmented: one table for the command line, the server and its client.

Loads nothing: clients start with it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

# Keywords of Segmenter.segment, with values that were asked for.
SegmentOptions: TypeAlias = dict[str, Any]

YES_OR_NO: Final = {"yes": True, "no": False}


def route(text: str) -> int | None:
    """A route's number, or None for auto."""
    if text != "auto" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no route; expected auto or a number")
    return None if text == "auto" else int(text)


def point(text: str) -> tuple[float, float, float]:
    """World millimetres X,Y,Z."""
    try:
        x, y, z = (float(part) for part in text.split(","))
    except ValueError as error:
        message = f"{text!r} is no point; expected three numbers X,Y,Z in mm"
        raise argparse.ArgumentTypeError(message) from error
    return x, y, z


def millimetres(text: str) -> float:
    """One length."""
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no number; expected mm") from error


def yes_or_no(text: str) -> bool:
    """One switch."""
    if text not in YES_OR_NO:
        raise argparse.ArgumentTypeError(f"{text!r} is neither yes nor no; expected one of them")
    return YES_OR_NO[text]


@dataclass(frozen=True)
class Option:
    """`name` is that of the query, and with dashes of the command line; `keyword` is that of
    Segmenter.segment; `read` makes its value of a text or raises ArgumentTypeError."""

    name: str
    keyword: str
    read: Callable[[str], Any]
    metavar: str
    help: str


OPTIONS: Final = (
    Option("route", "route", route, "auto|0..3", "default: by voxel spacing"),
    Option(
        "at",
        "at",
        point,
        "X,Y,Z",
        "segment a box of the trained size around this point (world mm; write --at=-20,...)",
    ),
    Option("spacing_out", "spacing_out_mm", millimetres, "MM", "labels on a grid of this spacing"),
    Option("strict", "strict", yes_or_no, "", "refuse scans unlike the training data"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds every option to a command."""
    for option in OPTIONS:
        flag = f"--{option.name.replace('_', '-')}"
        kind: dict[str, Any] = {"type": option.read, "metavar": option.metavar}
        if option.read is yes_or_no:
            kind = {"action": "store_const", "const": True}
        parser.add_argument(flag, dest=option.keyword, help=option.help, **kind)


def options_from_arguments(namespace: argparse.Namespace) -> SegmentOptions:
    """What a command line asked for."""
    found = {option.keyword: getattr(namespace, option.keyword) for option in OPTIONS}
    return {keyword: value for keyword, value in found.items() if value is not None}


def options_from_query(query: Mapping[str, str]) -> SegmentOptions:
    """What a query asked for; raises ArgumentTypeError for a value that is none of its option, and
    for a name that is no option."""
    known = {option.name: option for option in OPTIONS}
    unknown = [name for name in query if name not in known]
    if unknown:
        names = ", ".join(known)
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no option; expected one of {names}")
    found = {}
    for name, text in query.items():
        try:
            found[known[name].keyword] = known[name].read(text)
        except ValueError as error:
            # Python does not read numbers of thousands of digits.
            message = f"{name}: {len(text)} characters are no value of it"
            raise argparse.ArgumentTypeError(message) from error
    return {keyword: value for keyword, value in found.items() if value is not None}


def as_query(asked: SegmentOptions) -> dict[str, str]:
    """`asked` as texts that are read back as the same values, to the last bit."""
    return {o.name: _as_text(asked[o.keyword]) for o in OPTIONS if o.keyword in asked}


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ",".join(map(repr, value)) if isinstance(value, tuple) else repr(value)
