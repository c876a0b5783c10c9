"""A package on simulated acquisitions of labelled scans, measured against their full labels.

Every acquisition is simulated from the labelled scan (simulation.py). The runtime segments it on a
grid of the base spacing, and the labels are compared with the manual ones on the manual labels' own
grid, at equal places in the world.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
    acquire,
    add_air,
    add_hot_voxels,
    add_rician_noise,
    reslice,
    rotated_grid,
    whole_voxel_grid,
)
from rare_trt.evaluation.surfaces import mean_surface_distance_mm
from rare_trt.plan.resampling import majority_vote
from rare_trt.scan.geometry import Grid, Triple, Volume
from rare_trt.scan.nifti import Scan
from rare_trt.segmenter import Segmenter

Group: TypeAlias = Literal["spacing", "robustness"]

# A scan, and the case with the labels to compare with.
SimulatedScan: TypeAlias = tuple[Volume, Case]
Make: TypeAlias = Callable[[Case, Generator], SimulatedScan]

# Voxel sizes in multiples of the base spacing.
VOXELS: Final[tuple[Triple, ...]] = (
    *((f, f, f) for f in (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)),
    *((1.0, 1.0, 2.0), (1.0, 1.0, 4.0), (1.0, 4.0, 1.0), (4.0, 1.0, 1.0)),
    *((1.0, 1.0, 6.0), (1.0, 6.0, 1.0), (6.0, 1.0, 1.0), (2.0, 2.0, 4.0), (2.0, 2.0, 6.0)),
)

# Points per axis at which labels are sampled within a voxel of the manual label. With one point
# even the manual label, rotated by 20 degrees and back, would get a Dice of no more than 0.962;
# with three 0.982 (mean of 8 cases). Where the grids agree it makes no difference.
POINTS: Final = 3

# Heads tilt about the right-left axis more than about the others.
TILT_AXIS: Final = (2.0, 1.0, 1.0)


@dataclass(frozen=True)
class Acquisition:
    """One kind of simulated scan: in the group "spacing" only the voxels differ from the labelled
    scan's, in "robustness" something else does. `make` simulates it from a case."""

    name: str
    group: Group
    make: Make


@dataclass(frozen=True)
class Measurement:
    """One label of one case in one acquisition.

    `dice` and `surface_mm` are measured on the grid of the manual labels. `own_dice` is Dice on the
    scan's own grid against the majority vote of the manual labels in each of its voxels; NaN where
    its voxels are no whole multiples of theirs. `volume_mm3` is that of the label found,
    `expected_mm3` that of the manual label inside the scan. `milliseconds` is the time from voxels
    to labels on the fine grid, without loading, of all labels together.
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
class RejectedScan:
    """An acquisition of a case that the package rejects, and the reason."""

    case: str
    acquisition: str
    reason: str


def acquisitions(base_spacing_mm: float) -> list[Acquisition]:
    """Returns the acquisitions of the report: voxels of up to 8 times the base spacing and ratios
    of up to 1:6 between axes, and disturbances of the scan at the base spacing."""
    found = []
    for factors in VOXELS:
        i, j, k = (factor * base_spacing_mm for factor in factors)
        make = partial(_average_to, spacing_mm=(i, j, k))
        found.append(Acquisition(spacing_name((i, j, k)), "spacing", make))
    thick = (base_spacing_mm, base_spacing_mm, 4.0 * base_spacing_mm)
    name = f"{spacing_name(thick)}, Gaussian slices"
    make = partial(_average_to, spacing_mm=thick, profile="gaussian")
    found.append(Acquisition(name, "spacing", make))
    disturbed: dict[str, Make] = {
        "4 mm tighter on every side": partial(_crop, mm=4.0),
        "16 slices of noise": partial(_add_noisy_air, slices=16, level=0.05),
        "twice the extent, zeros": _double_extent,
        "0.1 % hot voxels": partial(_add_hot_voxels, share=0.001),
        "offset of 3 times the maximum": partial(_add_offset, factor=3.0),
        "noise of 5 % of the maximum": partial(_add_noise, level=0.05),
        "turned by 20 degrees": partial(_rotate, degrees=20.0),
        "turned by 35 degrees": partial(_rotate, degrees=35.0),
    }
    return found + [Acquisition(name, "robustness", make) for name, make in disturbed.items()]


def spacing_name(spacing_mm: Triple) -> str:
    """Returns a name such as '4 mm' or '1 x 1 x 4 mm'."""
    parts = [f"{s:g}" for s in spacing_mm]
    return f"{parts[0] if len(set(parts)) == 1 else ' x '.join(parts)} mm"


def measure(
    segmenter: Segmenter, cases: Sequence[Case], kinds: Sequence[Acquisition]
) -> Iterator[list[Measurement] | RejectedScan]:
    """Measures every acquisition of every case in turn, one row per label; the random numbers are
    the same on every run.

    A scan that the package rejects, such as one with a field of view outside the package's, yields
    the reason instead.
    """
    for number, case in enumerate(cases):
        for acquisition in kinds:
            volume, truth = acquisition.make(case, np.random.default_rng(number))
            try:
                yield _measure_scan(segmenter, acquisition, volume, truth)
            except ScanError as error:
                yield RejectedScan(case.name, acquisition.name, str(error))


def _measure_scan(
    segmenter: Segmenter, acquisition: Acquisition, volume: Volume, case: Case
) -> list[Measurement]:
    """Segments `volume` and compares it with the labels of `case`, one row per label."""
    model = segmenter.package.manifest.model
    classes = len(model.labels)
    fine = segmenter.segment(Scan(volume), spacing_out_mm=model.base_spacing_mm)
    found = labels_on(fine.labels, fine.grid, case.grid, classes)
    inside = labels_at(np.ones(fine.grid.shape, np.uint8), fine.grid, case.grid) > 0
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
            volume_mm3=fine.volumes_mm3[model.labels[label]],
            expected_mm3=np.count_nonzero(inside & (case.labels == label)) * voxel,
            milliseconds=sum(fine.timings_ms.values()) - fine.timings_ms["load"],
        )
        for label in range(1, classes)
    ]


def labels_on(
    labels: NDArray[np.uint8], grid: Grid, target: Grid, classes: int
) -> NDArray[np.uint8]:
    """Resamples `labels` [i, j, k] on `grid` to `target` by majority vote over 3 x 3 x 3 points in
    each of its voxels."""
    parts = (POINTS, POINTS, POINTS)
    return majority_vote(labels_at(labels, grid, target.subdivide(parts)), parts, classes)


def labels_at(labels: NDArray[np.uint8], grid: Grid, target: Grid) -> NDArray[np.uint8]:
    """Returns `labels` [i, j, k] on `grid` at the voxel centres of `target`: those of the nearest
    voxels, 0 outside."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in target.shape), indexing="ij"), -1)
    # Half-way between two voxels the first is taken, whatever the last bits of the affines.
    place = np.ceil(grid.index(target.world_mm(index)) - 0.5 - 1e-6).astype(int)
    inside = np.asarray(((place >= 0) & (place < grid.shape)).all(axis=-1))
    i, j, k = np.where(inside[..., None], place, 0).transpose(3, 0, 1, 2)
    return np.where(inside, labels[i, j, k], 0).astype(np.uint8)


