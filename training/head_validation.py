"""How well the head stage finds: both hippocampi on held-out heads, route by route and as different
scanners would show them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from nibabel.quaternions import angle_axis2mat
from numpy.typing import NDArray

from rare_trt.evaluation.simulation import (
    acquire,
    reslice,
    reslice_labels,
    rotated_grid,
    whole_voxel_grid,
)
from rare_trt.scan.geometry import Grid, Triple
from rare_trt.training.checkpoint import Checkpoint
from rare_trt.training.head_cases import HeadCase
from rare_trt.training.head_labels import (
    AIR,
    BACKGROUND,
    CLASSES,
    INTRACRANIAL,
    LEFT_HIPPOCAMPUS,
    RIGHT_HIPPOCAMPUS,
    exchange_labels,
)
from rare_trt.training.head_synthesis import HeadScan, paint
from rare_trt.training.inputs import route_inputs

SIDES = (LEFT_HIPPOCAMPUS, RIGHT_HIPPOCAMPUS)
PAIRS = ((LEFT_HIPPOCAMPUS, RIGHT_HIPPOCAMPUS),)

# A centre is found within this distance, and of at least this volume.
FOUND_MM, SMALLEST_MM3 = 8.0, 300.0

# How far the cropped field of view reaches beyond the hippocampi's centres, per axis and side.
CROPPED_MM = ((60.0, 60.0), (70.0, 50.0), (45.0, 40.0))

Acquisition: TypeAlias = Callable[[HeadCase], HeadScan]


@dataclass(frozen=True)
class HeadScore:
    """What a route made of one scan: per label 1 to 3 Dice; per side (left, right) the centre's
    error in mm (infinite: not found) and whether it lies nearer to the other side's true centre.

    Of a scan that shows no hippocampus of a side, that side's error is 0 where none is found.
    """

    dice: tuple[float, ...]
    error_mm: tuple[float, float]
    exchanged: bool

    @property
    def found(self) -> bool:
        """Whether both centres are where they should be."""
        return max(self.error_mm) <= FOUND_MM and not self.exchanged


def acquisitions() -> dict[str, Acquisition]:
    """The scans to measure on, by name; each a function of the head alone."""
    return {
        "2 mm": lambda head: _measured(head, (2.0, 2.0, 2.0)),
        "4 mm": lambda head: _measured(head, (4.0, 4.0, 4.0)),
        "6x2x2": lambda head: _measured(head, (6.0, 2.0, 2.0)),
        "2x6x2": lambda head: _measured(head, (2.0, 6.0, 2.0)),
        "2x2x6": lambda head: _measured(head, (2.0, 2.0, 6.0)),
        "cropped": _cropped,
        "half": _halved,
        "stripped": _stripped,
        "inverted": _inverted,
        "inverted 2x2x6": lambda head: _thick(_inverted(head)),
        "painted": _painted,
        "turned 30": _turned,
        "mirrored": _mirrored,
    }


@torch.no_grad()
def predict_head(checkpoint: Checkpoint, scan: HeadScan, route: int) -> NDArray[np.uint8]:
    """Labels 0 to 3 of `scan` along `route`, on its truth grid."""
    inputs = route_inputs(
        scan.voxels, scan.grid, route, scan.truth_grid, checkpoint.recipe, torch.device("cpu")
    )
    logits = inputs.predict(checkpoint.network, route)
    labels: NDArray[np.uint8] = logits[0].argmax(0).to(torch.uint8).numpy()
    return labels


def locate(labels: NDArray[np.uint8], label: int, grid: Grid) -> NDArray[np.float64] | None:
    """World mm of the centre of the largest connected part of `label`; None where it is smaller
    than `SMALLEST_MM3`."""
    from scipy.ndimage import label as connect

    parts, count = connect(labels == label)
    if not count:
        return None
    sizes = np.bincount(parts.ravel())[1:]
    if sizes.max() * float(np.prod(grid.spacing_mm)) < SMALLEST_MM3:
        return None
    return grid.world_mm(np.argwhere(parts == 1 + int(sizes.argmax())).mean(axis=0))


def score_head(found: NDArray[np.uint8], scan: HeadScan) -> HeadScore:
    """Labels found in `scan` against its own."""
    dice = []
    for label in range(1, CLASSES):
        size = (found == label).sum() + (scan.labels == label).sum()
        both = ((found == label) & (scan.labels == label)).sum()
        dice.append(2.0 * float(both) / float(size) if size else 1.0)
    grid = scan.truth_grid
    true = [locate(scan.labels, side, grid) for side in SIDES]
    centres = [locate(found, side, grid) for side in SIDES]
    errors, exchanged = [], False
    for side, centre in enumerate(centres):
        here, there = true[side], true[1 - side]
        if here is None or centre is None:
            errors.append(0.0 if here is None and centre is None else float("inf"))
        else:
            errors.append(float(np.linalg.norm(centre - here)))
        if centre is not None and there is not None:
            distance = float(np.linalg.norm(centre - there))
            exchanged |= distance < min(errors[side], 20.0)
    return HeadScore(tuple(dice), (errors[0], errors[1]), exchanged)


def validate_heads(
    checkpoint: Checkpoint, heads: Sequence[HeadCase], names: Sequence[str], routes: Sequence[int]
) -> dict[tuple[str, int], list[HeadScore]]:
    """Scores of all `heads` for each acquisition of `names` and each of `routes`."""
    known = acquisitions()
    scores: dict[tuple[str, int], list[HeadScore]] = {}
    for name in names:
        for head in heads:
            scan = known[name](head)
            for route in routes:
                labels = predict_head(checkpoint, scan, route)
                scores.setdefault((name, route), []).append(score_head(labels, scan))
    return scores


def table(scores: dict[tuple[str, int], list[HeadScore]]) -> str:
    """The scores as a table in Markdown: per acquisition and route how many heads had both sides
    found, how many exchanged, centre errors (median, largest; mm) and mean Dice per label."""
    lines = [
        "| scan | route | found | exchanged | left mm | right mm | Dice of labels 1, 2, 3 |",
        "|---|---|---|---|---|---|---|",
    ]
    for (name, route), rows in scores.items():
        errors = np.array([row.error_mm for row in rows])
        dice = np.array([row.dice for row in rows]).mean(axis=0)
        sides = [f"{np.median(errors[:, s]):.1f}, {errors[:, s].max():.1f}" for s in (0, 1)]
        found, exchanged = sum(r.found for r in rows), sum(r.exchanged for r in rows)
        lines.append(
            f"| {name} | {route} | {found}/{len(rows)} | {exchanged} | {sides[0]} | {sides[1]} | "
            f"{dice[0]:.3f} / {dice[1]:.3f} / {dice[2]:.3f} |"
        )
    return "\n".join(lines)


def _image(head: HeadCase) -> NDArray[np.float32]:
    if head.image is None:
        raise ValueError(f"{head.name} is a label map without an image")
    return head.image


def _measured(head: HeadCase, spacing_mm: Triple) -> HeadScan:
    target = whole_voxel_grid(head.grid, spacing_mm)
    shape = np.floor(np.array(target.extent_mm) / head.grid.spacing_mm + 1e-6).astype(int)
    i, j, k = np.minimum(shape, head.labels.shape).tolist()
    return HeadScan(
        acquire(_image(head)[None], head.grid, target),
        target,
        head.labels[:i, :j, :k],
        head.grid.box((0, 0, 0), (i, j, k)),
    )


def _whole(head: HeadCase) -> HeadScan:
    return HeadScan(_image(head)[None], head.grid, head.labels, head.grid)


def _part(head: HeadCase, low: NDArray[np.int64], high: NDArray[np.int64]) -> HeadScan:
    part = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    i, j, k = (high - low).tolist()
    grid = head.grid.box((int(low[0]), int(low[1]), int(low[2])), (i, j, k))
    return HeadScan(_image(head)[part][None], grid, head.labels[part], grid)


def _cropped(head: HeadCase) -> HeadScan:
    """Without neck, vertex and face: a box about the two centres."""
    centre = np.argwhere(head.labels > INTRACRANIAL).mean(axis=0)
    reach = np.array(CROPPED_MM) / np.array(head.grid.spacing_mm)[:, None]
    low = np.maximum(np.round(centre - reach[:, 0]), 0).astype(np.int64)
    high = np.minimum(np.round(centre + reach[:, 1]), head.labels.shape).astype(np.int64)
    return _part(head, low, high)


def _halved(head: HeadCase) -> HeadScan:
    """The left half alone: nothing of the right hippocampus, most of the time."""
    centre = np.argwhere(head.labels > INTRACRANIAL).mean(axis=0)
    high = np.array(head.labels.shape, np.int64)
    high[0] = int(centre[0]) + 1
    return _part(head, np.zeros(3, np.int64), high)


def _stripped(head: HeadCase) -> HeadScan:
    image = np.where(head.labels == BACKGROUND, np.float32(0.0), _image(head))
    return _whole(replace(head, image=image))


def _inverted(head: HeadCase) -> HeadScan:
    """Tissue turned round, as T2 to T1; air stays dark."""
    image = _image(head)
    dark = (head.tissues == AIR) | (image < 0.05) & (head.labels == BACKGROUND)
    turned = np.where(dark, image * 0.5, np.clip(1.05 - image, 0.0, None))
    return _whole(replace(head, image=turned.astype(np.float32)))


def _thick(scan: HeadScan) -> HeadScan:
    target = whole_voxel_grid(scan.grid, (2.0, 2.0, 6.0))
    i, j, k = scan.labels.shape
    k = min(k, 3 * target.shape[2])
    voxels = acquire(scan.voxels, scan.grid, target)
    truth = scan.truth_grid.box((0, 0, 0), (i, j, k))
    return HeadScan(voxels, target, scan.labels[:, :, :k], truth)


def _painted(head: HeadCase) -> HeadScan:
    """A synthesised contrast that depends on the head's name alone."""
    image = paint(head.tissues, np.random.default_rng(list(head.name.encode())))
    return _whole(replace(head, image=image))


def _turned(head: HeadCase) -> HeadScan:
    """The head turned by 30 degrees about a slanting axis in its field of view."""
    axes = head.grid
    rotation = angle_axis2mat(np.radians(30.0), np.array([1.0, 0.7, -0.5]))
    target = rotated_grid(axes, rotation, whole=False)
    image = reslice(_image(head)[None], axes, target, "constant")
    labels = reslice_labels(head.labels, axes, target, CLASSES)
    plain = Grid(target.shape, axes.affine)
    return HeadScan(image, plain, labels, plain)


def _mirrored(head: HeadCase) -> HeadScan:
    """The anatomy mirrored left to right in its field of view."""
    image = np.ascontiguousarray(_image(head)[::-1])
    labels = exchange_labels(np.ascontiguousarray(head.labels[::-1]), PAIRS)
    return HeadScan(image[None], head.grid, labels, head.grid)
