"""Measures the training distribution of a package anew and writes it into the package's manifest.

    python scripts/measure_distribution.py rare_trt/packages/hippocampus.rare \\
        --data ../shared/data/hippocampus --heads ../shared/data/heads_2mm

Nothing but the manifest changes: `model.seen`, `model.label_distribution` and
`model.volume_range_mm3`. The labelled scans are those of `rare-trt build`, without those held out;
boxes around the hippocampi of every second head of `--heads`, as they are and in coarser and finer
voxels, stand for the scans of other scanners.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from measure_flags import Head, centre_of, load_heads

from rare_trt.building.package_from_checkpoint import load_training_cases
from rare_trt.calibration.progress import Steps
from rare_trt.calibration.training_distribution import (
    measure_label_distribution,
    measure_training_distribution,
)
from rare_trt.evaluation.simulation import acquire, whole_voxel_grid
from rare_trt.package.reading import open_package
from rare_trt.package.writing import write_package
from rare_trt.scan.field_of_view import FieldOfView, box_at, box_grid
from rare_trt.scan.geometry import Triple, Volume
from rare_trt.training.recipe import load_recipe

# Voxels in mm of every fourth head.
SPACINGS: Final[tuple[Triple, ...]] = (
    *((s, s, s) for s in (1.0, 1.5, 3.0, 4.0, 6.0, 8.0)),
    *((2.0, 2.0, 4.0), (2.0, 2.0, 6.0), (2.0, 6.0, 2.0), (1.0, 1.0, 4.0)),
)


def boxes(head: Head, accepted: FieldOfView, spacings: tuple[Triple, ...]) -> Iterator[Volume]:
    """Boxes around both hippocampi of `head`, as it is and in voxels of `spacings`."""
    scans = [(head.voxels, head.grid)]
    for spacing in spacings:
        grid = whole_voxel_grid(head.grid, spacing)
        scans.append((acquire(head.voxels[None], head.grid, grid)[0], grid))
    for label in head.meaning["hippocampus"]:
        centre = centre_of(head.labels == label, head.grid)
        for voxels, grid in scans:
            part = box_at(grid, centre, accepted.typical)
            yield Volume(voxels[part][..., None], box_grid(grid, part))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("package", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--heads", type=Path, required=True)
    parser.add_argument("--recipe", default="hippocampus")
    options = parser.parse_args()
    package = open_package(options.package)
    manifest = package.manifest
    recipe = load_recipe(options.recipe)
    cases = load_training_cases(options.data, manifest)
    heads = list(load_heads(options.heads.parent, options.heads.name, None))[::2]
    view = manifest.model.field_of_view_mm
    others = [
        volume
        for number, head in enumerate(heads)
        for volume in boxes(head, view, SPACINGS if number % 2 == 0 else ())
    ]
    with Steps("measuring", 2) as steps:
        with steps.one("scans"):
            seen = measure_training_distribution(
                cases, manifest.model, manifest.routes, recipe, others
            )
        with steps.one("labels"):
            labels, volumes = measure_label_distribution(package, cases, recipe, others)
    model = replace(manifest.model, seen=seen, label_distribution=labels, volume_range_mm3=volumes)
    contents = {name: package.read(name) for name in manifest.files}
    write_package(options.package, replace(manifest, model=model), contents, overwrite=True)
    print(f"{seen.scans} scans and the labels of {labels.scans}; volumes of {volumes} mm3")


if __name__ == "__main__":
    main()
