"""Training on volumes of different spacing that are too large to be seen whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from rare_trt.errors import RareTrtError, ScanError
from rare_trt.evaluation.cases import Case, find_cases_in
from rare_trt.scan.geometry import Grid
from rare_trt.training.network import NetworkConfig, RareUNet
from rare_trt.training.recipe import Recipe, load_recipe
from rare_trt.training.samples import draw_part, draw_samples, own_route
from rare_trt.training.trainer import train
from rare_trt.training.validation import validate
from rare_trt.training.volumes import balance_volumes


@pytest.fixture
def recipe() -> Recipe:
    network = NetworkConfig(depth=3, filters=2, gate_blocks=1, classes=2, routes=3)
    return replace(load_recipe("glioma"), network=network, patch_voxels=32, cycles=(1,))


def case(spacing_mm: float, shape: tuple[int, int, int] = (70, 60, 40)) -> Case:
    """Noise with one bright labelled ball near a corner."""
    where = np.indices(shape) - np.array([16, 16, 16])[:, None, None, None]
    labels = ((where**2).sum(axis=0) < 8**2).astype(np.uint8)
    noise = np.random.default_rng(0).uniform(0.5, 1.0, shape)
    voxels = (noise + 4.0 * labels).astype(np.float32)[None]
    return Case("ball", voxels, labels, Grid(shape, np.diag([spacing_mm] * 3 + [1.0])))


def test_a_case_serves_the_routes_from_its_own_spacing_on(recipe: Recipe) -> None:
    assert [own_route(case(mm), recipe) for mm in (0.8, 1.0, 1.3, 2.0, 4.0, 16.0)] == [
        0,
        0,
        0,
        1,
        2,
        2,
    ]
    rng = np.random.default_rng(0)
    for mm, routes in ((1.0, {0, 1, 2}), (2.0, {1, 2}), (4.0, {2})):
        samples = draw_samples(case(mm, (40, 40, 40)), rng, recipe)
        assert {sample.route for sample in samples} == routes
        # Samples that share a field of view show it at their route's spacing.
        for sample in samples:
            if sample.aligned:
                assert sample.grid.spacing_mm == (2.0**sample.route,) * 3
                assert np.allclose(sample.grid.extent_mm, sample.truth_grid.extent_mm)


def test_every_route_sees_as_many_of_its_own_voxels_and_no_more(recipe: Recipe) -> None:
    large = case(1.0)
    parts = [draw_part(large, np.random.default_rng(0), route, recipe) for route in range(3)]
    assert [part.labels.shape for part in parts] == [(32, 32, 32), (64, 60, 40), (70, 60, 40)]
    for part in parts:
        first = np.round(large.grid.index(part.grid.affine[:3, 3])).astype(int)
        box = tuple(slice(a, a + n) for a, n in zip(first, part.labels.shape, strict=True))
        assert (part.voxels[0] == large.voxels[0][box]).all()
        assert (part.labels == large.labels[box]).all()
    assert (
        draw_part(large, np.random.default_rng(0), 0, replace(recipe, patch_voxels=None)) is large
    )


def test_parts_show_the_label_more_often_than_chance_and_its_absence_too(recipe: Recipe) -> None:
    large = case(1.0, (120, 120, 120))
    rng = np.random.default_rng(0)
    shown = [bool(draw_part(large, rng, 0, recipe).labels.any()) for _ in range(200)]
    # Drawn anywhere, a part shows the ball in about 5 % of the cases.
    assert 0.55 < np.mean(shown) < 0.85


def test_coarse_cases_are_validated_and_balanced_on_their_own_routes_alone(recipe: Recipe) -> None:
    torch.manual_seed(0)
    network = RareUNet(recipe.network)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    cases = [case(1.0, (32, 32, 32)), case(2.0, (32, 34, 36))]
    scores = validate(network, cases, recipe)
    assert np.isnan(scores[1, 0]).all()
    assert np.isfinite(scores[0]).all() and np.isfinite(scores[1, 1:]).all()
    biases = []
    for balanced in (cases, cases[:1]):
        network.load_state_dict(state)
        balance_volumes(network, balanced, recipe)
        biases.append([network.get_parameter(f"heads.{r}.bias").clone() for r in (0, 1)])
    # The coarse case counts on route 1 and not on route 0.
    assert torch.equal(biases[0][0], biases[1][0])
    assert not torch.equal(biases[0][1], biases[1][1])


def test_folders_of_different_spacing_train_one_network(recipe: Recipe, tmp_path: Path) -> None:
    for name, mm, count in (("fine", 1.0, 3), ("coarse", 2.0, 3)):
        for part in ("images", "labels"):
            (tmp_path / name / part).mkdir(parents=True)
        one = case(mm, (34, 33, 32))
        for number in range(count):
            for part, voxels in (("images", one.voxels[0]), ("labels", one.labels)):
                path = tmp_path / name / part / f"{name}_{number:03d}.nii.gz"
                nib.save(nib.Nifti1Image(voxels, one.grid.affine), path)
    small = replace(recipe, validation_share=0.34, batch=1, seed=1)
    folders = [tmp_path / "fine", tmp_path / "coarse"]
    facts = train(folders, tmp_path / "out", small).facts
    assert facts.cases == 6
    assert np.isfinite(facts.dice).all()
    with pytest.raises(RareTrtError, match="route 0 has no case"):
        train(folders[1:], tmp_path / "other", small)


def test_equal_names_in_two_folders_are_two_cases(tmp_path: Path) -> None:
    for name in ("one", "other"):
        for part in ("images", "labels"):
            (tmp_path / name / part).mkdir(parents=True)
            (tmp_path / name / part / "case_001.nii.gz").touch()
    found = find_cases_in([tmp_path / "one", tmp_path / "other"])
    assert [case.name for case in found] == ["one/case_001", "other/case_001"]
    with pytest.raises(ScanError, match="are of one case"):
        find_cases_in([tmp_path / "one", tmp_path / "one"])
