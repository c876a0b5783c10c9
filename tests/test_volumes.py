"""Volumes are balanced at the heads, and only there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rare_trt.evaluation.cases import Case
from rare_trt.scan.geometry import Grid
from rare_trt.training.network import NetworkConfig, RareUNet
from rare_trt.training.recipe import load_recipe
from rare_trt.training.volumes import balance_volumes, volume_shift

SHAPE = (24, 28, 20)


def spheres(radius: float) -> NDArray[np.float32]:
    """Logits [background, one sphere, another]: each label up to `radius` from its centre."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"))
    centres = ((8, 9, 10), (16, 19, 10))
    away = [np.linalg.norm(grid - np.array(c)[:, None, None, None], axis=0) for c in centres]
    return np.stack([np.zeros(SHAPE), *(radius - d for d in away)]).astype(np.float32)


def labels(logits: NDArray[np.float32]) -> NDArray[np.uint8]:
    return logits.argmax(axis=0).astype(np.uint8)


@pytest.mark.parametrize("too_large", [-1.0, 0.6, 1.5])
def test_labels_too_large_or_too_small_get_the_right_volume(too_large: float) -> None:
    # Many radii: the volume of one sphere of voxels jumps.
    radii = np.linspace(4.03, 6.41, 12)
    truths = [labels(spheres(radius)) for radius in radii]
    logits = [spheres(radius + too_large) for radius in radii]
    shift = volume_shift(logits, truths)
    assert shift[0] == 0
    # The logits fall by one per voxel, so the shift is the excess of the radius.
    assert shift[1:] == pytest.approx([-too_large] * 2, abs=0.1)
    for label in (1, 2):
        moved = [labels(a + shift[:, None, None, None]) for a in logits]
        errors = [
            (found == label).sum() / (truth == label).sum() - 1
            for found, truth in zip(moved, truths, strict=True)
        ]
        assert abs(np.mean(errors)) < 0.01


def test_a_label_that_no_case_has_is_not_shifted() -> None:
    truth = np.where(labels(spheres(5.0)) == 1, 1, 0).astype(np.uint8)
    assert volume_shift([spheres(6.0)], [truth])[2] == 0


@pytest.mark.parametrize("slices", [1, 20])
def test_nothing_but_the_heads_biases_changes(slices: int) -> None:
    """One slice is no whole voxel at twice its thickness, and counts as one."""
    torch.manual_seed(0)
    recipe = load_recipe("hippocampus")
    config = NetworkConfig(depth=2, filters=4, gate_blocks=1, routes=2)
    network = RareUNet(config)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    rng = np.random.default_rng(0)
    i, j, k = SHAPE
    first = (k - slices) // 2
    case = Case(
        "one",
        rng.normal(size=(1, i, j, slices)).astype(np.float32),
        labels(spheres(5.0))[..., first : first + slices],
        Grid((i, j, slices), np.eye(4)),
    )
    assert case.labels.shape == case.grid.shape
    balance_volumes(network, [case], replace(recipe, network=config))
    changed = {n for n, t in network.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {"heads.0.bias", "heads.1.bias"}
    assert all(head.bias[0] == before[f"heads.{r}.bias"][0] for r, head in enumerate(network.heads))
    assert network.training
