"""The table of a run: a CSV file with one row per scan."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from os.path import realpath
from pathlib import Path
from typing import Final, TypeAlias

from rare_trt.batch.outcome import Failure, Outcome, Skip
from rare_trt.errors import OutputError
from rare_trt.jobs import BoxSummary, Job, ScanSummary
from rare_trt.storage.files import refuse_existing, write_files

# A cell by the name of its column.
Row: TypeAlias = dict[str, str]

# The columns before and behind those of the volumes.
FIRST: Final = (
    *("scan", "labels", "status", "reason", "at_mm", "route", "spacing_mm", "computed"),
    *("seconds", "flags", "flag_sentences"),
)
VOLUME: Final = "volume_mm3: "
LAST: Final = ("scan_sha256", "manifest_sha256", "graph_sha256", "weights_sha256")

# Between the flags of a scan in one cell: their sentences have commas and semicolons.
BETWEEN_FLAGS: Final = " | "

# How a cell begins that spreadsheets take for a formula.
FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


def rows_from_outcome(job: Job, outcome: Outcome) -> list[Row]:
    """The rows of one scan: one per segmented box, or one."""
    row = _names(job)
    if isinstance(outcome, ScanSummary):
        row |= {"status": "segmented"} | _scan_cells(outcome)
        return [row | _box_cells(box) for box in outcome.boxes]
    status = "skipped" if isinstance(outcome, Skip) else "failed"
    return [row | {"status": status, "reason": _printable(outcome.reason)}]


def _names(job: Job) -> Row:
    return {"scan": _text(job.scan), "labels": _text(job.labels)}


def _scan_cells(summary: ScanSummary) -> Row:
    return {
        "route": str(summary.route_index),
        "spacing_mm": " x ".join(f"{size:.6g}" for size in summary.spacing_mm),
        "computed": summary.computed,
        "seconds": f"{summary.total_ms / 1e3:.3f}",
        **{f"{part}_sha256": digest for part, digest in summary.sha256.items()},
    }


def _box_cells(box: BoxSummary) -> Row:
    return {
        "at_mm": "" if box.at_mm is None else ",".join(f"{x:g}" for x in box.at_mm),
        "flags": str(len(box.flags)),
        "flag_sentences": BETWEEN_FLAGS.join(box.flags),
        **{f"{VOLUME}{name}": f"{mm3:.3f}" for name, mm3 in box.volumes_mm3.items()},
    }


def table_bytes(rows: Sequence[Row]) -> bytes:
    """The rows as a CSV file, with a column per volume of any of them."""
    volumes = dict.fromkeys(name for row in rows for name in row if name.startswith(VOLUME))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, (*FIRST, *volumes, *LAST), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def read_table(path: Path) -> list[Row]:
    """The rows of a table that an earlier run wrote; raises OutputError where it is none."""
    try:
        reader = csv.DictReader(io.StringIO(path.read_bytes().decode(), newline=""))
        rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error):
        rows, names = [], []
    else:
        names = [name for name in reader.fieldnames or () if not name.startswith(VOLUME)]
    # None stands for cells too many or too few.
    if names != [*FIRST, *LAST] or any(None in {*row, *row.values()} for row in rows):
        raise OutputError(
            f"{path}: exists already and is no table of this version: name another table or pass "
            "--overwrite"
        )
    return rows


@contextmanager
def write_table(
    path: Path, jobs: Sequence[Job], skipped: Mapping[Job, Skip], *, overwrite: bool, resume: bool
) -> Iterator[dict[Job, Outcome]]:
    """Collects the outcome of each job, and writes the table at the end, whatever ends the block.

    Begins with those of the `skipped`, and whether they are flagged. A scan without an outcome was
    not reached. With `resume` the table may exist already: scans that are skipped have the rows
    that it has for them, and so have scans of other runs. Raises OutputError at the start where the
    table may not be written.
    """
    is_there = os.path.lexists(path)
    if not overwrite and not (resume and is_there):
        refuse_existing([path])
    earlier: list[Row] = []
    if resume and is_there:
        # What is no table is replaced with `overwrite` alone.
        with suppress(OutputError) if overwrite else nullcontext():
            earlier = read_table(path)
    _check_parent(path)
    flagged = {_place(row) for row in earlier if row["flags"] not in ("", "0")}
    outcomes: dict[Job, Outcome] = {
        job: replace(skip, is_flagged=_place(_names(job)) in flagged)
        for job, skip in skipped.items()
    }
    try:
        yield outcomes
    finally:
        rows = _rows(jobs, outcomes, earlier)
        write_files({path: table_bytes(rows)}, overwrite=overwrite or resume)


def _rows(
    jobs: Sequence[Job], outcomes: Mapping[Job, Outcome], earlier: Sequence[Row]
) -> list[Row]:
    known: dict[str, list[Row]] = {}
    for row in earlier:
        known.setdefault(_place(row), []).append(row)
    rows: list[Row] = []
    for job in jobs:
        outcome = outcomes.get(job, Failure("the run was interrupted before"))
        new = rows_from_outcome(job, outcome)
        before = known.pop(_place(_names(job)), [])
        segmented = [row for row in before if row["status"] == "segmented"]
        rows += segmented if segmented and isinstance(outcome, Skip) else new
    return rows + [row for before in known.values() for row in before]


def _place(row: Row) -> str:
    """The labels of a row, however they were named: scans of several folders can have one name, and
    a scan several labels."""
    return realpath(row["labels"])


def _check_parent(path: Path) -> None:
    """Raises OutputError where `path` cannot be written for its folder: that is known before the
    work, not after it."""
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(
            f"{path}: cannot be written ({folder} is no folder that this user may write to): name "
            "another table"
        )


def _text(path: Path) -> str:
    return _printable(str(path))


def _printable(text: str) -> str:
    """`text` without what UTF-8 cannot encode: names of files can be any bytes.

    A name that begins as a formula does gets its folder, so that no spreadsheet computes it.
    """
    text = f"./{text}" if text.startswith(FORMULA) else text
    return text.encode(errors="backslashreplace").decode()
