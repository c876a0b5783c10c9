"""Measures how many honest and how many wrong scans a package flags; prints a table in Markdown.

    python scripts/measure_flags.py hippocampus --data ../shared/data --crops 20

Honest scans are the 25 simulated acquisitions of crops that were held out from training, and boxes
around the hippocampi of whole heads of other scanners, found by their label maps. Wrong ones are
the same turned front to back or upside down, inverted, replaced by noise, or with the hippocampus
resected (fluid in its place and 2 mm around it, or 6 mm), and boxes beside a head, in the neck, in
the cerebellum and in other parts of the brain. Folders that are not there are left out.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import nibabel
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from tqdm import tqdm

from rare_trt import Scan, Segmenter
from rare_trt.errors import ScanError
from rare_trt.evaluation.cases import Case, find_cases, load_cases
from rare_trt.evaluation.measurements import acquisitions
from rare_trt.evaluation.simulation import acquire, whole_voxel_grid
from rare_trt.scan.field_of_view import FieldOfView, box_at, box_grid
from rare_trt.scan.geometry import Canonical, Grid, Triple, Volume
from rare_trt.training.head_cases import HeadSource

# Folders of whole heads that no threshold was derived from.
HELD_OUT_HEADS: Final = (
    "ixi_t1_2mm",
    "heads_elderly_2mm",
    "freesurfer_norm_aseg",
    "colin27_aal",
)

# Label numbers of both hippocampi, the cerebellum and other anatomy of the label maps.
DLMUSE: Final[dict[str, tuple[int, ...]]] = {"hippocampus": (47, 48), "cerebellum": (38, 39)}
OTHERS: Final[dict[str, tuple[int, ...]]] = {
    "frontal": (143, 142),
    "occipital": (108, 109),
    "ventricle": (51, 52),
}
FREESURFER: Final[dict[str, tuple[int, ...]]] = {"hippocampus": (17, 53), "cerebellum": (8, 47)}
AAL: Final[dict[str, tuple[int, ...]]] = {"hippocampus": (37, 38), "cerebellum": (91, 92)}

# Of the tissue that a resection takes beyond the structure itself.
RIM_MM: Final = 2.0
CAVITY_MM: Final = 6.0

# Percentile of a crop's voxels that stands for cerebrospinal fluid.
FLUID: Final = 5.0

# Voxels in mm of heads as other scans would show them.
OTHER_SPACINGS: Final[tuple[Triple, ...]] = (
    *((s, s, s) for s in (1.0, 3.0, 4.0, 8.0)),
    *((2.0, 2.0, 6.0), (2.0, 6.0, 2.0), (6.0, 2.0, 2.0), (1.0, 1.0, 5.0)),
)

# A slice of the neck has more tissue.
LEAST_NECK_MM2: Final = 800.0


@dataclass(frozen=True, eq=False)
class Head:
    """A whole head and its label map [i, j, k] on canonical axes, and what its labels mean."""

    name: str
    voxels: NDArray[np.float32]
    labels: NDArray[np.int32]
    grid: Grid
    meaning: dict[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Sample:
    """A crop to segment: of `source`, of an honest or wrong `kind`, whether `wrong`."""

    source: str
    name: str
    kind: str
    wrong: bool
    volume: Volume


def load_heads(data: Path, source: str, count: int | None) -> Iterator[Head]:
    """The heads of one of the folders of `data`; none where it is not there."""
    folder = data / source
    if not folder.is_dir():
        return
    meaning = DLMUSE | OTHERS
    if source == "freesurfer_norm_aseg":
        pairs = [(folder / "norm.mgz", folder / "aparc.a2009s+aseg.mgz")]
        meaning = FREESURFER
    elif source == "colin27_aal":
        pairs = [(folder / "ch2.nii.gz", folder / "aal.nii.gz")]
        meaning = AAL
    else:
        files = HeadSource(folder, "dlmuse").files()
        pairs = [(image, labels) for _, image, labels in files if image is not None]
    for image, labels in pairs[:count]:
        found, known = nibabel.load(image), nibabel.load(labels)
        canonical = Canonical(Grid(found.shape[:3], found.affine))
        voxels = canonical.from_scan(np.asarray(found.dataobj, np.float32).reshape(found.shape[:3]))
        values = canonical.from_scan(np.asarray(known.dataobj).reshape(found.shape[:3]))
        yield Head(image.name, voxels, values.astype(np.int32), canonical.grid, meaning)


def head_samples(head: Head, source: str, accepted: FieldOfView) -> Iterator[Sample]:
    """Every kind of scan out of `head`: boxes around structures, beside the head, in the neck."""

    def box(kind: str, wrong: bool, centre_mm: Triple, voxels: NDArray[np.float32]) -> Sample:
        part = box_at(head.grid, centre_mm, accepted.typical)
        volume = Volume(voxels[part], box_grid(head.grid, part))
        return Sample(source, head.name, kind, wrong, volume)

    others = []
    for spacing in OTHER_SPACINGS:
        grid = whole_voxel_grid(head.grid, spacing)
        others.append((acquire(head.voxels[None], head.grid, grid)[0], grid))
    for side, label in enumerate(head.meaning["hippocampus"]):
        structure = head.labels == label
        centre = centre_of(structure, head.grid)
        rng = np.random.default_rng(side)
        shift = rng.uniform(-5.0, 5.0, 3)
        honest = box("box at the label", False, centre, head.voxels)
        yield honest
        for averaged, grid in others:
            part = box_at(grid, centre, accepted.typical)
            volume = Volume(averaged[part], box_grid(grid, part))
            size = " x ".join(f"{mm:g}" for mm in grid.spacing_mm)
            yield Sample(source, head.name, f"box at the label, {size} mm", False, volume)
        moved = (centre[0] + shift[0], centre[1] + shift[1], centre[2] + shift[2])
        yield box("box within 5 mm of it per axis", False, moved, head.voxels)
        yield from spoiled(honest, rng)
        fluid = fluid_value(honest.volume.voxels)
        for kind, mm in (("resected", RIM_MM), ("cavity", CAVITY_MM)):
            voxels = resect(head.voxels, structure, head.grid, mm, fluid, rng)
            yield box(kind, True, centre, voxels)
        for kind in ("cerebellum", *OTHERS):
            if kind in head.meaning:
                other = centre_of(head.labels == head.meaning[kind][side], head.grid)
                yield box(kind, True, other, head.voxels)
    for kind, centre in (("air", air_beside(head)), ("neck", neck_of(head))):
        if centre is not None:
            yield box(kind, True, centre, head.voxels)


def crop_samples(case: Case, number: int, base_spacing_mm: float) -> Iterator[Sample]:
    """Every kind of scan in every acquisition of a labelled crop."""
    structure = case.labels > 0
    rng = np.random.default_rng(number)
    fluid = fluid_value(case.voxels)
    cavities = {
        kind: replace(
            case, voxels=resect(case.voxels[0], structure, case.grid, mm, fluid, rng)[None]
        )
        for kind, mm in (("resected", RIM_MM), ("cavity", CAVITY_MM))
    }
    for acquisition in acquisitions(base_spacing_mm):
        volume = acquisition.make(case, np.random.default_rng(number))[0]
        volume = Volume(volume.voxels[..., 0], volume.grid)
        honest = Sample("crops", case.name, acquisition.name, False, volume)
        yield honest
        yield from spoiled(honest, rng)
        for kind, cavity in cavities.items():
            volume = acquisition.make(cavity, np.random.default_rng(number))[0]
            volume = Volume(volume.voxels[..., 0], volume.grid)
            yield Sample("crops", case.name, kind, True, volume)


def spoiled(honest: Sample, rng: Generator) -> Iterator[Sample]:
    """An honest scan turned, inverted, and replaced by noise."""
    voxels = honest.volume.voxels
    made = {
        "front to back": voxels[:, ::-1],
        "upside down": voxels[:, :, ::-1],
        "inverted": voxels.max() - voxels,
        "noise": rng.rayleigh(1.0, voxels.shape).astype(np.float32),
    }
    for kind, values in made.items():
        volume = Volume(np.ascontiguousarray(values), honest.volume.grid)
        yield replace(honest, kind=kind, wrong=True, volume=volume)


def centre_of(structure: NDArray[np.bool_], grid: Grid) -> Triple:
    """The world point in the middle of a structure's voxels."""
    x, y, z = grid.world_mm(np.argwhere(structure).mean(axis=0)).tolist()
    return x, y, z


