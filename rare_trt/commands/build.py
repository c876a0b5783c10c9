"""`rare-trt build`: a package from a checkpoint, or engines for a package."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rare_trt.backends import ENGINE_BACKENDS, PRECISIONS, EngineBackend
from rare_trt.commands import add_signature_option, missing_extra
from rare_trt.commands.tables import text_table
from rare_trt.errors import BackendError
from rare_trt.package.manifest import BuilderOptions
from rare_trt.package.reading import open_package
from rare_trt.sessions.machine import INSTALL, Machine, this_machine

if TYPE_CHECKING:
    from rare_trt.commands import Parsers

# Options that have no meaning for a package from a checkpoint.
FOR_ENGINES: Final = (
    "--package",
    "--backend",
    "--precision",
    "--workspace",
    "--optimization-level",
    "--hardware-compatibility",
    "--version-compatible",
    "--tf32",
    "--static",
    "--require-signature",
)


def add_parser(commands: Parsers) -> None:
    """Adds `build` to the command line."""
    parser = commands.add_parser(
        "build",
        help="build engines for a package, or a package from a checkpoint",
        description="Without CHECKPOINT: builds one engine per route and adds them to the package, "
        "or to a copy of it (-o). Engines for a package that ships with rare-trt go into your own "
        "folder ($RARE_TRT_HOME, by default the platform's folder for data), where every command "
        "finds them. With CHECKPOINT: exports one graph per route and precision, "
        "checks each against the network on real scans, records golden vectors, calibrates and "
        "writes the package -o.",
    )
    parser.add_argument(
        "checkpoint", nargs="?", type=Path, metavar="CHECKPOINT", help="folder that `train` wrote"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="with CHECKPOINT: labelled scans for the checks; some become golden vectors",
    )
    parser.add_argument(
        "--no-int8",
        action="store_true",
        help="with CHECKPOINT: leave out the calibration with its search for INT8, which takes "
        "nearly all of the time; `calibrate` does it later",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="NAME.rare")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing package")
    engines = parser.add_argument_group("engines")
    engines.add_argument(
        "--package", default="hippocampus", metavar="NAME|DIR", help="default: hippocampus"
    )
    engines.add_argument(
        "--backend", choices=ENGINE_BACKENDS, help="default: the one that can build here"
    )
    engines.add_argument(
        "--precision",
        choices=(*PRECISIONS, "best"),
        default="fp16",
        help="default: fp16; best: per route the fastest on this GPU within the bounds",
    )
    engines.add_argument(
        "--plan", action="store_true", help="print which engines can be built here, per machine"
    )
    engines.add_argument("--workspace", type=mebibytes, metavar="MIB", help="scratch memory limit")
    engines.add_argument("--optimization-level", type=int, choices=range(6), metavar="0..5")
    engines.add_argument(
        "--hardware-compatibility",
        choices=("none", "ampere_plus", "same_compute_capability"),
        default="none",
    )
    engines.add_argument(
        "--version-compatible", action="store_true", help="also run on later TensorRT releases"
    )
    engines.add_argument("--tf32", action="store_true", help="let float32 parts use TF32")
    engines.add_argument("--static", action="store_true", help="only for scans of the typical size")
    add_signature_option(parser)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Builds a package or engines, or prints the build plan."""
    if options.checkpoint is not None:
        for name in FOR_ENGINES:
            dest = name.removeprefix("--").replace("-", "_")
            if getattr(options, dest) != options.parser.get_default(dest):
                options.parser.error(f"{name} is for engines: build the package first")
        if options.data is None or options.output is None or options.plan:
            options.parser.error(
                "a package from a CHECKPOINT needs --data and -o, and takes no --plan; to build "
                "engines for a package, name it with --package"
            )
        return _build_package(options)
    if options.data is not None or options.no_int8:
        options.parser.error("--data and --no-int8 go with CHECKPOINT")
    if options.overwrite and options.output is None:
        options.parser.error("--overwrite goes with -o")
    return _print_plan(options) if options.plan else _build_engines(options)


def _build_package(options: argparse.Namespace) -> int:
    try:
        from rare_trt.building.package_from_checkpoint import build_package
    except ImportError as error:
        raise missing_extra(error, "calibrate") from error
    package, agreements = build_package(
        options.checkpoint,
        options.data,
        options.output,
        overwrite=options.overwrite,
        int8=not options.no_int8,
    )
    for agreement in agreements:
        print(agreement)
    print(package.folder)
    return 0


def _build_engines(options: argparse.Namespace) -> int:
    from rare_trt.engines.engines_from_package import build_engines

    package = open_package(options.package, require_signature=options.require_signature)
    machine = this_machine()
    backend = options.backend or _choose_backend(machine)
    builder_options = _make_builder_options(options)
    package, built = build_engines(
        package,
        backend,
        options.precision,
        builder_options,
        machine,
        out=options.output,
        overwrite=options.overwrite,
    )
    for item in built:
        entry = item.entry
        size = package.manifest.files[entry.file].bytes / 2**20
        origin = f"built in {item.seconds:.1f} s" if item.seconds else "exists already"
        print(f"route {entry.route}: {entry.backend} {entry.precision}, {size:.1f} MiB, {origin}")
    print(package.folder if options.output else package.engines_folder or package.folder)
    return 0


def _print_plan(options: argparse.Namespace) -> int:
    from rare_trt.engines.targets import plan_builds

    machine = this_machine()
    print(f"building on {machine.platform}, {machine.gpu.name if machine.gpu else 'no GPU'}")
    rows = []
    for plan in plan_builds(machine, _make_builder_options(options)):
        target = plan.target
        releases = f"TensorRT {target.tensorrt}" + (f", {target.jetpack}" if target.jetpack else "")
        engines = ", ".join(plan.backends) or f"nothing: {plan.reason}"
        rows.append((target.name, target.compute_capability, releases, engines))
    print(text_table(rows))
    return 0


def _choose_backend(machine: Machine) -> EngineBackend:
    """The library that can build engines here."""
    if "tensorrt" in machine.libraries and machine.gpu is not None:
        return "tensorrt"
    if "tensorrt-rtx" in machine.libraries:
        return "tensorrt-rtx"
    if "tensorrt" in machine.libraries:
        raise BackendError(
            f"TensorRT builds engines only where there is a GPU ({machine.no_gpu}): build there, "
            f"or for RTX GPUs {INSTALL['tensorrt-rtx']}"
        )
    raise BackendError(
        f"no library that builds engines is installed here: {INSTALL['tensorrt']}, or "
        f"{INSTALL['tensorrt-rtx']}"
    )


def _make_builder_options(options: argparse.Namespace) -> BuilderOptions:
    return BuilderOptions(
        workspace_mib=options.workspace,
        optimization_level=options.optimization_level,
        hardware_compatibility=options.hardware_compatibility,
        version_compatible=options.version_compatible,
        tf32=options.tf32,
        static_shapes=options.static,
    )


def mebibytes(text: str) -> int:
    """A whole number of MiB, at most a TiB, as a parser's type."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value <= 1 << 20:
        message = f"{text!r} is not a whole number from 1 to {1 << 20} (MiB)"
        raise argparse.ArgumentTypeError(message)
    return value
