"""`rare-trt info`: the contents of a package."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING

from rare_trt.commands import add_package_arguments
from rare_trt.commands.tables import text_table
from rare_trt.package.manifest import BuilderOptions, Manifest, TrainingRecord
from rare_trt.package.reading import (
    MIN_VALIDATION_DICE,
    describe_data,
    describe_unsegmented,
    open_package,
)
from rare_trt.sessions.compatibility import incompatibility
from rare_trt.sessions.machine import Machine, this_machine

if TYPE_CHECKING:
    from rare_trt.commands import Parsers


def add_parser(commands: Parsers) -> None:
    """Adds `info` to the command line."""
    parser = commands.add_parser("info", help="show what a package contains")
    add_package_arguments(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the package's facts, its routes, and its engines where it has any."""
    package = open_package(options.package, require_signature=options.require_signature)
    manifest = package.manifest
    facts = [*describe_model(manifest), ("folder", str(package.folder))]
    if package.engines_folder is not None:
        facts.append(("engines", str(package.engines_folder)))
    tables = [
        facts,
        describe_routes(manifest),
    ]
    if manifest.engines:
        tables.append(describe_engines(manifest, this_machine()))
    print("\n\n".join(map(text_table, tables)))
    return 0


def describe_model(manifest: Manifest) -> list[tuple[str, ...]]:
    """Rows of a fact and its value: what the package takes, returns, and was trained on."""
    model = manifest.model
    low, high = model.spacing_limits_mm
    view = model.field_of_view_mm
    unsegmented = describe_unsegmented(model.labels, model.training.dice)
    return [
        ("package", f"{manifest.name}: {model.task}"),
        ("labels", ", ".join(f"{value} {name}" for value, name in enumerate(model.labels))),
        ("channels", ", ".join(model.channels)),
        (
            "spacing",
            f"{low:g} to {high:g} mm along each axis; labels are computed at "
            f"{model.base_spacing_mm:g} mm",
        ),
        ("view", f"{_mm(view.min)} to {_mm(view.max)} mm (right, anterior, superior)"),
        ("trained", _describe_training(model.training)),
        *(
            [("not segmented", f"Dice below {MIN_VALIDATION_DICE:g} on {unsegmented}")]
            if unsegmented
            else []
        ),
        ("made with", manifest.created_with),
    ]


def describe_routes(manifest: Manifest) -> list[tuple[str, ...]]:
    """A head, and one row per route: geometry, graphs, Dice per label on validation cases."""
    rows: list[tuple[str, ...]] = [
        ("route", "spacing", "native band", "largest shape", "graphs", "validation Dice")
    ]
    dice = manifest.model.training.dice
    for entry in manifest.routes:
        low, high = (bound * entry.spacing_mm for bound in entry.native_band)
        graphs = " ".join(g.precision for g in manifest.graphs if g.route == entry.index)
        scores = dice[entry.index] if entry.index < len(dice) else ()
        shape = "x".join(map(str, entry.profile.max))
        rows.append(
            (
                str(entry.index),
                f"{entry.spacing_mm:g} mm",
                f"{low:.2f} - {high:.2f} mm",
                shape,
                graphs,
                " / ".join(f"{score:.3f}" for score in scores),
            )
        )
    return rows


def describe_engines(manifest: Manifest, machine: Machine) -> list[tuple[str, ...]]:
    """A head, and one row per engine with its state on `machine`."""
    rows: list[tuple[str, ...]] = [
        ("route", "engine", "MiB", "library", "platform", "made for", "options", "here")
    ]
    for entry in manifest.engines:
        capabilities = ", ".join(entry.compute_capabilities)
        rows.append(
            (
                str(entry.route),
                f"{entry.backend} {entry.precision}",
                f"{manifest.files[entry.file].bytes / 2**20:.1f}",
                entry.library,
                entry.platform,
                f"{entry.gpu} ({capabilities})" if entry.gpu else capabilities,
                _describe_options(entry.options),
                incompatibility(entry, manifest, machine) or "runs here",
            )
        )
    return rows


def _describe_training(training: TrainingRecord) -> str:
    used = f"{training.cases - len(training.validation_cases)} of {training.cases} cases"
    return (
        f"{training.epochs} epochs on {used if training.cases else 'unknown cases'}: "
        f"{describe_data(training)}"
    )


def _describe_options(options: BuilderOptions) -> str:
    """The options that differ from their defaults."""
    default = BuilderOptions()
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    changed = {name: v for name, v in values.items() if v != getattr(default, name)}
    return " ".join(n if v is True else f"{n}={v}" for n, v in changed.items()) or "default"


def _mm(values: tuple[float, float, float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