def fluid_value(voxels: NDArray[np.float32]) -> float:
    """The value of cerebrospinal fluid in a crop of T1 contrast."""
    return float(np.percentile(voxels[voxels > 0], FLUID))


def resect(
    voxels: NDArray[np.float32],
    structure: NDArray[np.bool_],
    grid: Grid,
    rim_mm: float,
    fluid: float,
    rng: Generator,
) -> NDArray[np.float32]:
    """Voxels [i, j, k] whose `structure` and a rim around it are fluid with a little noise."""
    from scipy.ndimage import distance_transform_edt

    taken = distance_transform_edt(~structure, sampling=grid.spacing_mm) <= rim_mm
    noise = rng.normal(0.0, 0.05 * abs(fluid), voxels.shape).astype(np.float32)
    return np.where(taken, np.float32(fluid) + noise, voxels)


def air_beside(head: Head) -> Triple:
    """A point beside the head at the height of the hippocampi, as far inside the field of view as
    a box needs."""
    centre = head.grid.index(np.array(centre_of(head.labels > 0, head.grid)))
    centre[0] = 17.0 / head.grid.spacing_mm[0]
    x, y, z = head.grid.world_mm(centre).tolist()
    return x, y, z


def neck_of(head: Head) -> Triple | None:
    """A point 25 mm above the lowest slice, in the middle of its tissue; None where there is
    hardly any, as in a head whose skin was removed."""
    low = round(25.0 / head.grid.spacing_mm[2])
    tissue = head.voxels[:, :, low] > 0.2 * np.percentile(head.voxels, 99)
    if tissue.sum() * np.prod(head.grid.spacing_mm[:2]) < LEAST_NECK_MM2:
        return None
    i, j = np.argwhere(tissue).mean(axis=0)
    x, y, z = head.grid.world_mm(np.array([i, j, low])).tolist()
    return x, y, z


