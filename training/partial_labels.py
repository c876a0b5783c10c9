"""Partially labelled cases: boxes around the hippocampi of whole heads from other sites.

Automatic label maps of heads name the whole hippocampus and follow another protocol than the
manual labels that a network is trained on. They say where the structure is, on many scanners, but
not where its parts meet, and they draw its boundary elsewhere. So the loss merges all labels of the
network into one, and the outermost voxels of the label map count with `Recipe.rim_weight`
(docs/decisions/partial-labels.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from rare_trt.evaluation.cases import Case
from rare_trt.scan.field_of_view import box_at, box_grid
from rare_trt.scan.geometry import Triple
from rare_trt.training.augmentation import vary_contrast, vary_pose
from rare_trt.training.head_cases import HeadCase
from rare_trt.training.head_labels import LEFT_HIPPOCAMPUS, RIGHT_HIPPOCAMPUS
from rare_trt.training.losses import CROSS_ENTROPY_WEIGHT, DICE_WEIGHT
from rare_trt.training.recipe import Recipe
from rare_trt.training.samples import TrainingSample, own_route, simulate_sample

# The labels of a partially labelled case.
BACKGROUND, INSIDE, RIM = range(3)
CLASSES = 3

# What is kept around a box for rotations, per side in mm.
MARGIN_MM = 12.0

# Deviation of a box's centre from the structure's, in mm, and of the logarithm of its extents.
SHIFT_MM, SCATTER = 3.0, 0.08

# The share of boxes that route 0 sees as well, interpolated to its spacing.
ROUTE_0_SHARE = 0.3


def boxes_of_heads(heads: Sequence[HeadCase], size_mm: Triple) -> list[Case]:
    """Both hippocampi of each head as partially labelled cases: a part of the head that holds any
    box of about `size_mm` (canonical axes) around them. Heads without an image are left out."""
    wide = tuple(size + 2.0 * MARGIN_MM for size in size_mm)
    return [
        _cut(head, label, (wide[0], wide[1], wide[2]))
        for head in heads
        if head.image is not None
        for label in (LEFT_HIPPOCAMPUS, RIGHT_HIPPOCAMPUS)
        if (head.labels == label).any()
    ]


def _cut(head: HeadCase, label: int, size_mm: Triple) -> Case:
    assert head.image is not None
    whole = head.labels == label
    x, y, z = head.grid.world_mm(np.argwhere(whole).mean(axis=0)).tolist()
    box = box_at(head.grid, (x, y, z), size_mm)
    return Case(
        name=f"{head.name} {'left' if label == LEFT_HIPPOCAMPUS else 'right'}",
        voxels=head.image[None][(slice(None), *box)],
        labels=with_rim(whole)[box],
        grid=box_grid(head.grid, box),
    )


def with_rim(inside: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Labels [i, j, k] of a partially labelled case: `RIM` where a voxel of the structure touches
    one outside by a face, `INSIDE` in the rest of it."""
    padded = np.pad(inside, 1)
    core = inside.copy()
    for axis in range(3):
        for step in (-1, 1):
            core &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
    return np.where(core, INSIDE, np.where(inside, RIM, BACKGROUND)).astype(np.uint8)


def draw_box(case: Case, rng: Generator, size_mm: Triple) -> Case:
    """A random variant of a case of `boxes_of_heads`: pose, place and size of the box, contrast."""
    case = vary_pose(case, rng, CLASSES)
    places = np.argwhere(case.labels != BACKGROUND)
    centre = places.mean(axis=0) if len(places) else (np.array(case.labels.shape) - 1) / 2
    x, y, z = (case.grid.world_mm(centre) + rng.normal(0.0, SHIFT_MM, 3)).tolist()
    i, j, k = (np.array(size_mm) * np.exp(rng.normal(0.0, SCATTER, 3))).tolist()
    box = box_at(case.grid, (x, y, z), (i, j, k))
    return vary_contrast(
        replace(
            case,
            voxels=case.voxels[(slice(None), *box)],
            labels=case.labels[box],
            grid=box_grid(case.grid, box),
        ),
        rng,
    )


def draw_partial_samples(case: Case, rng: Generator, recipe: Recipe) -> list[TrainingSample]:
    """Samples of one step from a partially labelled case: a random acquisition for each coarser
    route, the case's own voxels for the route of their spacing, and now and then for route 0."""
    routes = recipe.network.routes
    own = own_route(case, recipe)
    samples = [simulate_sample(case, rng, route, recipe) for route in range(1, routes)]
    samples.append(_as_it_is(case, own))
    if own > 0 and rng.random() < ROUTE_0_SHARE:
        samples.append(_as_it_is(case, 0))
    return samples


def _as_it_is(case: Case, route: int) -> TrainingSample:
    whole = (slice(None), slice(None), slice(None))
    return TrainingSample(route, False, case.voxels, case.grid, case.labels, case.grid, whole)


def partial_loss(logits: Tensor, labels: Tensor, rim_weight: float) -> Tensor:
    """The segmentation loss of logits [1, classes, i, j, k] against the labels [i, j, k] of a
    partially labelled case, whose rim has the weight `rim_weight` (0 to 1)."""
    shares = torch.log_softmax(logits[0].float(), dim=0)
    background, structure = shares[0], torch.logsumexp(shares[1:], dim=0)
    weight = torch.where(labels == RIM, rim_weight, 1.0)
    truth = (labels != BACKGROUND).float()
    cross_entropy = -(weight * (truth * structure + (1.0 - truth) * background)).sum()
    found = structure.exp()
    overlap, size = (weight * truth * found).sum(), (weight * (truth + found)).sum()
    dice_loss = 1.0 - (2.0 * overlap + 1.0) / (size + 1.0)
    return CROSS_ENTROPY_WEIGHT * cross_entropy / weight.sum() + DICE_WEIGHT * dice_loss
