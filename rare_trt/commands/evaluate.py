"""`rare-trt evaluate`: accuracy of a package on simulated acquisitions, against manual labels."""

from __future__ import annotations

import argparse
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from rare_trt.commands import add_package_arguments, add_threads_option, require
from rare_trt.commands.tables import markdown_table
from rare_trt.errors import ScanError
from rare_trt.segmenter import Segmenter
from rare_trt.storage.files import refuse_existing, write_files

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rare_trt.commands import Parsers
    from rare_trt.evaluation.measurements import RejectedScan
    from rare_trt.evaluation.summary import Summary


def add_parser(commands: Parsers) -> None:
    """Adds `evaluate` to the command line."""
    parser = commands.add_parser(
        "evaluate",
        help="measure a package on labelled scans, at every spacing",
        description="Simulates scans of other spacings, voxel shapes, angles, noise and fields of "
        "view from labelled ones, segments them and compares the labels with the full ones. Uses "
        "the cases that were held out from training where DIR has them, else all. Scans that the "
        "package rejects are excluded from means and listed. Writes cases.csv, summary.csv and "
        "dice.png.",
    )
    add_package_arguments(parser)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    add_threads_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Writes the outputs and prints a Markdown table, one row per acquisition.

    Raises ScanError where the package rejects every scan.
    """
    require("evaluate", "matplotlib", "scipy")
    from rare_trt.evaluation.cases import find_cases, load_cases
    from rare_trt.evaluation.measurements import RejectedScan, acquisitions, measure
    from rare_trt.evaluation.summary import dice_png, measurements_csv, summaries, summaries_csv

    paths = [options.output / name for name in ("cases.csv", "summary.csv", "dice.png")]
    if not options.overwrite:
        refuse_existing(paths)
    with Segmenter.load(
        options.package, threads=options.threads, require_signature=options.require_signature
    ) as segmenter:
        manifest = segmenter.package.manifest
        model = manifest.model
        files = find_cases(options.data)
        held_out = [one for one in files if one.name in model.training.validation_cases]
        cases = load_cases(
            held_out or files, len(model.channels), len(model.labels), model.intensity
        )
        made = acquisitions(manifest.model.base_spacing_mm)
        work = tqdm(
            measure(segmenter, cases, made), "evaluating", len(cases) * len(made), unit="scan"
        )
        done = list(work)
    rejected = [scan for scan in done if isinstance(scan, RejectedScan)]
    rows = [row for scan in done if not isinstance(scan, RejectedScan) for row in scan]
    if not rows:
        raise ScanError(f"none of {len(done)} scans was segmented: {_sentence(rejected[0])}")
    found = summaries(rows)
    contents = (measurements_csv(rows), summaries_csv(found), dice_png({manifest.name: found}))
    write_files(dict(zip(paths, contents, strict=True)), overwrite=options.overwrite)
    print(markdown_table(_rows(found)))
    if rejected:
        print("", *_list_rejected(rejected, len(cases)), sep="\n")
    known = held_out and manifest.model.training.cases
    origin = "held out from training" if known else "some of them perhaps training cases"
    print(f"\n{len(cases)} cases, {origin}; all acquisitions are simulated. {options.output}")
    return 0


def _rows(found: Sequence[Summary]) -> list[tuple[str, ...]]:
    """A head, and one row per acquisition."""
    labels = [f"Dice {label}" for label in found[0].label_dice]
    head = ("scan", "route", "Dice (95 %)", "lowest", *labels, "own grid", "surface, mm", "volume")
    rows: list[tuple[str, ...]] = [(*head, "ms")]
    for one in found:
        missed = f" ({one.not_found} not found)" if one.not_found else ""
        rows.append(
            (
                one.acquisition,
                ", ".join(str(route) for route in one.routes),
                f"{one.dice:.3f} ({one.dice_low:.3f} to {one.dice_high:.3f})",
                f"{one.lowest_dice:.3f}",
                *(f"{value:.3f}" for value in one.label_dice.values()),
                "" if isnan(one.own_dice) else f"{one.own_dice:.3f}",
                f"{one.surface_mm:.2f}{missed}",
                f"{one.volume_error:+.1%}",
                f"{one.milliseconds:.0f}",
            )
        )
    return rows


def _list_rejected(rejected: Sequence[RejectedScan], cases: int) -> list[str]:
    """One line per acquisition of which the package rejected scans."""
    by_name: dict[str, list[RejectedScan]] = {}
    for one in rejected:
        by_name.setdefault(one.acquisition, []).append(one)
    return [
        f"{name}: {len(those)} of {cases} rejected, the first as {_sentence(those[0])}"
        for name, those in by_name.items()
    ]


def _sentence(scan: RejectedScan) -> str:
    return f"{scan.case} ({scan.acquisition}): {scan.reason}"