def _own_dice(segmenter: Segmenter, volume: Volume, case: Case, classes: int) -> list[float]:
    """Dice per label on the grid of `volume`; NaN where its voxels are no whole multiples of the
    voxels of `case`."""
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


def _average_to(
    case: Case, rng: Generator, spacing_mm: Triple, profile: Profile = "box"
) -> SimulatedScan:
    """The scan ends, as a scanner's does, with the last whole voxel."""
    low = whole_voxel_grid(case.grid, spacing_mm)
    return _volume(acquire(case.voxels, case.grid, low, profile), low), case


def _crop(case: Case, rng: Generator, mm: float) -> SimulatedScan:
    """Crops the scan and its labels: those outside the scan cannot be found."""
    sizes = zip(case.labels.shape, case.grid.spacing_mm, strict=True)
    # At least one voxel of a thin scan remains.
    cut = [min(round(mm / spacing), (n - 1) // 2) for n, spacing in sizes]
    part = tuple(slice(c, n - c) for c, n in zip(cut, case.labels.shape, strict=True))
    voxels, labels = case.voxels[(slice(None), *part)], case.labels[part]
    i, j, k = labels.shape
    grid = case.grid.box((cut[0], cut[1], cut[2]), (i, j, k))
    return _volume(voxels, grid), replace(case, voxels=voxels, labels=labels, grid=grid)


def _add_noisy_air(case: Case, rng: Generator, slices: int, level: float) -> SimulatedScan:
    noise = level * float(np.percentile(case.voxels, 99.5))
    padded = add_air(case.voxels, case.grid, (0, 0, 0), (0, 0, slices), noise, rng)
    return _volume(*padded), case


def _double_extent(case: Case, rng: Generator) -> SimulatedScan:
    i, j, k = (n // 2 for n in case.labels.shape)
    return _volume(*add_air(case.voxels, case.grid, (i, j, k), (i, j, k), 0.0, rng)), case


def _add_hot_voxels(case: Case, rng: Generator, share: float) -> SimulatedScan:
    return _volume(add_hot_voxels(case.voxels, share, 10.0, rng), case.grid), case


def _add_offset(case: Case, rng: Generator, factor: float) -> SimulatedScan:
    return _volume(case.voxels + factor * case.voxels.max(), case.grid), case


def _add_noise(case: Case, rng: Generator, level: float) -> SimulatedScan:
    deviation = level * float(np.percentile(case.voxels, 99.5))
    return _volume(add_rician_noise(case.voxels, deviation, rng), case.grid), case


def _rotate(case: Case, rng: Generator, degrees: float) -> SimulatedScan:
    """An oblique scan of the whole crop; beyond the crop its border voxels continue."""
    rotation = angle_axis2mat(np.radians(degrees), TILT_AXIS)
    rotated = rotated_grid(case.grid, rotation, whole=True)
    return _volume(reslice(case.voxels, case.grid, rotated, "nearest"), rotated), case
