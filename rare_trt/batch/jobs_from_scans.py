"""The jobs of several scans: where the outputs of each go, and which scans need no work."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rare_trt.batch.outcome import Skip
from rare_trt.errors import OutputError
from rare_trt.jobs import Job, scan_stem
from rare_trt.scan.label_mark import holds_labels
from rare_trt.storage.naming import is_names_file, is_scan_name, names_path


def jobs_from_scans(
    scans: Sequence[tuple[Path, Path]],
    labels: Path | None,
    report: Path | None,
    picture: Path | None,
    *,
    overwrite: bool,
) -> list[Job]:
    """One job per scan, each given with the folder below the one that was searched.

    Outputs go into the folders `labels`, `report` and `picture` under the scan's name, in folders
    as those of the scans. Raises OutputError where one of the three is missing or names a file.
    """
    if labels is None:
        raise OutputError("several scans need an output folder: name it with -o")
    for folder, suffix in ((report, ".json"), (picture, ".png")):
        if folder is not None:
            _check_folder(folder, folder.suffix.lower() == suffix)
    _check_folder(labels, is_scan_name(labels))

    def output(folder: Path, scan: Path, below: Path, suffix: str) -> Path:
        return folder / below / f"{scan_stem(scan)}{suffix}"

    return [
        Job(
            files=(scan,),
            labels=output(labels, scan, below, ".nii.gz"),
            report=None if report is None else output(report, scan, below, ".json"),
            picture=None if picture is None else output(picture, scan, below, ".png"),
            overwrite=overwrite,
        )
        for scan, below in scans
    ]


def _check_folder(path: Path, has_file_name: bool) -> None:
    if path.is_file() or (has_file_name and not path.is_dir()):
        raise OutputError(f"{path}: names a file; expected a folder for several scans")


def resume(jobs: Sequence[Job]) -> tuple[list[Job], dict[Job, Skip]]:
    """The jobs that continue an earlier run, and the outcomes of those whose outputs all exist.

    A job may overwrite where some of its outputs exist and are rare-trt's own: the earlier run was
    interrupted, or wrote fewer files.
    """
    resumed: list[Job] = []
    skipped: dict[Job, Skip] = {}
    for job in jobs:
        if all(path.exists() for path in job.outputs()):
            skipped[job] = Skip("all of its outputs exist")
        elif _are_own(job):
            job = replace(job, overwrite=True)
        resumed.append(job)
    return resumed, skipped


def _are_own(job: Job) -> bool:
    """Whether the outputs that exist are rare-trt's own, as their content shows. That of a picture
    does not, which counts as the others."""
    checks = {job.labels: holds_labels, names_path(job.labels): is_names_file}
    if job.report is not None:
        checks[job.report] = _is_report
    own = [check(path) for path, check in checks.items() if path.exists()]
    return bool(own) and all(own)


def _is_report(path: Path) -> bool:
    try:
        entries = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(entries, dict) and {"package", "route", "volumes_mm3"} <= entries.keys()
