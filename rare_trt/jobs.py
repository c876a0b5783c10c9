"""Segmentation jobs, and the two executors that run them: in this process, or on a server.

Imports nothing that computes: a client of the server starts with it.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from os.path import realpath
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, Protocol

from rare_trt.errors import OutputError, ScanError
from rare_trt.options import SegmentOptions
from rare_trt.serving.client import Client
from rare_trt.storage.files import refuse_existing, write_files
from rare_trt.storage.naming import (
    LABEL_NAMES,
    LABELS,
    PICTURE,
    REPORT,
    SCAN_SUFFIXES,
    drop_unchanged_names,
    is_compressed,
    is_names_file,
    names_path,
    output_paths,
    read_scan_file,
    stem,
)

if TYPE_CHECKING:
    from rare_trt.result import Result
    from rare_trt.scan.geometry import Triple
    from rare_trt.scan.nifti import Scan
    from rare_trt.segmenter import Segmenter


# How a flag begins that names its box.
BOX_FLAG: Final = re.compile(r"box \d+: ")


@dataclass(frozen=True, eq=False)
class Job:
    """One scan, as one file or one file per channel, and the paths of its outputs, which may exist
    already with `overwrite`. Two jobs are never equal, so that outcomes are looked up by job.

    `options` are those of this scan alone, beside those of the executor.
    """

    files: tuple[Path, ...]
    labels: Path
    report: Path | None
    picture: Path | None
    overwrite: bool = False
    options: SegmentOptions = field(default_factory=dict)

    @property
    def scan(self) -> Path:
        """The file that stands for the scan in messages: the first one."""
        return self.files[0]

    def outputs(self) -> list[Path]:
        """The paths of every file that the job writes."""
        return output_paths(self.labels, self.report, self.picture)


def scan_stem(scan: Path) -> str:
    """The scan's name without .nii.gz, .nii, .mgz or .mgh, or all of it where it has none."""
    return stem(scan) if scan.name.lower().endswith(SCAN_SUFFIXES) else scan.name


def output_at(path: Path, scan: Path, suffix: str) -> Path:
    """The output of `scan` at `path`: the file itself, or in a folder one of the scan's name."""
    return path / f"{scan_stem(scan)}{suffix}" if path.is_dir() else path


def check_outputs(jobs: Sequence[Job], table: Path | None) -> None:
    """Raises OutputError where an output of a job or the `table` of all is an input too, is written
    twice, or is misnamed."""
    _check_suffix([job.picture for job in jobs], ".png")
    _check_suffix([table], ".csv")
    outputs: list[tuple[Path, Job | None]] = [(path, j) for j in jobs for path in j.outputs()]
    if table is not None:
        outputs.append((table, None))
    # Not Path.resolve, which raises where links form a circle: reading and writing report that
    # better.
    inputs = {realpath(path) for job in jobs for path in job.files}
    writers: dict[str, Job | None] = {}
    for output, job in outputs:
        path = realpath(output)
        if path in inputs:
            raise OutputError(f"{path}: is an input: name another output")
        if path not in writers:
            writers[path] = job
            continue
        other = writers[path]
        if job is None or other is None or other is job:
            raise OutputError(f"{path}: is to be written twice: name another output")
        raise OutputError(
            f"{path}: is to be written twice, for {other.scan} and {job.scan}: rename one of them, "
            "or segment them apart"
        )
    for folder in {str(folder) for path in writers for folder in Path(path).parents}:
        if folder in writers:
            raise OutputError(f"{folder}: is to be a file and a folder: name another output")


def _check_suffix(paths: Sequence[Path | None], suffix: str) -> None:
    for path in paths:
        if path is not None and path.suffix.lower() != suffix:
            raise OutputError(f"{path}: expected a name that ends in {suffix}: rename it")


def refuse_outputs(job: Job) -> None:
    """Raises OutputError where an output exists already and may not be replaced.

    A file of label names is no obstacle here: deleted labels leave it behind, and where it has
    other names than the scan's labels, it is refused when they are written.
    """
    if job.overwrite:
        return
    names = names_path(job.labels)
    left_over = is_names_file(names)
    refuse_existing([path for path in job.outputs() if not (left_over and path == names)])


@contextmanager
def prefix_scan_name(files: Sequence[Path]) -> Iterator[None]:
    """Puts the name of the scan's first file in front of a ScanError that names none of `files`."""
    try:
        yield
    except ScanError as error:
        text = str(error)
        if text.startswith(tuple(f"{path}: " for path in files)):
            raise
        raise ScanError(f"{files[0]}: {text}") from error


@dataclass(frozen=True)
class BoxSummary:
    """What is tabulated of one segmented part of a scan: the box around `at_mm`, or all of it."""

    at_mm: Triple | None
    volumes_mm3: Mapping[str, float]
    flags: Sequence[str]


