"""`rare-trt infer`: labels for one scan, several, or a folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rare_trt.backends import BACKENDS, Backend
from rare_trt.commands import add_signature_option, add_threads_option, byte_count
from rare_trt.errors import BackendError, OutputError, RareTrtError, ScanError
from rare_trt.jobs import (
    Executor,
    Job,
    LocalExecutor,
    RemoteExecutor,
    ScanSummary,
    check_outputs,
    labels_beside,
    scan_stem,
)
from rare_trt.options import OPTIONS, add_options
from rare_trt.serving.client import Client
from rare_trt.storage.files import refuse_existing
from rare_trt.storage.naming import is_scan_name, names_path

if TYPE_CHECKING:
    from concurrent.futures import Future

    from rare_trt.commands import Parsers

# Options of `rare-trt serve`, which are refused beside --server.
SERVER_OPTIONS: Final = ("package", "backend", "memory_limit", "threads", "require_signature")

# Errors of one scan of several that do not end the others.
FAULTS: Final = (RareTrtError, OSError, MemoryError)


def add_parser(commands: Parsers) -> None:
    """Adds `infer` to the command line."""
    parser = commands.add_parser(
        "infer",
        help="segment scans",
        description="Segments NIfTI scans. One scan writes SCAN_labels.nii.gz beside it, or to -o; "
        "several scans or a folder write into the folder -o under their own names.",
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
        "--memory-limit",
        type=byte_count,
        metavar="BYTES",
        help="host memory for OpenVINO, as 4GiB: larger volumes are cut in tiles (default: 8GiB, "
        "or half of this machine's if less)",
    )
    add_threads_option(parser)
    parser.add_argument("--report", type=Path, metavar="FILE.json", help="one scan only")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="one scan only")
    parser.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    add_signature_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Segments every scan; 1 where some of several could not be segmented."""
    jobs = plan_jobs(arguments)
    with _executor(arguments) as executor:
        if len(jobs) > 1:
            return _run_several(executor, jobs, arguments)
        (job,) = jobs
        _refuse_outputs(job, arguments)
        _print_summary(job, executor.save(job, executor.segment(job, job.files)))
    return 0


@contextmanager
def _executor(arguments: argparse.Namespace) -> Iterator[Executor]:
    values = {option.keyword: getattr(arguments, option.keyword) for option in OPTIONS}
    options = {keyword: value for keyword, value in values.items() if value is not None}
    if arguments.server is not None:
        _check_server_arguments(arguments)
        yield RemoteExecutor(Client(arguments.server), options, arguments.overwrite)
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
        yield LocalExecutor(segmenter, options, arguments.overwrite)


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


def plan_jobs(arguments: argparse.Namespace) -> list[Job]:
    """One job per scan; raises OutputError before any work where outputs would collide."""
    scans = [scan for path in arguments.scans for scan in _scans_at(path)]
    further = arguments.channels or []
    if len(scans) == 1 and not arguments.scans[0].is_dir():
        labels = arguments.output or labels_beside(scans[0])
        if labels.is_dir():
            labels = labels / labels_beside(scans[0]).name
        jobs = [Job((scans[0], *further), labels, arguments.report, arguments.picture)]
    elif further:
        raise ScanError(
            f"{further[0]}: --channel names a further file of one scan; expected that scan's first "
            "file, not several scans or a folder: segment scans one by one"
        )
    else:
        jobs = _folder_jobs(scans, arguments)
    check_outputs(jobs)
    return jobs


def _folder_jobs(scans: list[Path], arguments: argparse.Namespace) -> list[Job]:
    if arguments.output is None:
        raise OutputError("several scans need an output folder: name it with -o")
    if arguments.output.is_file() or (
        is_scan_name(arguments.output) and not arguments.output.is_dir()
    ):
        raise OutputError(f"{arguments.output}: names a file; expected a folder for several scans")
    if arguments.report or arguments.picture:
        raise OutputError("--report and --picture go with one scan: segment scans one by one")
    return [
        Job((scan,), arguments.output / f"{scan_stem(scan)}.nii.gz", None, None) for scan in scans
    ]


def _run_several(executor: Executor, jobs: list[Job], arguments: argparse.Namespace) -> int:
    """Runs every job, past failures, which are listed at the end.

    While one scan is segmented the next one is read and the previous one written, no more than
    that.
    """
    from concurrent.futures import ThreadPoolExecutor

    from tqdm import tqdm

    failed: list[str] = []

    def read(job: Job) -> Any:
        _refuse_outputs(job, arguments)
        return executor.read(job)

    def finish(job: Job, future: Future[ScanSummary]) -> None:
        try:
            future.result()
        except FAULTS as error:
            failed.append(_error_sentence(job, error))

    with (
        ThreadPoolExecutor(1) as reader,
        ThreadPoolExecutor(1) as writer,
        tqdm(jobs, "segmenting", unit="scan", file=sys.stderr) as bar,
    ):
        ahead = (reader.submit(read, job) for job in jobs)
        reading = next(ahead)
        writing: tuple[Job, Future[ScanSummary]] | None = None
        for job in bar:
            current, reading = reading, next(ahead, reading)
            try:
                result = executor.segment(job, current.result())
            except FAULTS as error:
                failed.append(_error_sentence(job, error))
                continue
            if writing is not None:
                finish(*writing)
            writing = job, writer.submit(executor.save, job, result)
        if writing is not None:
            finish(*writing)
    print(f"{len(jobs) - len(failed)} of {len(jobs)} scans segmented into {arguments.output}")
    if failed:
        lines = "\n".join(f"  {sentence}" for sentence in failed)
        print(f"rare-trt: not segmented ({len(failed)}):\n{lines}", file=sys.stderr)
    return 1 if failed else 0


def _error_sentence(job: Job, error: BaseException) -> str:
    if isinstance(error, MemoryError):
        why = str(error) or "for a small block"
        return f"{job.scan}: not enough memory ({why}): free memory, or lower --memory-limit"
    return str(error)


def _refuse_outputs(job: Job, arguments: argparse.Namespace) -> None:
    if not arguments.overwrite:
        refuse_existing(job.outputs())


def _print_summary(job: Job, summary: ScanSummary) -> None:
    print(summary.route)
    for name, volume in summary.volumes_mm3.items():
        print(f"  {name}: {volume:.0f} mm3")
    for flag in summary.flags:
        print(f"  look at this: {flag}")
    print(f"{job.labels} ({summary.computed}, {summary.total_ms:.0f} ms)")


def _scans_at(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    scans = sorted(child for child in path.iterdir() if is_scan_name(child))
    new = [scan for scan in scans if not _is_earlier_output(scan)]
    if not new:
        raise ScanError(f"{path}: a folder without .nii or .nii.gz scans: check the path")
    if len(new) < len(scans):
        print(
            f"rare-trt: {path}: {len(scans) - len(new)} left out as labels of an earlier run, "
            "because their names lie beside them (_dseg.tsv)",
            file=sys.stderr,
        )
    return new


def _is_earlier_output(path: Path) -> bool:
    """Whether `path` holds labels of an earlier run, as the label names beside it show.

    Where x.nii and x.nii.gz share one x_dseg.tsv, the compressed one is the output, because scans
    of a folder are written compressed.
    """
    compressed = path.with_name(f"{path.name}.gz")
    return names_path(path).exists() and not compressed.exists()
