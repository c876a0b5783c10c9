"""Training on heads whose label maps name the whole structure alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from rare_trt.scan.geometry import Grid
from rare_trt.training.head_cases import HeadCase
from rare_trt.training.network import NetworkConfig
from rare_trt.training.partial_labels import (
    INSIDE,
    RIM,
    boxes_of_heads,
    draw_box,
    draw_partial_samples,
    partial_loss,
    with_rim,
)
from rare_trt.training.recipe import Recipe, load_recipe
from rare_trt.training.trainer import train

BOX_MM = (28.0, 36.0, 28.0)


@pytest.fixture
def head() -> HeadCase:
    """Two bars of 40 x 12 x 8 mm, 56 mm apart, at 2 mm; bright in the image."""
    labels = np.zeros((60, 50, 40), np.uint8)
    labels[13:19, 15:35, 18:22] = 2
    labels[41:47, 15:35, 18:22] = 3
    image = (labels > 0) * 0.8 + np.random.default_rng(0).uniform(0.0, 0.1, labels.shape)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    return HeadCase("bars", image.astype(np.float32), labels, labels, Grid((60, 50, 40), affine))


@pytest.fixture
def recipe() -> Recipe:
    network = NetworkConfig(depth=2, filters=4, gate_blocks=1, routes=2)
    return replace(
        load_recipe("hippocampus"), network=network, cycles=(2,), cases_per_subject=1, batch=2
    )


def test_the_rim_is_one_voxel_thick() -> None:
    inside = np.zeros((7, 7, 7), bool)
    inside[1:6, 1:6, 1:6] = True
    labels = with_rim(inside)
    assert (labels == INSIDE).sum() == 27
    assert (labels == RIM).sum() == 125 - 27
    # What the edge of the scan cuts ends there, as far as anybody can know.
    assert (with_rim(np.ones((3, 3, 3), bool)) == INSIDE).sum() == 1


def test_each_side_becomes_a_box_that_shows_it_alone(head: HeadCase) -> None:
    left, right = boxes_of_heads([head, replace(head, image=None)], BOX_MM)
    assert (left.name, right.name) == ("bars left", "bars right")
    for case, label in ((left, 2), (right, 3)):
        assert (case.labels > 0).sum() == (head.labels == label).sum()
        where = np.argwhere(case.labels > 0).mean(axis=0)
        there = np.argwhere(head.labels == label).mean(axis=0)
        assert np.allclose(case.grid.world_mm(where), head.grid.world_mm(there))


def test_image_and_labels_of_a_random_box_stay_together(head: HeadCase, recipe: Recipe) -> None:
    (case, _) = boxes_of_heads([head], BOX_MM)
    shapes = set()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        box = draw_box(case, rng, BOX_MM)
        shapes.add(box.labels.shape)
        inside, outside = box.voxels[0][box.labels == INSIDE], box.voxels[0][box.labels == 0]
        assert inside.min() > np.percentile(outside, 80)
        samples = draw_partial_samples(box, rng, recipe)
        # The route of the head's own spacing is always among them.
        assert 1 in [sample.route for sample in samples]
        for sample in samples:
            assert sample.labels.shape == sample.truth_grid.shape
            assert sample.voxels.shape[1:] == sample.grid.shape
    assert len(shapes) > 1


def test_the_parts_of_a_structure_count_as_one() -> None:
    labels = torch.from_numpy(with_rim(np.pad(np.ones((4, 4, 4), bool), 2)))
    logits = torch.full((1, 3, 8, 8, 8), -20.0)
    logits[0, 0][labels == 0] = 20.0
    logits[0, 1][labels > 0] = 20.0
    right = partial_loss(logits, labels, 0.3)
    assert float(right) < 1e-3
    assert torch.allclose(partial_loss(logits[:, [0, 2, 1]], labels, 0.3), right)
    without_rim = logits.clone()
    without_rim[0, 1][labels == RIM] = -20.0
    without_rim[0, 0][labels == RIM] = 20.0
    without_core = logits.clone()
    without_core[0, 1][labels == INSIDE] = -20.0
    without_core[0, 0][labels == INSIDE] = 20.0
    assert float(partial_loss(without_rim, labels, 0.0)) < 1e-3
    assert float(partial_loss(without_core, labels, 0.0)) > 0.5
    losses = [float(partial_loss(without_rim, labels, weight)) for weight in (0.1, 0.3, 1.0)]
    assert losses == sorted(losses)
    assert losses[0] > 0.1


def test_a_network_learns_from_heads_beside_cases(
    head: HeadCase, recipe: Recipe, tmp_path: Path, examples: Path
) -> None:
    for part, source in (("images", "hippocampus_1mm.nii.gz"), ("labels", "truth/1mm.nii.gz")):
        (tmp_path / "data" / part).mkdir(parents=True)
        image = nib.Nifti1Image.from_filename(examples / source)
        for number in (1, 2):
            nib.save(image.slicer[number:], tmp_path / "data" / part / f"case_{number}.nii.gz")
    plain = train([tmp_path / "data"], tmp_path / "plain", recipe)
    both = train([tmp_path / "data"], tmp_path / "both", recipe, [head])
    # The facts are those of the fully labelled cases.
    assert both.facts == replace(plain.facts, dice=both.facts.dice)
    weights = [run.network.state_dict()["encoder.1.0.weight"] for run in (plain, both)]
    assert not torch.equal(*weights)
    # The checkpoint goes on with or without them: only cycles that were added differ.
    longer = replace(recipe, cycles=(2, 1), data_source="also heads", rim_weight=1.0)
    (tmp_path / "both" / "state.safetensors").unlink()
    assert train([tmp_path / "data"], tmp_path / "both", longer, [head]).facts.epochs == 3
