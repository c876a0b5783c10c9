"""`rare-trt infer`: labels for one scan, several, or a folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rare_trt.backends import BACKENDS, Backend
from rare_trt.commands import add_signature_option, byte_count
from rare_trt.errors import BackendError, OutputError, RareTrtError, ScanError
from rare_trt.executors import Executor, LocalExecutor, RemoteExecutor, ScanSummary
from rare_trt.jobs import Job, check_outputs, labels_beside, scan_stem
from rare_trt.options import add_options, options_from_arguments
from rare_trt.storage.files import refuse_existing
from rare_trt.storage.naming import is_scan_name, names_path

if TYPE_CHECKING:
    from concurrent.futures import Future

    from rare_trt.commands import Parsers
    from rare_trt.serving.client import Server

# With a server these are its own affair, and asking for them is refused.
SERVERS_OWN: Final = ("package", "backend", "memory_limit", "require_signature")

# What one scan of several may fail of while the others go on.
FAULTS: Final = (RareTrtError, OSError, MemoryError)


def add_parser(commands: Parsers) -> None:
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
    parser.add_argument("--report", type=Path, metavar="FILE.json", help="one scan only")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="one scan only")
    parser.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    add_signature_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    jobs = plan_jobs(options)
    asked = options_from_arguments(options)
    if options.server is not None:
        return _run_all(RemoteExecutor(_server(options), asked, options.overwrite), jobs, options)
    # Heavy, and a client of a server needs none of it.
    from rare_trt.segmenter import Segmenter

    backend: Backend = options.backend or "auto"
    with Segmenter.load(
        options.package or "hippocampus",
        backend,
        memory_limit=options.memory_limit,
        require_signature=options.require_signature,
    ) as segmenter:
        return _run_all(LocalExecutor(segmenter, asked, options.overwrite), jobs, options)


def plan_jobs(options: argparse.Namespace) -> list[Job]:
    """One job per scan; raises before any work where outputs would collide."""
    scans = [scan for path in options.scans for scan in _expanded(path)]
    further = options.channels or []
    if len(scans) == 1 and not options.scans[0].is_dir():
        labels = options.output or labels_beside(scans[0])
        if labels.is_dir():
            labels = labels / labels_beside(scans[0]).name
        jobs = [Job((scans[0], *further), labels, options.report, options.picture)]
    elif further:
        raise ScanError(
            f"{further[0]}: --channel names a further file of one scan; expected that scan's first "
            "file, not several scans or a folder: segment scans one by one"
        )
    else:
        jobs = _folder_jobs(scans, options)
    check_outputs(jobs)
    return jobs


def _folder_jobs(scans: list[Path], options: argparse.Namespace) -> list[Job]:
    if options.output is None:
        raise OutputError("several scans need an output folder: name it with -o")
    if options.output.is_file() or (is_scan_name(options.output) and not options.output.is_dir()):
        raise OutputError(f"{options.output}: names a file; expected a folder for several scans")
    if options.report or options.picture:
        raise OutputError("--report and --picture go with one scan: segment scans one by one")
    return [
        Job((scan,), options.output / f"{scan_stem(scan)}.nii.gz", None, None) for scan in scans
    ]


def _run_all(way: Executor, jobs: list[Job], options: argparse.Namespace) -> int:
    """One job; or several, going on after a bad scan, with the failures listed at the end.

    While a scan is computed the next one is read and the last one written, and no more than that.
    """
    if len(jobs) == 1:
        (job,) = jobs
        _refuse_outputs(job, options)
        _print(job, way.saved(job, way.answered(job, job.files)))
        return 0
    from concurrent.futures import ThreadPoolExecutor

    from tqdm import tqdm

    failed: list[str] = []

    def read(job: Job) -> Any:
        _refuse_outputs(job, options)
        return way.read(job)

    def done(job: Job, future: Future[ScanSummary]) -> None:
        try:
            future.result()
        except FAULTS as error:
            failed.append(_sentence(job, error))

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
                answer = way.answered(job, current.result())
            except FAULTS as error:
                failed.append(_sentence(job, error))
                continue
            if writing is not None:
                done(*writing)
            writing = job, writer.submit(way.saved, job, answer)
        if writing is not None:
            done(*writing)
    print(f"{len(jobs) - len(failed)} of {len(jobs)} scans segmented into {options.output}")
    if failed:
        lines = "\n".join(f"  {sentence}" for sentence in failed)
        print(f"rare-trt: not segmented ({len(failed)}):\n{lines}", file=sys.stderr)
    return 1 if failed else 0


def _sentence(job: Job, error: BaseException) -> str:
    if isinstance(error, MemoryError):
        why = str(error) or "for a small block"
        return f"{job.scan}: not enough memory ({why}): free memory, or lower --memory-limit"
    return str(error)


def _refuse_outputs(job: Job, options: argparse.Namespace) -> None:
    if not options.overwrite:
        refuse_existing(job.outputs())


def _server(options: argparse.Namespace) -> Server:
    from rare_trt.serving.client import Server

    for name in SERVERS_OWN:
        if getattr(options, name) is not None:
            raise BackendError(
                f"--{name.replace('_', '-')} goes with `rare-trt serve`, which was started with "
                "its own: leave it out"
            )
    if options.channels:
        raise ScanError(
            f"{options.channels[0]}: --channel goes without --server, which is sent one file: join "
            "the channels in one 4D file, or leave --server out"
        )
    return Server(options.server)


def _print(job: Job, told: ScanSummary) -> None:
    print(told.route)
    for name, volume in told.volumes_mm3.items():
        print(f"  {name}: {volume:.0f} mm3")
    for flag in told.flags:
        print(f"  look at this: {flag}")
    print(f"{job.labels} ({told.computed}, {told.total_ms:.0f} ms)")


def _expanded(path: Path) -> list[Path]:
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
    """Whether `path` holds labels of an earlier run, known by the label names beside it.

    Where x.nii and x.nii.gz share one x_dseg.tsv, the compressed one is the output: that is how
    scans of a folder are written.
    """
    compressed = path.with_name(f"{path.name}.gz")
    return names_path(path).exists() and not compressed.exists()
