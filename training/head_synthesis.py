"""Random heads for training: pose and field of view, contrast synthesised or changed, acquisition.

Images are synthesised from tissue maps after SynthSeg: Billot et al., "SynthSeg: Segmentation of
brain MRI scans of any contrast and resolution without retraining", Medical Image Analysis 86
(2023): a Gaussian mixture with random parameters per tissue, smooth deformation, bias field, gamma,
and a random acquisition. Real images keep their texture and get random contrast curves instead.

Everything is drawn from one numpy generator, on the case's own voxels: a case at half the
resolution (`head_cases.halve`) gives scans for coarse routes at an eighth of the time. Image,
labels and tissues move together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nibabel.quaternions import angle_axis2mat
from numpy.random import Generator
from numpy.typing import NDArray

from rare_trt.evaluation.simulation import Profile, acquire, add_rician_noise, parallel_grid
from rare_trt.scan.geometry import Grid, Shape, Triple
from rare_trt.training.head_cases import HeadCase
from rare_trt.training.head_labels import (
    AIR,
    BACKGROUND,
    BRAIN,
    INDEX,
    INTRACRANIAL,
    TISSUES,
    exchange_labels,
)

# Degrees: the usual tilt of a head (deviation), and the largest turn of some.
USUAL_TILT, LARGEST_TURN = 8.0, 45.0

# Of a field of view, per axis, in mm.
SMALLEST_MM, LARGEST_MM = 48.0, 256.0

# What stays, at most, between the hippocampi and a cut that spares them.
SPARED_MM = 26.0

# Standard deviation of the smooth deformation, at most, in mm and relative to its nodes' distance.
LARGEST_SHIFT_MM, LARGEST_SHIFT_SHARE = 5.0, 0.16

# Tissues that have similar intensities in most contrasts.
GREY = (
    "cerebral grey matter",
    "cerebellar grey matter",
    "hippocampus",
    "amygdala",
    "caudate nucleus",
    "putamen",
    "accumbens and basal forebrain",
    "thalamus",
)
WHITE = ("cerebral white matter", "cerebellar white matter", "brain stem", "ventral diencephalon")
FLUID = ("fluid", "ventricles", "eyes")


@dataclass(frozen=True, eq=False)
class HeadScan:
    """A head as some scanner would show it: voxels float32 [1, i, j, k] on `grid`, and the labels
    [a, b, c] to find on `truth_grid` (base spacing, parallel axes, inside the field of view)."""

    voxels: NDArray[np.float32]
    grid: Grid
    labels: NDArray[np.uint8]
    truth_grid: Grid


@dataclass(frozen=True, eq=False)
class Pose:
    """Where each voxel of a field of view of `shape` comes from: voxel p shows the head's voxel
    `matrix` @ (p + `first`) + `centre` + displacement(p), the displacement interpolated linearly
    from `nodes` [3, n, n, n] spread over the field of view."""

    matrix: NDArray[np.float64]
    first: NDArray[np.float64]
    centre: NDArray[np.float64]
    shape: Shape
    nodes: NDArray[np.float32]

    @property
    def mirrored(self) -> bool:
        """Whether left and right are exchanged."""
        return bool(np.linalg.det(self.matrix) < 0.0)

    def coordinates(self) -> NDArray[np.float32]:
        """The head's voxel indices [3, i, j, k] that the field of view shows."""
        axes = [np.arange(n) + f for n, f in zip(self.shape, self.first, strict=True)]
        weights = [_linear(n, self.nodes.shape[1]) for n in self.shape]
        moved = np.einsum("xabc,ia,jb,kc->xijk", self.nodes, *weights, optimize=True)
        for x in range(3):
            row = self.matrix[x]
            moved[x] += (row[0] * axes[0] + self.centre[x]).astype(np.float32)[:, None, None]
            moved[x] += (row[1] * axes[1]).astype(np.float32)[:, None]
            moved[x] += (row[2] * axes[2]).astype(np.float32)
        coordinates: NDArray[np.float32] = moved
        return coordinates


