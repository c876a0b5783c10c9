"""What a package answers on simulated acquisitions of labelled scans, against their full labels.

Every acquisition is made from the labelled scan (training/simulation.py); the runtime segments it,
from voxels to labels on a grid of the base spacing, and the answer is compared with the manual
label on the label's own grid, each of its voxels with what the answer says of its place in the
world.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

import numpy as np
from nibabel.quaternions import angle_axis2mat
from numpy.random import Generator
from numpy.typing import NDArray

from rare_trt.errors import ScanError
from rare_trt.evaluation.cases import Case
from rare_trt.evaluation.dice import dice
from rare_trt.evaluation.simulation import (
    Profile,
    acquired,
    resliced,
    turned_grid,
    whole_voxels,
    with_air,
    with_hot_voxels,
    with_rician_noise,
)
from rare_trt.evaluation.surfaces import mean_surface_distance_mm
from rare_trt.plan.resampling import majority_vote
from rare_trt.scan.geometry import Grid, Triple, Volume
from rare_trt.scan.nifti import Scan
from rare_trt.segmenter import Segmenter

Group: TypeAlias = Literal["spacing", "robustness"]

# A scan, and the case whose labels it is to be compared with.
Acquired: TypeAlias = tuple[Volume, Case]
Make: TypeAlias = Callable[[Case, Generator], Acquired]

# In multiples of the base spacing.
VOXELS: Final[tuple[Triple, ...]] = (
    *((f, f, f) for f in (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)),
    *((1.0, 1.0, 2.0), (1.0, 1.0, 4.0), (1.0, 4.0, 1.0), (4.0, 1.0, 1.0)),
    *((1.0, 1.0, 6.0), (1.0, 6.0, 1.0), (6.0, 1.0, 1.0), (2.0, 2.0, 4.0), (2.0, 2.0, 6.0)),
)

# Points per axis at which a voxel of the manual label reads an answer. With one point even the
# manual label, turned by 20 degrees and back, would get a Dice of no more than .962; with three
# .982 (mean of 8 cases). Where the grids agree it makes no difference.
POINTS: Final = 3

# Heads tilt about the right-left axis more than about the others.
TILT_AXIS: Final = (2.0, 1.0, 1.0)


@dataclass(frozen=True)
class Acquisition:
    """One way to scan: in the group "spacing" only the voxels differ from the labelled scan's, in
    "robustness" something else does."""

    name: str
    group: Group
    make: Make


@dataclass(frozen=True)
class Measurement:
    """One label of one case in one acquisition.

    `own_dice` is Dice on the scan's own grid against the label with the largest share of each of
    its voxels; NaN where its voxels are no whole multiples of the label's. `volume_mm3` is the
    answer's, `expected_mm3` the manual label's inside the scan. `milliseconds` is the time from
    voxels to labels on the fine grid, loading left out, of all labels together.
    """

    case: str
    acquisition: str
    group: Group
    route: int
    label: str
    dice: float
    own_dice: float
    surface_mm: float
    volume_mm3: float
    expected_mm3: float
    milliseconds: float


@dataclass(frozen=True)
class Refusal:
    """An acquisition of a case that the package does not take, and why."""

    case: str
    acquisition: str
    why: str


def acquisitions(base_spacing_mm: float) -> list[Acquisition]:
    """The acquisitions of the report: voxels up to 8 times the base spacing and shapes up to 1:6,
    and disturbances of the scan at the base spacing."""
    found = []
    for factors in VOXELS:
        i, j, k = (factor * base_spacing_mm for factor in factors)
        found.append(Acquisition(spacing_name((i, j, k)), "spacing", _averaged((i, j, k))))
    thick = (base_spacing_mm, base_spacing_mm, 4.0 * base_spacing_mm)
    name = f"{spacing_name(thick)}, Gaussian slices"
    found.append(Acquisition(name, "spacing", _averaged(thick, "gaussian")))
    disturbed: dict[str, Make] = {
        "4 mm tighter on every side": _tighter(4.0),
        "16 slices of noise": _noisy_air(16, 0.05),
        "twice the extent, zeros": _doubled,
        "0.1 % hot voxels": _hot(0.001),
        "offset of 3 times the maximum": _offset(3.0),
        "noise of 5 % of the maximum": _noisy(0.05),
        "turned by 20 degrees": _turned(20.0),
        "turned by 35 degrees": _turned(35.0),
    }
    return found + [Acquisition(name, "robustness", make) for name, make in disturbed.items()]


def spacing_name(spacing_mm: Triple) -> str:
    """'4 mm' or '1 x 1 x 4 mm'."""
    parts = [f"{s:g}" for s in spacing_mm]
    return f"{parts[0] if len(set(parts)) == 1 else ' x '.join(parts)} mm"


def measurements(
    segmenter: Segmenter, cases: Sequence[Case], made: Sequence[Acquisition]
) -> Iterator[list[Measurement] | Refusal]:
    """Every acquisition of every case in turn; what is random in them is the same on every run.

    One that the package refuses, as it does fields of view outside its own, is told and passed
    over.
    """
    for number, case in enumerate(cases):
        for acquisition in made:
            volume, truth = acquisition.make(case, np.random.default_rng(number))
            try:
                yield _measured(segmenter, acquisition, volume, truth)
            except ScanError as error:
                yield Refusal(case.name, acquisition.name, str(error))


def _measured(
    segmenter: Segmenter, acquisition: Acquisition, volume: Volume, case: Case
) -> list[Measurement]:
    """The answer to `volume` against the labels of `case`, one row per label."""
    model = segmenter.package.manifest.model
    classes = len(model.labels)
    fine = segmenter.segment(Scan(volume), spacing_out_mm=model.base_spacing_mm)
    found = labels_on(fine.labels, fine.grid, case.grid, classes)
    seen = labels_at(np.ones(fine.grid.shape, np.uint8), fine.grid, case.grid) > 0
    voxel = float(np.prod(case.grid.spacing_mm))
    scores = dice(found, case.labels, classes)
    own = _own_dice(segmenter, volume, case, classes)
    return [
        Measurement(
            case=case.name,
            acquisition=acquisition.name,
            group=acquisition.group,
            route=fine.route.route,
            label=model.labels[label],
            dice=scores[label - 1],
            own_dice=own[label - 1],
            surface_mm=mean_surface_distance_mm(
                found == label, case.labels == label, case.grid.spacing_mm
            ),
            volume_mm3=fine.volumes_mm3[label - 1],
            expected_mm3=np.count_nonzero(seen & (case.labels == label)) * voxel,
            milliseconds=sum(fine.timings_ms.values()) - fine.timings_ms["load"],
        )
        for label in range(1, classes)
    ]


def labels_on(
    labels: NDArray[np.uint8], grid: Grid, target: Grid, classes: int
) -> NDArray[np.uint8]:
    """`labels` on `grid` as each voxel of `target` sees them: the label with the largest share of
    it, over 3 x 3 x 3 points."""
    parts = (POINTS, POINTS, POINTS)
    return majority_vote(labels_at(labels, grid, target.subdivide(parts)), parts, classes)


def labels_at(labels: NDArray[np.uint8], grid: Grid, target: Grid) -> NDArray[np.uint8]:
    """`labels` on `grid` at the voxel centres of `target`: the nearest voxel's, 0 outside."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in target.shape), indexing="ij"), -1)
    # Half-way between two voxels the first is taken, whatever the last bits of the affines.
    place = np.ceil(grid.index(target.world_mm(index)) - 0.5 - 1e-6).astype(int)
    inside = np.asarray(((place >= 0) & (place < grid.shape)).all(axis=-1))
    i, j, k = np.where(inside[..., None], place, 0).transpose(3, 0, 1, 2)
    return np.where(inside, labels[i, j, k], 0).astype(np.uint8)