@dataclass(frozen=True)
class ScanSummary:
    """What is printed and tabulated of one segmented scan.

    `route` explains the choice of route `route_index`; `computed` names backend and precision.
    `sha256` has the hashes of the scan (one per channel file) and of the package's manifest, graph
    and weights by these names. `total_ms` is the time from file to files.
    """

    route: str
    route_index: int
    spacing_mm: Triple
    boxes: Sequence[BoxSummary]
    volumes_mm3: Mapping[str, float]
    flags: Sequence[str]
    computed: str
    sha256: Mapping[str, str]
    total_ms: float


def summary_from_report(report: Mapping[str, Any], total_ms: float) -> ScanSummary:
    """The summary of the scan whose report this is; raises KeyError or TypeError where the report
    is not one of this version."""
    scan, package = report["scan"], report["package"]
    boxes = report.get("boxes", [report])
    # With several boxes, flags of one name it.
    of_scan = [flag for flag in report["flags"] if not BOX_FLAG.match(flag)]
    if len(boxes) == 1:
        of_scan = []
    hashes = {part: str(package[f"{part}_sha256"]) for part in ("manifest", "graph", "weights")}
    return ScanSummary(
        route=report["route"]["explained"],
        route_index=report["route"]["route"],
        spacing_mm=scan["spacing_mm"],
        boxes=[
            BoxSummary(box["at_mm"], box["volumes_mm3"], [*box["flags"], *of_scan]) for box in boxes
        ],
        volumes_mm3=report["volumes_mm3"],
        flags=report["flags"],
        computed=f"{report['backend']} {report['precision']}",
        sha256={"scan": scan.get("sha256") or " ".join(scan["channel_sha256"]), **hashes},
        total_ms=total_ms,
    )


class Executor(Protocol):
    """Runs jobs in three steps, so that one scan is read and another written while a third is
    segmented. Every ScanError names the scan."""

    def read(self, job: Job) -> Any:
        """Reads the job's scan."""
        ...

    def segment(self, job: Job, scan: Any) -> Any:
        """Segments a scan that `read` returned, or the job's files."""
        ...

    def save(self, job: Job, result: Any) -> ScanSummary:
        """Writes what `segment` returned to the job's outputs."""
        ...


@dataclass(frozen=True)
class LocalExecutor:
    """Runs jobs in this process."""

    segmenter: Segmenter
    options: SegmentOptions

    def read(self, job: Job) -> Scan:
        """Reads and validates the job's scan."""
        return self.segmenter.read(job.files)

    def segment(self, job: Job, scan: tuple[Path, ...] | Scan) -> Result:
        """Segments a scan that was read, or the job's files."""
        with prefix_scan_name(job.files):
            return self.segmenter.segment(scan, **{**self.options, **job.options})

    def save(self, job: Job, result: Result) -> ScanSummary:
        """Writes every output of the job, or none."""
        result.save(job.labels, report=job.report, picture=job.picture, overwrite=job.overwrite)
        return summary_from_report(result.report(), sum(result.timings_ms.values()))


@dataclass(frozen=True)
class RemoteExecutor:
    """Has a server segment scans of one file each, which are read and written in this process."""

    client: Client
    options: SegmentOptions

    def read(self, job: Job) -> bytes:
        """Reads the scan's file."""
        return read_scan_file(job.scan)

    def segment(self, job: Job, scan: tuple[Path, ...] | bytes) -> tuple[dict[str, bytes], float]:
        """Sends a scan's file; returns the server's files and the milliseconds that they took."""
        start = perf_counter()
        data = scan if isinstance(scan, bytes) else self.read(job)
        with prefix_scan_name(job.files):
            options = {**self.options, **job.options}
            files = self.client.segment(
                data, options, picture=job.picture is not None, name=job.scan.name
            )
        return files, (perf_counter() - start) * 1e3

    def save(self, job: Job, result: tuple[dict[str, bytes], float]) -> ScanSummary:
        """Writes the server's files to the job's outputs, all of them or none."""
        files, total_ms = result
        try:
            # Before anything is written.
            summary = summary_from_report(json.loads(files[REPORT]), total_ms)
        except (ValueError, KeyError, TypeError) as error:
            raise self.client.unexpected_response_error() from error
        labels = files[LABELS]
        if not is_compressed(job.labels):
            labels = gzip.decompress(labels)
        contents = {job.labels: labels, names_path(job.labels): files[LABEL_NAMES]}
        if job.picture is not None:
            contents[job.picture] = files[PICTURE]
        if job.report is not None:
            contents[job.report] = files[REPORT]
        if not job.overwrite:
            drop_unchanged_names(contents, job.labels)
        write_files(contents, overwrite=job.overwrite)
        return summary