def draw_scan(
    case: HeadCase,
    rng: Generator,
    *,
    synthetic: bool,
    spacing_mm: Triple,
    pairs: tuple[tuple[int, int], ...],
) -> HeadScan:
    """A random scan of `case` with voxels of `spacing_mm`; `synthetic`: of a random contrast
    synthesised from its tissues. `pairs` are the labels that a mirrored head exchanges."""
    image, labels, tissues = warp(case, draw_pose(case, rng), pairs)
    painted = image is None or synthetic
    image = paint(tissues, rng) if image is None or synthetic else recolour(image, tissues, rng)
    image = mask(image, labels, tissues, rng)
    image = shade(image, rng)
    return simulate_head(image, labels, case.grid.spacing_mm, spacing_mm, rng, smooth=painted)


def draw_pose(case: HeadCase, rng: Generator) -> Pose:
    """A random affine map, smooth deformation and field of view about the head in `case`."""
    angle = np.radians(rng.normal(0.0, USUAL_TILT))
    if rng.random() < 0.35:
        angle = np.radians(rng.uniform(-LARGEST_TURN, LARGEST_TURN))
    # A normally distributed vector points in every direction alike.
    matrix = angle_axis2mat(float(angle), rng.normal(size=3))
    scale = np.clip(np.exp(rng.normal(0.0, 0.08, 3)), 0.8, 1.25) * np.exp(rng.normal(0.0, 0.06))
    matrix = matrix @ np.diag(1.0 / scale)
    matrix = matrix @ (np.eye(3) + np.triu(rng.normal(0.0, 0.03, (3, 3)), 1))
    if rng.random() < 0.5:
        matrix = matrix @ np.diag([-1.0, 1.0, 1.0])
    head = np.argwhere(case.tissues != AIR)
    centre = (head.min(axis=0) + head.max(axis=0)) / 2
    first, shape = _field_of_view(case, matrix, centre, rng)
    count = int(rng.integers(4, 9))
    largest = min(LARGEST_SHIFT_MM / voxel_mm(case), LARGEST_SHIFT_SHARE * min(shape) / (count - 1))
    deviation = rng.uniform(0.0, largest) if rng.random() < 0.8 else 0.0
    nodes = rng.normal(0.0, 1.0, (3, count, count, count)) * deviation
    return Pose(matrix, first, centre, shape, nodes.astype(np.float32))


def _field_of_view(
    case: HeadCase, matrix: NDArray[np.float64], centre: NDArray[np.float64], rng: Generator
) -> tuple[NDArray[np.float64], Shape]:
    """First voxel (relative to the head's centre) and shape of a random field of view.

    It begins as the case's own; its faces move out into air or into the head: some of them or all
    (a box about the hippocampi), no farther than the hippocampi's ends, or one through half of the
    head.
    """
    inverse, unit = np.linalg.inv(matrix), voxel_mm(case)
    half = (np.array(case.labels.shape) - 1) / 2
    low, high = -half - rng.uniform(-4, 8, 3) / unit, half + rng.uniform(-4, 8, 3) / unit
    small = np.argwhere(case.labels > INTRACRANIAL)
    kind = rng.random()
    if kind < 0.6 and len(small):
        places = (small - centre) @ inverse.T
        inner_low = np.minimum(places.min(axis=0), 0) - rng.uniform(2.0, SPARED_MM, 3) / unit
        inner_high = np.maximum(places.max(axis=0), 0) + rng.uniform(2.0, SPARED_MM, 3) / unit
        # The cuts that scanners make most: neck and vertex; then the others.
        chance = np.array([0.25, 0.25, 0.45]) if kind < 0.43 else np.ones(3)
        cut_low, cut_high = rng.random(3) < chance, rng.random(3) < chance
        depth_low, depth_high = rng.random(3), rng.random(3)
        low = np.where(cut_low, low + depth_low * np.maximum(inner_low - low, 0.0), low)
        high = np.where(cut_high, high - depth_high * np.maximum(high - inner_high, 0.0), high)
    elif kind < 0.72:
        axis, side = int(rng.integers(3)), bool(rng.integers(2))
        place = rng.uniform(0.25, 0.75) * (high[axis] - low[axis]) + low[axis]
        (high if side else low)[axis] = place
    elif kind < 0.82:
        low, high = low - rng.uniform(0, 30, 3) / unit, high + rng.uniform(0, 30, 3) / unit
    shape = np.clip(np.round(high - low + 1), SMALLEST_MM / unit, LARGEST_MM / unit).astype(int)
    i, j, k = shape.tolist()
    return (low + high - shape + 1) / 2, (i, j, k)