def _own_dice(segmenter: Segmenter, volume: Volume, case: Case, classes: int) -> list[float]:
    parts = np.linalg.solve(case.grid.affine[:3, :3], volume.grid.affine[:3, :3])
    whole = np.diag(np.diag(parts).round())
    if not np.allclose(parts, whole, atol=1e-6):
        return [float("nan")] * (classes - 1)
    i, j, k = np.diag(whole).astype(int).tolist()
    fine = labels_at(case.labels, case.grid, volume.grid.subdivide((i, j, k)))
    truth = majority_vote(fine, (i, j, k), classes)
    return dice(segmenter.segment(Scan(volume)).labels, truth, classes)


def _volume(voxels: NDArray[np.float32], grid: Grid) -> Volume:
    return Volume(np.moveaxis(voxels, 0, 3), grid)


def _averaged(spacing_mm: Triple, profile: Profile = "box") -> Make:
    """The scan ends, as a scanner's does, with the last whole voxel."""

    def make(case: Case, rng: Generator) -> Acquired:
        low = whole_voxels(case.grid, spacing_mm)
        return _volume(acquired(case.voxels, case.grid, low, profile), low), case

    return make


def _tighter(mm: float) -> Make:
    """What the scan does not show cannot be found, so the labels are cut too."""

    def make(case: Case, rng: Generator) -> Acquired:
        sizes = zip(case.labels.shape, case.grid.spacing_mm, strict=True)
        # Of a thin scan something stays.
        cut = [min(round(mm / spacing), (n - 1) // 2) for n, spacing in sizes]
        kept = tuple(slice(c, n - c) for c, n in zip(cut, case.labels.shape, strict=True))
        voxels, labels = case.voxels[(slice(None), *kept)], case.labels[kept]
        i, j, k = labels.shape
        grid = case.grid.box((cut[0], cut[1], cut[2]), (i, j, k))
        return _volume(voxels, grid), replace(case, voxels=voxels, labels=labels, grid=grid)

    return make


def _noisy_air(slices: int, level: float) -> Make:
    def make(case: Case, rng: Generator) -> Acquired:
        noise = level * float(np.percentile(case.voxels, 99.5))
        padded = with_air(case.voxels, case.grid, (0, 0, 0), (0, 0, slices), noise, rng)
        return _volume(*padded), case

    return make


def _doubled(case: Case, rng: Generator) -> Acquired:
    i, j, k = (n // 2 for n in case.labels.shape)
    return _volume(*with_air(case.voxels, case.grid, (i, j, k), (i, j, k), 0.0, rng)), case


def _hot(share: float) -> Make:
    def make(case: Case, rng: Generator) -> Acquired:
        return _volume(with_hot_voxels(case.voxels, share, 10.0, rng), case.grid), case

    return make


def _offset(factor: float) -> Make:
    def make(case: Case, rng: Generator) -> Acquired:
        return _volume(case.voxels + factor * case.voxels.max(), case.grid), case

    return make


def _noisy(level: float) -> Make:
    def make(case: Case, rng: Generator) -> Acquired:
        deviation = level * float(np.percentile(case.voxels, 99.5))
        return _volume(with_rician_noise(case.voxels, deviation, rng), case.grid), case

    return make


def _turned(degrees: float) -> Make:
    """An oblique scan of the whole crop; beyond the crop its border goes on."""

    def make(case: Case, rng: Generator) -> Acquired:
        rotation = angle_axis2mat(np.radians(degrees), TILT_AXIS)
        turned = turned_grid(case.grid, rotation, whole=True)
        return _volume(resliced(case.voxels, case.grid, turned, "nearest"), turned), case

    return make
