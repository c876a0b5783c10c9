"""The two ways to answer a job: in this process, or by asking a server. Three steps each, so that
the next scan can be read and the last one written meanwhile."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from rare_trt.errors import ScanError
from rare_trt.jobs import Job, save, segment_job, with_scan_name
from rare_trt.options import SegmentOptions
from rare_trt.serving.client import Server
from rare_trt.storage.files import write_files
from rare_trt.storage.naming import (
    LABEL_NAMES,
    LABELS,
    PICTURE,
    REPORT,
    is_compressed,
    names_path,
    read_scan_file,
)

if TYPE_CHECKING:
    from rare_trt.result import Result
    from rare_trt.scan.nifti import Scan
    from rare_trt.segmenter import Segmenter


@dataclass(frozen=True)
class ScanSummary:
    """What is printed of an answer: `computed` is backend and precision."""

    route: str
    volumes_mm3: dict[str, float]
    flags: Sequence[str]
    computed: str
    total_ms: float


class Executor(Protocol):
    """Reads, answers and writes jobs; every ScanError names the scan."""

    def read(self, job: Job) -> Any:
        """The job's scan."""
        ...

    def answered(self, job: Job, scan: Any) -> Any:
        """The answer to a scan that `read` gave, or to the job's files."""
        ...

    def saved(self, job: Job, answer: Any) -> ScanSummary:
        """Writes an answer."""
        ...


@dataclass(frozen=True)
class LocalExecutor:
    """In this process."""

    segmenter: Segmenter
    asked: SegmentOptions
    overwrite: bool

    def read(self, job: Job) -> Scan:
        return self.segmenter.read(job.files)

    def answered(self, job: Job, scan: tuple[Path, ...] | Scan) -> Result:
        return segment_job(self.segmenter, job, scan, self.asked)

    def saved(self, job: Job, answer: Result) -> ScanSummary:
        save(answer, job, overwrite=self.overwrite)
        names = answer.package.manifest.model.labels[1:]
        return ScanSummary(
            str(answer.route),
            dict(zip(names, answer.volumes_mm3, strict=True)),
            answer.flags(),
            f"{answer.backend} {answer.precision}",
            sum(answer.timings_ms.values()),
        )


@dataclass(frozen=True)
class RemoteExecutor:
    """By asking a server, which is sent one file. It computes; what is read and written is read and
    written here."""

    server: Server
    asked: SegmentOptions
    overwrite: bool

    def read(self, job: Job) -> bytes:
        return read_scan_file(job.scan)

    def answered(self, job: Job, scan: tuple[Path, ...] | bytes) -> tuple[dict[str, bytes], float]:
        """The server's files, and the milliseconds that they took."""
        start = perf_counter()
        data = scan if isinstance(scan, bytes) else self.read(job)
        try:
            files = self.server.segment(data, self.asked, picture=job.picture is not None)
        except ScanError as error:
            raise with_scan_name(job.files, error) from error
        return files, (perf_counter() - start) * 1e3

    def saved(self, job: Job, answer: tuple[dict[str, bytes], float]) -> ScanSummary:
        files, total_ms = answer
        try:
            # Before anything is written.
            told = _told(json.loads(files[REPORT]), total_ms)
        except (ValueError, KeyError, TypeError) as error:
            raise self.server.stranger() from error
        labels = files[LABELS]
        if not is_compressed(job.labels):
            labels = gzip.decompress(labels)
        contents = {job.labels: labels, names_path(job.labels): files[LABEL_NAMES]}
        if job.picture is not None:
            contents[job.picture] = files[PICTURE]
        if job.report is not None:
            contents[job.report] = files[REPORT]
        write_files(contents, overwrite=self.overwrite)
        return told


def _told(report: dict[str, Any], total_ms: float) -> ScanSummary:
    return ScanSummary(
        report["route"]["explained"],
        report["volumes_mm3"],
        report["flags"],
        f"{report['backend']} {report['precision']}",
        total_ms,
    )
