"""Points of several scans in a table: `rare-trt infer --points FILE`."""

from __future__ import annotations

from collections.abc import Sequence
from os.path import realpath
from pathlib import Path
from typing import Final, TypeAlias

from rare_trt.errors import ScanError

Point: TypeAlias = tuple[float, float, float]

COLUMNS: Final = ("scan", "x", "y", "z")

# A message names so many scans, and counts the others.
NAMED: Final = 10


def points_of_scans(table: Path, scans: Sequence[Path]) -> dict[Path, tuple[Point, ...]]:
    """The points in world mm of each of `scans`, in the order of the rows of a TSV file.

    Its header is `scan x y z`; further columns and rows of other scans are not used. A scan is
    named relative to the table's folder, or as on the command line, once per box. Raises ScanError
    where the table is not valid, or has no row for one of the scans.
    """
    # By its own name, then by the file that this leads to: a scan can be a link to another one.
    wanted = {realpath(scan): scan for scan in scans}
    wanted |= {str(scan.absolute()): scan for scan in scans}
    found: dict[Path, list[Point]] = {scan: [] for scan in scans}
    for name, point in _rows(table):
        for path in (table.parent / name, Path(name)):
            scan = wanted.get(str(path.absolute())) or wanted.get(realpath(path))
            if scan is not None:
                found[scan].append(point)
                break
    without = [str(scan) for scan, points in found.items() if not points]
    if without:
        more = f" and {len(without) - NAMED} more" if len(without) > NAMED else ""
        raise ScanError(
            f"{table}: no point for {', '.join(without[:NAMED])}{more}; expected a row with the "
            "name and a point for every scan: add it, or leave the scan out"
        )
    return {scan: tuple(points) for scan, points in found.items()}


def _rows(table: Path) -> list[tuple[str, Point]]:
    """The name of the scan and the point in every row."""
    try:
        lines = table.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ScanError(
            f"{table}: cannot be read ({reason}); expected a table of points: check the path"
        ) from error
    header = lines[0].split("\t") if lines else []
    if any(header.count(column) != 1 for column in COLUMNS):
        raise ScanError(
            f"{table}: its first line is {'|'.join(header)!r}; expected the columns "
            "scan, x, y and z, separated by tabs: add it"
        )
    places = [header.index(column) for column in COLUMNS]
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        fields = line.split("\t")
        try:
            name, *numbers = (fields[place].strip() for place in places)
            x, y, z = map(float, numbers)
        except (IndexError, ValueError) as error:
            raise ScanError(
                f"{table}: line {number} is {'|'.join(fields)!r}; expected a scan and three "
                "numbers in world mm, separated by tabs: correct it"
            ) from error
        rows.append((name, (x, y, z)))
    return rows