def warp(
    case: HeadCase, pose: Pose, pairs: tuple[tuple[int, int], ...]
) -> tuple[NDArray[np.float32] | None, NDArray[np.uint8], NDArray[np.uint8]]:
    """Image (linear), labels and tissues (nearest) of `case` in the field of view of `pose`."""
    from scipy.ndimage import map_coordinates

    where = pose.coordinates()
    both = map_coordinates(case.tissues * np.uint8(4) + case.labels, where, order=0)
    labels, tissues = both % np.uint8(4), both // np.uint8(4)
    if pose.mirrored:
        labels = exchange_labels(labels, pairs)
    image = None
    if case.image is not None:
        image = map_coordinates(case.image, where, order=1, prefilter=False)
    return image, labels, tissues


def paint(tissues: NDArray[np.uint8], rng: Generator) -> NDArray[np.float32]:
    """An image [i, j, k] of a random contrast, about 0 to 1: each tissue has a random mean and
    deviation; in half of the images grey matter, white matter and fluids are each of a kind."""
    means = rng.uniform(0.0, 1.0, len(TISSUES)).astype(np.float32)
    deviations = rng.uniform(0.0, 0.12, len(TISSUES)).astype(np.float32)
    if rng.random() < 0.6:
        for kind, spread in ((GREY, 0.05), (WHITE, 0.04), (FLUID, 0.03)):
            members = [INDEX[name] for name in kind]
            means[members] = rng.uniform(0.0, 1.0) + rng.normal(0.0, spread, len(members))
            deviations[members] = rng.uniform(0.0, 0.1)
    dark = rng.random() < 0.95
    means[AIR] = rng.uniform(0.0, 0.06) if dark else rng.uniform(0.0, 1.0)
    deviations[AIR] = rng.uniform(0.0, 0.03)
    noise = rng.standard_normal(tissues.shape, np.float32)
    painted: NDArray[np.float32] = means[tissues] + deviations[tissues] * noise
    return np.maximum(painted, 0.0)


def recolour(
    image: NDArray[np.float32], tissues: NDArray[np.uint8], rng: Generator
) -> NDArray[np.float32]:
    """A real image (about 0 to 1) under another contrast: gamma, a random curve that air does not
    follow, inverted tissue, or random offsets per tissue."""
    kind = rng.random()
    values = np.clip(image, 0.0, 1.3)
    if kind < 0.35:
        changed = values ** np.float32(np.exp(rng.normal(0.0, 0.25)))
    elif kind < 0.65:
        knots = np.linspace(0.0, 1.3, int(rng.integers(4, 8)))
        curve = rng.uniform(0.0, 1.0, len(knots))
        if rng.random() < 0.4:
            curve = np.sort(curve)
        curve[0] = 0.0
        changed = np.interp(values, knots, curve).astype(np.float32)
    elif kind < 0.8:
        # As T2 to T1: what is labelled turns round, air stays dark.
        top = float(rng.uniform(0.9, 1.1))
        power = np.exp(rng.normal(0.0, 0.3))
        turned = np.clip(top - values, 0.0, None) ** power
        changed = np.where(tissues == AIR, values * 0.3, turned).astype(np.float32)
    else:
        offsets = rng.normal(0.0, 0.2, len(TISSUES)).astype(np.float32)
        offsets[AIR] = 0.0
        share = np.float32(rng.uniform(0.3, 1.0))
        changed = np.maximum(values * share + offsets[tissues] + np.float32(0.1), 0.0)
        changed[tissues == AIR] = values[tissues == AIR]
    recoloured: NDArray[np.float32] = changed
    return recoloured


def mask(
    image: NDArray[np.float32],
    labels: NDArray[np.uint8],
    tissues: NDArray[np.uint8],
    rng: Generator,
) -> NDArray[np.float32]:
    """Now and then the image without skull, without face, or with a hole outside the brain."""
    chance = rng.random()
    if chance < 0.08:
        return np.where(labels == BACKGROUND, np.float32(0.0), image)
    if chance < 0.14:
        kept = np.isin(tissues, [INDEX[name] for name in BRAIN]) & (labels != BACKGROUND)
        return np.where(kept, image, np.float32(0.0))
    inside = np.argwhere(labels != BACKGROUND)[::13]
    if chance < 0.26 and len(inside):
        # A plane beyond the intracranial space: most of the time in front and below.
        direction = rng.normal(size=3)
        if rng.random() < 0.7:
            tilt = np.radians(rng.uniform(0.0, 70.0))
            direction = np.array([rng.normal(0.0, 0.1), np.cos(tilt), -np.sin(tilt)])
        extent = inside @ direction
        limit = float(extent.max() + rng.uniform(0.01, 0.1) * np.ptp(extent))
        i, j, k = (np.arange(n) * d for n, d in zip(image.shape, direction, strict=True))
        beyond = i[:, None, None] + j[:, None] + k > limit
        return np.where(beyond, np.float32(0.0), image)
    if chance < 0.34:
        size = (rng.uniform(0.05, 0.3, 3) * np.array(image.shape)).astype(int)
        first = (rng.random(3) * np.array(image.shape)).astype(int)
        hole = np.zeros(image.shape, bool)
        hole[tuple(slice(f, f + s) for f, s in zip(first, size, strict=True))] = True
        filling = np.float32(rng.choice([0.0, rng.uniform(0.0, 1.0)]))
        return np.where(hole & (labels == BACKGROUND), filling, image)
    return image


