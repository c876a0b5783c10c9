"""`rare-trt infer`: labels for one scan, several, or a folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rare_trt.backends import BACKENDS, Backend
from rare_trt.batch.outcome import (
    FAULTS,
    Failure,
    Outcome,
    Skip,
    failure,
    flagged_lines,
    outcome_line,
    volumes_text,
)
from rare_trt.commands import add_signature_option, add_threads_option, byte_count
from rare_trt.errors import BackendError, ScanError
from rare_trt.jobs import (
    Executor,
    Job,
    LocalExecutor,
    RemoteExecutor,
    check_outputs,
    output_at,
    refuse_outputs,
    scan_stem,
)
from rare_trt.options import OPTIONS, add_options
from rare_trt.serving.client import Client
from rare_trt.storage.naming import file_size

if TYPE_CHECKING:
    from rare_trt.commands import Parsers

# Options of `rare-trt serve`, which are refused beside --server.
SERVER_OPTIONS: Final = ("package", "backend", "memory_limit", "threads", "require_signature")

# The exit code of --fail-on-flags.
FLAGGED: Final = 3


def add_parser(commands: Parsers) -> None:
    """Adds `infer` to the command line."""
    parser = commands.add_parser(
        "infer",
        help="segment scans",
        description="Segments NIfTI and FreeSurfer scans. One writes SCAN_labels.nii.gz beside "
        "it, or to -o; several scans or a folder write into the folder -o under their own names, "
        "and so do --report and --picture.",
    )
    parser.add_argument("scans", nargs="+", type=Path, metavar="SCAN", help="a scan or a folder")
    parser.add_argument(
        "--channel",
        action="append",
        type=Path,
        metavar="FILE",
        dest="channels",
        help="the scan's next channel, in the order of the package's channels, where each lies in "
        "a 3D file of its own; once per further channel, one scan only",
    )
    parser.add_argument("-o", "--output", type=Path, help="label file, or folder for several scans")
    parser.add_argument("--package", metavar="NAME|DIR", help="default: hippocampus")
    parser.add_argument("--backend", choices=BACKENDS, help="default: auto")
    parser.add_argument(
        "--server", metavar="URL|SOCKET", help="a running `rare-trt serve` of this machine computes"
    )
    add_options(parser)
    parser.add_argument(
        "--points",
        type=Path,
        metavar="FILE.tsv",
        help="as --at, for every scan: a table with the columns scan, x, y and z (world mm), one "
        "row per box",
    )
    parser.add_argument(
        "--memory-limit",
        type=byte_count,
        metavar="BYTES",
        help="host memory for OpenVINO, as 4GiB: larger volumes are cut in tiles (default: 8GiB, "
        "or half of this machine's if less)",
    )
    add_threads_option(parser)
    parser.add_argument(
        "--report", type=Path, metavar="FILE.json|DIR", help="folder for several scans"
    )
    parser.add_argument(
        "--picture", type=Path, metavar="FILE.png|DIR", help="folder for several scans"
    )
    parser.add_argument(
        "--table",
        type=Path,
        metavar="FILE.csv",
        help="one row per scan and box: route, volumes, flags, hashes, or why it failed",
    )
    parser.add_argument(
        "--recursive", action="store_true", help="also segment scans in the folders below"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    parser.add_argument(
        "--skip-existing",
        action="store_true",
        help="leave out scans whose outputs all exist, and redo those an earlier run left "
        "unfinished",
    )
    parser.add_argument(
        "--fail-on-flags", action="store_true", help=f"exit with {FLAGGED} where a scan is flagged"
    )
    add_signature_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Segments every scan; 1 where some of several could not be segmented, FLAGGED where some are
    flagged and --fail-on-flags is given."""
    is_one = len(arguments.scans) == 1 and not arguments.scans[0].is_dir()
    jobs = [plan_one(arguments)] if is_one else plan_several(arguments)
    skipped: dict[Job, Skip] = {}
    if arguments.points is not None:
        jobs = _with_points(jobs, arguments)
    if arguments.skip_existing:
        from rare_trt.batch.jobs_from_scans import resume

        jobs, skipped = resume(jobs)
    with _executor(arguments) as executor, _table(jobs, skipped, arguments) as outcomes:
        if is_one:
            _run_one(executor, jobs[0], outcomes)
        else:
            _run_several(executor, jobs, outcomes, arguments.output)
    if any(isinstance(outcome, Failure) for outcome in outcomes.values()):
        return 1
    return FLAGGED if arguments.fail_on_flags and flagged_lines(outcomes) else 0


@contextmanager
def _executor(arguments: argparse.Namespace) -> Iterator[Executor]:
    values = {option.keyword: getattr(arguments, option.keyword) for option in OPTIONS}
    options = {keyword: value for keyword, value in values.items() if value is not None}
    if arguments.server is not None:
        _check_server_arguments(arguments)
        yield RemoteExecutor(Client(arguments.server), options)
        return
    # Heavy, and a client of a server needs none of it.
    from rare_trt.segmenter import Segmenter

    backend: Backend = arguments.backend or "auto"
    with Segmenter.load(
        arguments.package or "hippocampus",
        backend,
        memory_limit=arguments.memory_limit,
        threads=arguments.threads,
        require_signature=arguments.require_signature,
    ) as segmenter:
        yield LocalExecutor(segmenter, options)


