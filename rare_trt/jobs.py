"""A scan and where its labels go: what the command line and the server both do with one.

Loads nothing that computes: a client of the server plans its jobs with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import realpath
from pathlib import Path
from typing import TYPE_CHECKING

from rare_trt.errors import OutputError, ScanError
from rare_trt.options import SegmentOptions
from rare_trt.storage.files import refuse_existing
from rare_trt.storage.naming import SUFFIXES, output_paths, stem

if TYPE_CHECKING:
    from rare_trt.result import Result
    from rare_trt.scan.nifti import Scan
    from rare_trt.segmenter import Segmenter


@dataclass(frozen=True)
class Job:
    """One scan, as one file or one file per channel, and where its outputs go."""

    files: tuple[Path, ...]
    labels: Path
    report: Path | None
    picture: Path | None

    @property
    def scan(self) -> Path:
        """The file that the scan goes by."""
        return self.files[0]

    def outputs(self) -> list[Path]:
        """Every file that it writes."""
        return output_paths(self.labels, self.report, self.picture)


def labels_beside(scan: Path) -> Path:
    """Where the labels of a scan go unless a place is named."""
    return scan.with_name(f"{scan_stem(scan)}_labels.nii.gz")


def scan_stem(scan: Path) -> str:
    """The scan's name without .nii or .nii.gz, or all of it where it has neither."""
    return stem(scan) if scan.name.lower().endswith(SUFFIXES) else scan.name


def check_outputs(jobs: Sequence[Job]) -> None:
    """Raises OutputError where an output is an input too, is written twice, or is misnamed."""
    for job in jobs:
        if job.picture:
            check_picture(job.picture)
    # Not Path.resolve, which raises where links go in a circle: reading and writing say so better.
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


def check_picture(path: Path) -> None:
    """Raises OutputError unless the name is that of a PNG."""
    if path.suffix.lower() != ".png":
        raise OutputError(f"{path}: expected a name that ends in .png: rename it")


def run_job(segmenter: Segmenter, job: Job, asked: SegmentOptions, *, overwrite: bool) -> Result:
    """Segments and writes; every ScanError names a file of the scan."""
    if not overwrite:
        refuse_existing(job.outputs())
    result = segment_job(segmenter, job, job.files, asked)
    save(result, job, overwrite=overwrite)
    return result


def segment_job(
    segmenter: Segmenter, job: Job, scan: tuple[Path, ...] | Scan, asked: SegmentOptions
) -> Result:
    """The answer to `scan`, which is the job's files or what was read of them before."""
    try:
        return segmenter.segment(scan, **asked)
    except ScanError as error:
        raise with_scan_name(job.files, error) from error


def save(result: Result, job: Job, *, overwrite: bool) -> None:
    """Writes every output of the job."""
    result.save(job.labels, report=job.report, picture=job.picture, overwrite=overwrite)


def with_scan_name(files: Sequence[Path], error: ScanError) -> ScanError:
    """`error` with the name of the scan, its first file's, in front, unless that of one of its
    files is there."""
    text = str(error)
    names = tuple(f"{path}: " for path in files)
    return ScanError(text if text.startswith(names) else f"{files[0]}: {text}")