def shade(image: NDArray[np.float32], rng: Generator) -> NDArray[np.float32]:
    """The image under a smooth bias field exp(b), b interpolated from a few random nodes."""
    if rng.random() < 0.2:
        return image
    count = int(rng.integers(2, 6))
    nodes = rng.normal(0.0, rng.uniform(0.0, 0.4), (count, count, count)).astype(np.float32)
    weights = [_linear(n, count) for n in image.shape]
    shaded: NDArray[np.float32] = image * np.exp(
        np.einsum("abc,ia,jb,kc->ijk", nodes, *weights, optimize=True)
    )
    return shaded


def draw_spacing(rng: Generator, base_mm: float, coarsest_mm: float) -> Triple:
    """Voxel sizes along i, j, k in mm: base spacing, another isotropic one, or thick slices."""
    kind = rng.random()
    if kind < 0.35:
        return base_mm, base_mm, base_mm
    if kind < 0.6:
        size = float(np.exp(rng.uniform(np.log(base_mm), np.log(coarsest_mm))))
        return size, size, size
    within = float(np.exp(rng.uniform(np.log(base_mm), np.log(2.0 * base_mm))))
    sizes = [base_mm if rng.random() < 0.6 else within] * 3
    sizes[int(rng.integers(3))] = float(rng.uniform(1.5 * base_mm, coarsest_mm))
    i, j, k = sizes
    return i, j, k


def simulate_head(
    image: NDArray[np.float32],
    labels: NDArray[np.uint8],
    base_mm: Triple,
    spacing_mm: Triple,
    rng: Generator,
    *,
    smooth: bool,
) -> HeadScan:
    """The image [i, j, k] measured with voxels of `spacing_mm` that cover it, with noise.

    `smooth`: under a Gaussian slice profile, which also blurs the hard edges of painted tissues.
    """
    ni, nj, nk = labels.shape
    full = Grid((ni, nj, nk), np.diag([*base_mm, 1.0]))
    shape = [
        max(2, int(np.ceil(extent / step - 1e-6)))
        for extent, step in zip(full.extent_mm, spacing_mm, strict=True)
    ]
    # Centred on it but for a part of a voxel that covering leaves free.
    free = [n * s - e for n, s, e in zip(shape, spacing_mm, full.extent_mm, strict=True)]
    si, sj, sk = (-float(rng.random()) * f for f in free)
    grid = parallel_grid(full, spacing_mm, (si, sj, sk), (shape[0], shape[1], shape[2]))
    profile: Profile = "gaussian" if smooth or rng.random() < 0.4 else "box"
    voxels = acquire(image[None], full, grid, profile)
    if rng.random() < 0.6:
        voxels = add_rician_noise(np.maximum(voxels, 0.0), float(rng.uniform(0.0, 0.1)), rng)
    if rng.random() < 0.3:
        voxels = np.maximum(voxels, 0.0) ** np.float32(np.exp(rng.normal(0.0, 0.3)))
    return HeadScan(voxels.astype(np.float32), grid, labels, full)


def voxel_mm(case: HeadCase) -> float:
    """The mean spacing of the case in mm."""
    return float(np.mean(case.grid.spacing_mm))


def _linear(size: int, nodes: int) -> NDArray[np.float32]:
    """Weights [size, nodes] of a linear interpolation between nodes spread over an axis."""
    place = np.linspace(0.0, nodes - 1.0, size)[:, None] - np.arange(nodes)
    return np.maximum(1.0 - np.abs(place), 0.0).astype(np.float32)
