"""`rare-trt info`: what a package holds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from rare_trt.commands import add_signature_option
from rare_trt.package.manifest import BuilderOptions, EngineEntry, Manifest, TrainingRecord
from rare_trt.package.reading import open_package
from rare_trt.sessions.compatibility import incompatibility
from rare_trt.sessions.machine import Machine, this_machine

if TYPE_CHECKING:
    from rare_trt.commands import Parsers


def add_parser(commands: Parsers) -> None:
    parser = commands.add_parser("info", help="what a package holds")
    parser.add_argument("package", nargs="?", default="hippocampus", metavar="NAME|DIR")
    add_signature_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    package = open_package(options.package, require_signature=options.require_signature)
    print("\n".join(described(package.manifest)))
    if package.manifest.engines:
        print("\n".join([*engine_lines(package.manifest, this_machine()), ""]))
    print(f"folder     {package.folder}")
    return 0


def described(manifest: Manifest) -> list[str]:
    """The manifest as lines for a reader."""
    model, training = manifest.model, manifest.model.training
    low, high = model.spacing_limits_mm
    fov = model.field_of_view_mm
    lines = [
        f"package    {manifest.name}: {model.task}",
        f"labels     {', '.join(f'{v} {name}' for v, name in enumerate(model.labels))}",
        f"channels   {', '.join(model.channels)}",
        f"spacing    {low:g} to {high:g} mm along each axis; the answer is made at "
        f"{model.base_spacing_mm:g} mm",
        f"view       {_mm(fov.min)} to {_mm(fov.max)} mm (right, anterior, superior)",
        _trained(training),
        f"made with  {manifest.created_with}",
        "",
        "route  spacing  native band      largest shape   graphs      validation Dice",
    ]
    for entry in manifest.routes:
        low, high = (bound * entry.spacing_mm for bound in entry.native_band)
        graphs = " ".join(g.precision for g in manifest.graphs if g.route == entry.index)
        dice = training.dice[entry.index] if entry.index < len(training.dice) else ()
        lines.append(
            f"{entry.index:<5}  {entry.spacing_mm:<4g} mm  {low:5.2f} - {high:<5.2f} mm  "
            f"{'x'.join(map(str, entry.profile.max)):<14}  {graphs:<10}  "
            + " / ".join(f"{score:.3f}" for score in dice)
        )
    return [*lines, ""]


def _trained(training: TrainingRecord) -> str:
    of = f"{training.cases - len(training.validation_cases)} of {training.cases} cases"
    return (
        f"trained    {training.epochs} epochs on {of if training.cases else 'unknown cases'}: "
        f"{training.data}, {training.licence}"
    )


def engine_lines(manifest: Manifest, machine: Machine) -> list[str]:
    """A table of the engines, and what each of them is on `machine`."""
    head = ("route", "engine", "MiB", "library", "platform", "made for", "options", "here")
    return table([head, *(_engine_row(entry, manifest, machine) for entry in manifest.engines)])


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = (zip(row, widths, strict=True) for row in rows)
    return ["  ".join(text.ljust(width) for text, width in row).rstrip() for row in padded]


def _engine_row(entry: EngineEntry, manifest: Manifest, machine: Machine) -> tuple[str, ...]:
    capabilities = ", ".join(entry.compute_capabilities)
    return (
        str(entry.route),
        f"{entry.backend} {entry.precision}",
        f"{manifest.files[entry.file].bytes / 2**20:.1f}",
        entry.library,
        entry.platform,
        f"{entry.gpu} ({capabilities})" if entry.gpu else capabilities,
        _options(entry.options),
        incompatibility(entry, manifest, machine) or "runs here",
    )


def _options(options: BuilderOptions) -> str:
    """The options that differ from their defaults."""
    default = BuilderOptions()
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    changed = {name: v for name, v in values.items() if v != getattr(default, name)}
    return " ".join(n if v is True else f"{n}={v}" for n, v in changed.items()) or "default"


def _mm(values: tuple[float, float, float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
