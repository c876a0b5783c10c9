"""The head stage: labels and sides, random scans whose labels move with the image, resuming."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from rare_trt.cli import main
from rare_trt.errors import RareTrtError, ScanError
from rare_trt.scan.geometry import Grid
from rare_trt.training.checkpoint import load_checkpoint
from rare_trt.training.head_cases import (
    HeadCase,
    HeadSource,
    halve,
    load_heads,
    majority_of_blocks,
    split_heads,
)
from rare_trt.training.head_labels import (
    INDEX,
    exchange_labels,
    head_labels,
    load_protocol,
)
from rare_trt.training.head_losses import fade_weights, weighted_loss
from rare_trt.training.head_synthesis import Pose, draw_pose, draw_scan, draw_spacing, warp
from rare_trt.training.head_trainer import HeadRun
from rare_trt.training.head_validation import acquisitions, locate, score_head
from rare_trt.training.losses import one_hot
from rare_trt.training.network import NetworkConfig
from rare_trt.training.recipe import Recipe, load_recipe, recipe_from_json

PAIRS = ((2, 3),)
SHAPE = (40, 44, 36)


def _numbers(left: int, right: int, brain: int, fluid: int) -> NDArray[np.int16]:
    """A ball of brain in fluid, RAS: left hippocampus at lower i, both behind the middle."""
    i, j, k = np.indices(SHAPE) - np.array([20, 22, 18])[:, None, None, None]
    radius = np.sqrt(i**2 + j**2 + k**2)
    numbers = np.where(radius < 15, fluid, 0)
    numbers[radius < 12] = brain
    inside = (np.abs(j + 3) < 5) & (np.abs(k + 2) < 3)
    numbers[inside & (np.abs(i + 7) < 3)] = left
    numbers[inside & (np.abs(i - 7) < 3)] = right
    return numbers.astype(np.int16)


@pytest.fixture
def head() -> HeadCase:
    numbers = _numbers(48, 47, 100, 1)
    protocol = load_protocol("dlmuse")
    tissues = protocol.tissue_of(numbers)
    labels = head_labels(numbers, tissues, protocol, (2.0, 2.0, 2.0))
    noise = np.random.default_rng(0).normal(0.0, 0.02, SHAPE)
    image = (tissues / 20 + 0.3 * (labels > 1) + noise).astype(np.float32)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (-40.0, -44.0, -36.0)
    return HeadCase("ball", image, labels, tissues, Grid(SHAPE, affine))


@pytest.fixture
def recipe() -> Recipe:
    """Three routes that train in a second."""
    network = NetworkConfig(depth=3, filters=2, gate_blocks=1, classes=4, routes=3)
    return replace(load_recipe("head"), network=network, cycles=(2,), averaging=0.5)


def _center_x(labels: NDArray[np.uint8], label: int, grid: Grid) -> float:
    return float(grid.world_mm(np.argwhere(labels == label).mean(axis=0))[0])


@pytest.mark.parametrize(
    ("protocol", "numbers"),
    [("dlmuse", (48, 47, 100, 1)), ("freesurfer_head", (17, 53, 3, 24))],
)
def test_both_protocols_give_the_same_labels(protocol: str, numbers: tuple[int, ...]) -> None:
    rules = load_protocol(protocol)
    left, right, brain, fluid = numbers
    source = _numbers(left, right, brain, fluid)
    # Fluid far from any brain is a stray.
    source[0, 0, 0] = fluid
    tissues = rules.tissue_of(source)
    labels = head_labels(source, tissues, rules, (2.0, 2.0, 2.0))
    assert ((labels == 2) == (source == left)).all()
    assert ((labels == 3) == (source == right)).all()
    assert labels[0, 0, 0] == 0
    source[0, 0, 0] = 0
    assert ((labels > 0) == (source > 0)).all()
    assert set(np.unique(tissues[labels > 1])) == {INDEX["hippocampus"]}


def test_unknown_numbers_are_refused() -> None:
    with pytest.raises(RareTrtError, match="999"):
        load_protocol("dlmuse").tissue_of(np.array([[[0, 999]]]))
    with pytest.raises(RareTrtError, match="not a labelling protocol"):
        load_protocol("no such protocol")


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PSR", "IAL"])
def test_left_is_left_in_the_world_in_every_order_of_the_axes(tmp_path: Path, axes: str) -> None:
    numbers = _numbers(17, 53, 3, 24)
    image = nib.Nifti1Image(numbers, np.diag([1.0, 1.0, 1.0, 1.0]))
    to = nib.orientations.axcodes2ornt(tuple(axes))
    image = image.as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(image.affine), to)
    )
    nib.save(image, tmp_path / "map.nii.gz")
    source = HeadSource.from_text(f"{tmp_path}=freesurfer_head")
    (head,) = load_heads([source], 2.0)
    assert head.image is None
    assert head.labels.shape == (20, 22, 18)
    np.testing.assert_allclose(head.grid.spacing_mm, 2.0)
    left, right = (_center_x(head.labels, label, head.grid) for label in (2, 3))
    # The ball's middle lies at x = 20 mm.
    assert left < 20.0 - 5.0
    assert right > 20.0 + 5.0


def test_images_come_with_their_maps(tmp_path: Path, head: HeadCase) -> None:
    numbers = _numbers(48, 47, 100, 1)
    for name in ("a", "b"):
        nib.save(nib.Nifti1Image(numbers, head.grid.affine), tmp_path / f"{name}_DLMUSE.nii.gz")
        nib.save(nib.Nifti1Image(head.image, head.grid.affine), tmp_path / f"{name}.nii.gz")
    heads = load_heads([HeadSource(tmp_path, "dlmuse")], 2.0, only=["b"])
    assert [one.name for one in heads] == ["b"]
    assert heads[0].image is not None
    assert (heads[0].labels == head.labels).all()
    with pytest.raises(ScanError, match="whole part"):
        load_heads([HeadSource(tmp_path, "dlmuse")], 3.0)


def test_a_halved_head_lies_in_the_same_place(head: HeadCase) -> None:
    half = halve(head)
    assert half.labels.shape == tuple(n // 2 for n in SHAPE)
    assert half.image is not None
    assert head.image is not None
    np.testing.assert_allclose(half.image.mean(), head.image.mean(), rtol=1e-4)
    np.testing.assert_allclose(half.grid.extent_mm, head.grid.extent_mm)
    for label in (1, 2, 3):
        centers = [
            one.grid.world_mm(np.argwhere(one.labels == label).mean(axis=0)) for one in (head, half)
        ]
        np.testing.assert_allclose(*centers, atol=2.0)


def test_majority_of_blocks() -> None:
    blocks = np.zeros((2, 2, 4), np.uint8)
    blocks[..., 2:] = [[[1, 1], [7, 7]], [[7, 7], [2, 1]]]
    assert majority_of_blocks(blocks, 2).tolist() == [[[0, 7]]]


def test_the_split_is_fixed_and_parts_are_disjoint() -> None:
    names = [f"head {n:03d}" for n in range(100)]
    training, validation, test = split_heads(names, (15, 15), 0)
    assert (len(training), len(validation), len(test)) == (70, 15, 15)
    assert sorted(training + validation + test) == names
    assert split_heads(names[::-1], (15, 15), 0) == (training, validation, test)


def _pose(matrix: NDArray[np.float64]) -> Pose:
    centre = (np.array(SHAPE) - 1) / 2
    return Pose(matrix, -centre, centre, SHAPE, np.zeros((3, 2, 2, 2), np.float32))


def test_a_mirrored_head_exchanges_the_two_sides(head: HeadCase) -> None:
    pose = _pose(np.diag([-1.0, 1.0, 1.0]))
    image, labels, tissues = warp(head, pose, PAIRS)
    assert pose.mirrored
    assert image is not None
    assert head.image is not None
    assert (labels == exchange_labels(head.labels[::-1], PAIRS)).all()
    assert (tissues == head.tissues[::-1]).all()
    np.testing.assert_allclose(image, head.image[::-1], atol=1e-5)
    # What lies left is labelled left.
    left, right = (np.argwhere(labels == label)[:, 0].mean() for label in (2, 3))
    assert left < right


def test_the_pose_of_a_head_that_does_not_move_is_the_identity(head: HeadCase) -> None:
    image, labels, tissues = warp(head, _pose(np.eye(3)), PAIRS)
    assert image is not None
    np.testing.assert_allclose(image, head.image, atol=1e-5)
    assert (labels == head.labels).all()
    assert (tissues == head.tissues).all()


@pytest.mark.parametrize("seed", range(8))
def test_labels_move_with_the_image(head: HeadCase, seed: int) -> None:
    """In the warped head the image still shows what the labels say, and left stays left."""
    indicator = replace(head, image=(head.labels > 1).astype(np.float32))
    pose = draw_pose(head, np.random.default_rng(seed))
    image, labels, tissues = warp(indicator, pose, PAIRS)
    assert image is not None
    assert labels.shape == pose.shape
    assert ((labels > 1) == (tissues == INDEX["hippocampus"])).all()
    different = (image > 0.5) != (labels > 1)
    assert different.sum() <= 0.15 * (labels > 1).sum() + 5


@pytest.mark.parametrize("synthetic", [False, True])
def test_scans_are_a_function_of_the_seed(head: HeadCase, synthetic: bool) -> None:
    def drawn(seed: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        rng = np.random.default_rng(seed)
        spacing = draw_spacing(rng, 2.0, 8.0)
        scan = draw_scan(head, rng, synthetic=synthetic, spacing_mm=spacing, pairs=PAIRS)
        assert scan.voxels.shape[1:] == scan.grid.shape
        assert scan.labels.shape == scan.truth_grid.shape
        np.testing.assert_allclose(scan.grid.spacing_mm, spacing)
        # The truth lies inside the field of view.
        ends = np.array([[0, 0, 0], scan.labels.shape]) - 0.5
        inside = scan.grid.index(scan.truth_grid.world_mm(ends))
        assert (inside[0] >= -0.5 - 1e-6).all()
        assert (inside[1] <= np.array(scan.grid.shape) - 0.5 + 1e-6).all()
        assert np.isfinite(scan.voxels).all()
        return scan.voxels, scan.labels

    first, again, other = drawn(3), drawn(3), drawn(4)
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert first[0].shape != other[0].shape or not np.array_equal(first[0], other[0])


def test_the_loss_weighs_classes_and_knows_the_truth() -> None:
    labels = torch.zeros(1, 6, 6, 6, dtype=torch.int64)
    labels[0, 2:4, 2:4, 2] = 2
    labels[0, 2:4, 2:4, 4] = 3
    labels[0, 0] = 1
    truth = one_hot(labels, 4)
    weights = (1.0, 1.0, 100.0, 100.0)
    best = float(weighted_loss(20.0 * truth, truth, weights))
    missed = truth.clone()
    missed[:, 2:] = 0.0
    assert best < 1e-3
    plain = float(weighted_loss(4.0 * missed, truth, (1.0,) * 4))
    assert float(weighted_loss(4.0 * missed, truth, weights)) > plain
    for cycle, progress in ((0, 0.0), (0, 1.0), (1, 0.0)):
        assert fade_weights(weights, 4, cycle, progress) == list(weights)
    assert fade_weights(weights, 4, 1, 1.0) == [1.0] * 4
    assert fade_weights(weights, 4, 2, 0.0) == [1.0, 1.0, 10.0, 10.0]
    assert fade_weights((), 4, 0, 0.3) == [1.0] * 4


def test_recipes_with_wrong_pairs_or_weights_are_refused(recipe: Recipe) -> None:
    assert recipe_from_json(recipe.as_json()) == recipe
    for change in ({"mirror_pairs": [[2, 2]]}, {"mirror_pairs": [[0, 3]]}, {"class_weights": [1]}):
        with pytest.raises(RareTrtError, match=next(iter(change))):
            recipe_from_json(recipe.as_json() | change)


def test_a_training_of_two_heads_resumes_bitwise(
    tmp_path: Path, head: HeadCase, recipe: Recipe
) -> None:
    alone = replace(head, name="map", image=None)
    heads = [head, alone]
    HeadRun(recipe, heads, ["held out"], tmp_path / "whole").finish()
    first = HeadRun(replace(recipe, cycles=(2,)), heads, ["held out"], tmp_path / "parts")
    first.log.append(first._epoch(0))
    first._save()
    HeadRun(recipe, heads, ["held out"], tmp_path / "parts").finish()
    whole, parts = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert (tmp_path / "whole/log.csv").read_text() == (tmp_path / "parts/log.csv").read_text()
    assert load_checkpoint(tmp_path / "parts").facts.validation == ("held out",)
    # A cycle may follow, but none that has begun may change.
    assert HeadRun(replace(recipe, cycles=(2, 3)), heads, [], tmp_path / "whole").done == 2
    with pytest.raises(RareTrtError, match="another recipe"):
        HeadRun(replace(recipe, cycles=(3,)), heads, [], tmp_path / "parts")
    with pytest.raises(RareTrtError, match="other heads"):
        HeadRun(recipe, heads[:1], [], tmp_path / "parts")
    # Without the state of the optimiser the weights of a finished cycle go on with the next one.
    (tmp_path / "parts/state.safetensors").unlink()
    longer = HeadRun(replace(recipe, cycles=(2, 3)), heads, [], tmp_path / "parts")
    assert longer.done == 2
    assert all(torch.equal(whole[n], t) for n, t in longer.network.state_dict().items())
    with pytest.raises(RareTrtError, match="at the end of a cycle"):
        HeadRun(replace(recipe, cycles=(3,)), heads, [], tmp_path / "parts")


def test_validation_scans_keep_labels_in_place(head: HeadCase) -> None:
    """The truth as a prediction scores perfectly; mirrored, it is exchanged."""
    for name, acquire in acquisitions().items():
        scan = acquire(head)
        score = score_head(scan.labels, scan)
        assert score.found, name
        assert min(score.dice) == 1.0, name
        ends = scan.grid.index(scan.truth_grid.world_mm(np.array(scan.labels.shape) - 0.5))
        assert (ends <= np.array(scan.grid.shape) - 0.5 + 1e-6).all(), name
    scan = acquisitions()["2 mm"](head)
    exchanged = score_head(exchange_labels(scan.labels, PAIRS), scan)
    assert exchanged.exchanged
    assert not exchanged.found
    missed = score_head(np.zeros_like(scan.labels), scan)
    assert missed.error_mm == (float("inf"), float("inf"))
    left = locate(scan.labels, 2, head.grid)
    assert left is not None
    assert left[0] < 0.0


def test_the_command_trains_the_head_stage_where_no_crops_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    for number in range(32):
        image = nib.Nifti1Image(_numbers(17, 53, 3, 24), affine)
        nib.save(image, tmp_path / f"map_{number:02d}.nii.gz")
    network = NetworkConfig(depth=3, filters=2, gate_blocks=1, classes=4, routes=3)
    small = replace(load_recipe("head"), network=network, cycles=(1,)).as_json()
    (tmp_path / "recipe.json").write_text(json.dumps(small))
    command = ["train", "--out", str(tmp_path / "out"), "--recipe", str(tmp_path / "recipe.json")]
    assert main(command) == 1
    assert "no data are named" in capsys.readouterr().err
    assert main([*command, "--heads", f"{tmp_path}=freesurfer_head"]) == 0
    facts = load_checkpoint(tmp_path / "out").facts
    assert (facts.epochs, facts.cases, len(facts.validation)) == (1, 32, 30)
    crops = ["train", "--out", str(tmp_path / "x"), "--recipe", "hippocampus"]
    assert main([*crops, "--heads", f"{tmp_path}=freesurfer_head"]) == 1
    assert "expected the 4 of the head stage" in capsys.readouterr().err
