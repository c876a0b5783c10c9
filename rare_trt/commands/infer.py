"""`rare-trt infer`: labels for one scan, several, or a folder."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rare_trt.errors import OutputError, RareTrtError, ScanError
from rare_trt.files import refuse_existing
from rare_trt.nifti import SUFFIXES, is_scan_name, stem
from rare_trt.result import Result, names_path, output_paths
from rare_trt.segmenter import Segmenter
from rare_trt.sessions import BACKENDS

if TYPE_CHECKING:
    from rare_trt.commands import Parsers


@dataclass(frozen=True)
class Job:
    """One scan and where its outputs go."""

    scan: Path
    labels: Path
    report: Path | None
    picture: Path | None


def add_parser(commands: Parsers) -> None:
    parser = commands.add_parser(
        "infer",
        help="segment scans",
        description="Segments NIfTI scans. One scan writes SCAN_labels.nii.gz beside it, or to -o; "
        "several scans or a folder write into the folder -o under their own names.",
    )
    parser.add_argument("scans", nargs="+", type=Path, metavar="SCAN", help="a scan or a folder")
    parser.add_argument("-o", "--output", type=Path, help="label file, or folder for several scans")
    parser.add_argument(
        "--package", default="hippocampus", metavar="NAME|DIR", help="default: hippocampus"
    )
    parser.add_argument("--backend", choices=BACKENDS, default="auto")
    parser.add_argument(
        "--route", type=_route, default=None, metavar="auto|0..3", help="default: by voxel spacing"
    )
    parser.add_argument(
        "--at",
        type=_point,
        metavar="X,Y,Z",
        help="segment a box of the trained size around this point (world mm; write --at=-20,...)",
    )
    parser.add_argument(
        "--spacing-out", type=float, metavar="MM", help="labels on a grid of this spacing"
    )
    parser.add_argument("--report", type=Path, metavar="FILE.json", help="one scan only")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="one scan only")
    parser.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    jobs = plan_jobs(options)
    with Segmenter.load(options.package, options.backend) as segmenter:
        if len(jobs) == 1:
            result = _run_job(segmenter, jobs[0], options)
            _print(jobs[0], result)
            return 0
        return _run_all(segmenter, jobs, options)


def plan_jobs(options: argparse.Namespace) -> list[Job]:
    """One job per scan; raises before any work where outputs would collide."""
    scans = [scan for path in options.scans for scan in _expanded(path)]
    if len(scans) == 1 and not options.scans[0].is_dir():
        labels = options.output or scans[0].with_name(f"{_stem(scans[0])}_labels.nii.gz")
        if labels.is_dir():
            labels = labels / f"{_stem(scans[0])}_labels.nii.gz"
        jobs = [Job(scans[0], labels, options.report, options.picture)]
    else:
        jobs = _folder_jobs(scans, options)
    if options.picture and options.picture.suffix.lower() != ".png":
        raise OutputError(f"{options.picture}: expected a name that ends in .png: rename it")
    outputs = Counter(path.resolve() for job in jobs for path in _outputs(job))
    inputs = {scan.resolve() for scan in scans}
    for path, times in outputs.items():
        if path in inputs or times > 1:
            raise OutputError(
                f"{path}: is an input, or is to be written twice: name another output"
            )
    return jobs


def _folder_jobs(scans: list[Path], options: argparse.Namespace) -> list[Job]:
    if options.output is None:
        raise OutputError("several scans need an output folder: name it with -o")
    if options.output.is_file():
        raise OutputError(f"{options.output}: is a file; expected a folder for several scans")
    if options.report or options.picture:
        raise OutputError("--report and --picture go with one scan: segment scans one by one")
    return [Job(scan, options.output / f"{_stem(scan)}.nii.gz", None, None) for scan in scans]


def _run_all(segmenter: Segmenter, jobs: list[Job], options: argparse.Namespace) -> int:
    """Every job, going on after a bad scan; failures are listed at the end."""
    from tqdm import tqdm

    failed: list[str] = []
    with tqdm(jobs, "segmenting", unit="scan", file=sys.stderr) as bar:
        for job in bar:
            try:
                _run_job(segmenter, job, options)
            except (RareTrtError, OSError) as error:
                failed.append(str(error))
    print(f"{len(jobs) - len(failed)} of {len(jobs)} scans segmented into {options.output}")
    if failed:
        lines = "\n".join(f"  {sentence}" for sentence in failed)
        print(f"rare-trt: not segmented ({len(failed)}):\n{lines}", file=sys.stderr)
    return 1 if failed else 0


def _run_job(segmenter: Segmenter, job: Job, options: argparse.Namespace) -> Result:
    if not options.overwrite:
        refuse_existing(_outputs(job))
    try:
        result = segmenter.segment(
            job.scan, route=options.route, at=options.at, spacing_out_mm=options.spacing_out
        )
    except ScanError as error:
        text = str(error)
        raise ScanError(
            text if text.startswith(str(job.scan)) else f"{job.scan}: {text}"
        ) from error
    result.save(job.labels, report=job.report, picture=job.picture, overwrite=options.overwrite)
    return result


def _print(job: Job, result: Result) -> None:
    names = result.package.manifest.model.labels[1:]
    print(result.route)
    for name, volume in zip(names, result.volumes_mm3, strict=True):
        print(f"  {name}: {volume:.0f} mm3")
    for flag in result.flags():
        print(f"  look at this: {flag}")
    total = sum(result.timings_ms.values())
    print(f"{job.labels} ({result.backend} {result.precision}, {total:.0f} ms)")


def _expanded(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    scans = sorted(child for child in path.iterdir() if is_scan_name(child))
    scans = [scan for scan in scans if not _is_earlier_output(scan)]
    if not scans:
        raise ScanError(f"{path}: a folder without .nii or .nii.gz scans: check the path")
    return scans


def _is_earlier_output(path: Path) -> bool:
    """Whether `path` holds labels of an earlier run, known by the label names beside it.

    Where x.nii and x.nii.gz share one x_dseg.tsv, the compressed one is the output: that is how
    scans of a folder are written.
    """
    compressed = path.with_name(f"{path.name}.gz")
    return names_path(path).exists() and not compressed.exists()


def _stem(scan: Path) -> str:
    return stem(scan) if scan.name.lower().endswith(SUFFIXES) else scan.name


def _outputs(job: Job) -> list[Path]:
    return output_paths(job.labels, job.report, job.picture)


def _route(text: str) -> int | None:
    if text != "auto" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no route; expected auto or a number")
    return None if text == "auto" else int(text)


def _point(text: str) -> tuple[float, float, float]:
    try:
        x, y, z = (float(part) for part in text.split(","))
    except ValueError as error:
        message = f"{text!r} is no point; expected three numbers X,Y,Z in mm"
        raise argparse.ArgumentTypeError(message) from error
    return x, y, z