def measure_flags(segmenter: Segmenter, sample: Sample) -> tuple[bool, bool, bool]:
    """Whether a scan is rejected, its labels are flagged, and the scan's statistics are."""
    try:
        result = segmenter.segment(Scan(sample.volume))
    except ScanError:
        return True, False, False
    return False, bool(result.label_flags), bool(result.boxes[0].remarks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("package")
    parser.add_argument("--data", type=Path, required=True, help="folder of the folders of scans")
    parser.add_argument("--crops", type=int, default=20, help="so many held-out crops at most")
    parser.add_argument("--heads", type=int, help="so many heads of each folder at most")
    options = parser.parse_args()
    found: dict[tuple[bool, str, str], list[tuple[bool, bool, bool]]] = defaultdict(list)
    with Segmenter.load(options.package) as segmenter:
        model = segmenter.package.manifest.model
        files = find_cases(options.data / "hippocampus")
        files = [one for one in files if one.name in model.training.validation_cases]
        cases = load_cases(
            files[: options.crops], len(model.channels), len(model.labels), model.intensity
        )

        def samples() -> Iterator[Sample]:
            for number, case in enumerate(cases):
                yield from crop_samples(case, number, model.base_spacing_mm)
            for source in HELD_OUT_HEADS:
                for head in load_heads(options.data, source, options.heads):
                    yield from head_samples(head, source, model.field_of_view_mm)

        for sample in tqdm(samples(), "segmenting", unit="scan"):
            kind, source = sample.kind, sample.source
            if source == "crops" and not sample.wrong:
                kind = "25 acquisitions"
            if source != "crops" and sample.wrong:
                source = "heads"
            found[sample.wrong, source, kind].append(measure_flags(segmenter, sample))
    print("| | scans | source | rejected | labels flagged | scan flagged alone | any flag |")
    print("|---|---|---|---|---|---|---|")
    for (wrong, source, kind), rows in sorted(found.items()):
        refused, labels, scan = np.array(rows).T
        rates = refused, labels, scan & ~labels, refused | labels | scan
        texts = " | ".join(f"{rate.mean():.3f}" for rate in rates)
        print(f"| {'wrong' if wrong else 'honest'}: {kind} | {len(rows)} | {source} | {texts} |")


if __name__ == "__main__":
    main()
