"""Segmentation jobs, and the two executors that run them: in this process, or on a server.

Imports nothing that computes: a client of the server starts with it.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os.path import realpath
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from rare_trt.errors import OutputError, ScanError
from rare_trt.options import SegmentOptions
from rare_trt.serving.client import Client
from rare_trt.storage.files import write_files
from rare_trt.storage.naming import (
    LABEL_NAMES,
    LABELS,
    PICTURE,
    REPORT,
    SUFFIXES,
    is_compressed,
    names_path,
    output_paths,
    read_scan_file,
    stem,
)

if TYPE_CHECKING:
    from rare_trt.result import Result
    from rare_trt.scan.nifti import Scan
    from rare_trt.segmenter import Segmenter


@dataclass(frozen=True)
class Job:
    """One scan, as one file or one file per channel, and the paths of its outputs."""

    files: tuple[Path, ...]
    labels: Path
    report: Path | None
    picture: Path | None

    @property
    def scan(self) -> Path:
        """The file that stands for the scan in messages: the first one."""
        return self.files[0]

    def outputs(self) -> list[Path]:
        """The paths of every file that the job writes."""
        return output_paths(self.labels, self.report, self.picture)


def labels_beside(scan: Path) -> Path:
    """The default path of a scan's labels."""
    return scan.with_name(f"{scan_stem(scan)}_labels.nii.gz")


def scan_stem(scan: Path) -> str:
    """The scan's name without .nii or .nii.gz, or all of it where it has neither."""
    return stem(scan) if scan.name.lower().endswith(SUFFIXES) else scan.name


def check_outputs(jobs: Sequence[Job]) -> None:
    """Raises OutputError where an output is an input too, is written twice, or is misnamed."""
    for job in jobs:
        if job.picture and job.picture.suffix.lower() != ".png":
            raise OutputError(f"{job.picture}: expected a name that ends in .png: rename it")
    # Not Path.resolve, which raises where links form a circle: reading and writing report that
    # better.
    inputs = {realpath(path) for job in jobs for path in job.files}
    writers: dict[str, Job] = {}
    for job in jobs:
        for path in map(realpath, job.outputs()):
            if path in inputs:
                raise OutputError(f"{path}: is an input: name another output")
            if path not in writers:
                writers[path] = job
            elif writers[path] is job:
                raise OutputError(f"{path}: is to be written twice: name another output")
            else:
                raise OutputError(
                    f"{path}: is to be written twice, for {writers[path].scan} and {job.scan}: "
                    "rename one of them, or segment them apart"
                )


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
class ScanSummary:
    """Summary printed for one scan; `computed` names backend and precision."""

    route: str
    volumes_mm3: dict[str, float]
    flags: Sequence[str]
    computed: str
    total_ms: float


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
    overwrite: bool

    def read(self, job: Job) -> Scan:
        """Reads and validates the job's scan."""
        return self.segmenter.read(job.files)

    def segment(self, job: Job, scan: tuple[Path, ...] | Scan) -> Result:
        """Segments a scan that was read, or the job's files."""
        with prefix_scan_name(job.files):
            return self.segmenter.segment(scan, **self.options)

    def save(self, job: Job, result: Result) -> ScanSummary:
        """Writes every output of the job, or none."""
        result.save(job.labels, report=job.report, picture=job.picture, overwrite=self.overwrite)
        names = result.package.manifest.model.labels[1:]
        return ScanSummary(
            str(result.route),
            dict(zip(names, result.volumes_mm3, strict=True)),
            result.flags(),
            f"{result.backend} {result.precision}",
            sum(result.timings_ms.values()),
        )


@dataclass(frozen=True)
class RemoteExecutor:
    """Has a server segment scans of one file each, which are read and written in this process."""

    client: Client
    options: SegmentOptions
    overwrite: bool

    def read(self, job: Job) -> bytes:
        """Reads the scan's file."""
        return read_scan_file(job.scan)

    def segment(self, job: Job, scan: tuple[Path, ...] | bytes) -> tuple[dict[str, bytes], float]:
        """Sends a scan's file; returns the server's files and the milliseconds that they took."""
        start = perf_counter()
        data = scan if isinstance(scan, bytes) else self.read(job)
        with prefix_scan_name(job.files):
            files = self.client.segment(
                data, self.options, picture=job.picture is not None, name=job.scan.name
            )
        return files, (perf_counter() - start) * 1e3

    def save(self, job: Job, result: tuple[dict[str, bytes], float]) -> ScanSummary:
        """Writes the server's files to the job's outputs, all of them or none."""
        files, total_ms = result
        try:
            # Before anything is written.
            summary = _summary_from_report(json.loads(files[REPORT]), total_ms)
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
        write_files(contents, overwrite=self.overwrite)
        return summary


def _summary_from_report(report: dict[str, Any], total_ms: float) -> ScanSummary:
    return ScanSummary(
        report["route"]["explained"],
        report["volumes_mm3"],
        report["flags"],
        f"{report['backend']} {report['precision']}",
        total_ms,
    )