def _table(
    jobs: Sequence[Job], skipped: Mapping[Job, Skip], arguments: argparse.Namespace
) -> AbstractContextManager[dict[Job, Outcome]]:
    """Collects the outcomes of jobs, first those `skipped`, and writes --table at the end."""
    if arguments.table is None:
        return nullcontext({**skipped})
    from rare_trt.batch.table import write_table

    return write_table(
        arguments.table,
        jobs,
        skipped,
        overwrite=arguments.overwrite,
        resume=arguments.skip_existing,
    )


def _check_server_arguments(arguments: argparse.Namespace) -> None:
    for name in SERVER_OPTIONS:
        if getattr(arguments, name) is not None:
            raise BackendError(
                f"--{name.replace('_', '-')} goes with `rare-trt serve`, which was started with "
                "its own: leave it out"
            )
    if arguments.channels:
        raise ScanError(
            f"{arguments.channels[0]}: --channel goes without --server, which is sent one file: "
            "join the channels in one 4D file, or leave --server out"
        )


def plan_one(arguments: argparse.Namespace) -> Job:
    """The job of the only scan, which may come in several files.

    Raises ScanError where a file is missing, and OutputError where outputs would collide, before
    any work. A missing folder is reported as such, not as a label file of the wrong name.
    """
    scan = arguments.scans[0]
    for path in (scan, *(arguments.channels or ())):
        file_size(path)
    labels = arguments.output or scan.with_name(f"{scan_stem(scan)}_labels.nii.gz")
    report, picture = arguments.report, arguments.picture
    job = Job(
        files=(scan, *(arguments.channels or ())),
        labels=output_at(labels, scan, ".nii.gz"),
        report=None if report is None else output_at(report, scan, ".json"),
        picture=None if picture is None else output_at(picture, scan, ".png"),
        overwrite=arguments.overwrite,
    )
    check_outputs([job], arguments.table)
    return job


def plan_several(arguments: argparse.Namespace) -> list[Job]:
    """One job per scan of several, or of folders; prints which files of folders are left out.

    Raises OutputError before any work where outputs would collide.
    """
    from rare_trt.batch.folders import find_scans
    from rare_trt.batch.jobs_from_scans import jobs_from_scans

    outputs = (arguments.output, arguments.report, arguments.picture)
    folders = [path for path in outputs if path is not None]
    scans: list[tuple[Path, Path]] = []
    left_out: list[str] = []
    for path in arguments.scans:
        if path.is_dir():
            found = find_scans(path, recursive=arguments.recursive, outputs=folders)
            scans += found.scans
            left_out += found.left_out
        else:
            scans.append((path, Path()))
    if arguments.channels:
        raise ScanError(
            f"{arguments.channels[0]}: --channel names a further file of one scan; expected that "
            "scan's first file, not several scans or a folder: segment scans one by one"
        )
    jobs = jobs_from_scans(scans, *outputs, overwrite=arguments.overwrite)
    check_outputs(jobs, arguments.table)
    _print_list("left out", left_out)
    return jobs


def _with_points(jobs: Sequence[Job], arguments: argparse.Namespace) -> list[Job]:
    """The jobs with the points of the table `--points`."""
    if arguments.at or arguments.at_voxel:
        raise ScanError("--points and --at give points for the same scans: leave one out")
    from rare_trt.points import points_of_scans

    points = points_of_scans(arguments.points, [job.scan for job in jobs])
    return [replace(job, options={"at": points[job.scan]}) for job in jobs]


def _run_one(executor: Executor, job: Job, outcomes: dict[Job, Outcome]) -> None:
    if job in outcomes:
        print(outcome_line(job, outcomes[job]))
        return
    try:
        refuse_outputs(job)
        summary = executor.save(job, executor.segment(job, job.files))
    except FAULTS as error:
        outcomes[job] = failure(job, error)
        raise
    outcomes[job] = summary
    print(summary.route)
    for name, volume in summary.volumes_mm3.items():
        print(f"  {name}: {volume:.0f} mm3")
    if len(summary.boxes) > 1:
        for number, box in enumerate(summary.boxes, start=1):
            point = ", ".join(f"{x:g}" for x in box.at_mm or ())
            print(f"  box {number} at {point} mm: {volumes_text(box.volumes_mm3)}")
    for flag in summary.flags:
        print(f"  look at this: {flag}")
    print(f"{job.labels} ({summary.computed}, {summary.total_ms:.0f} ms)")


def _run_several(
    executor: Executor, jobs: Sequence[Job], outcomes: dict[Job, Outcome], folder: Path
) -> None:
    from tqdm import tqdm

    from rare_trt.batch.run import run_jobs

    def record(job: Job, outcome: Outcome) -> None:
        outcomes[job] = outcome
        tqdm.write(outcome_line(job, outcome), file=sys.stdout)
        # Also into a pipe each line comes when its scan is done.
        sys.stdout.flush()

    for job, outcome in outcomes.items():
        print(outcome_line(job, outcome))
    skipped = len(outcomes)
    if skipped < len(jobs):
        run_jobs(executor, [job for job in jobs if job not in outcomes], record)
    failed = [one.reason for one in outcomes.values() if isinstance(one, Failure)]
    more = f", {skipped} skipped" if skipped else ""
    done = len(jobs) - skipped - len(failed)
    print(f"{done} of {len(jobs)} scans segmented into {folder}{more}")
    _print_list("flagged, look at their labels", flagged_lines(outcomes))
    _print_list("not segmented", failed)


def _print_list(title: str, lines: Sequence[str]) -> None:
    if lines:
        listed = "\n".join(f"  {line}" for line in lines)
        print(f"rare-trt: {title} ({len(lines)}):\n{listed}", file=sys.stderr)
