"""What training saw: honest scans of the same anatomy are nothing strange, everything else is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from rare_trt import Grid, Scan, Segmenter, Volume, read_scan
from rare_trt.calibration.training_distribution import measure_training_distribution
from rare_trt.cli import main
from rare_trt.errors import PackageError, ScanError
from rare_trt.evaluation.cases import Case, find_cases, load_cases
from rare_trt.evaluation.measurements import acquisitions
from rare_trt.package.manifest_json import json_from_manifest, json_with_seal, manifest_from_json
from rare_trt.package.reading import Package, open_package, route_from_entry
from rare_trt.scan.field_of_view import box_at, box_grid
from rare_trt.scan.geometry import Array, Canonical, Triple
from rare_trt.scan.intensity import IntensityRule
from rare_trt.scan.out_of_distribution import Gaussian, TrainingDistribution, range_text
from rare_trt.training.recipe import Recipe, load_recipe
from rare_trt.training.samples import simulate_sample

SIMULATED = 2


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("hippocampus")


@pytest.fixture(scope="module")
def cases(shared_data: Path) -> list[Case]:
    """Every sixth case: none of two crops of one exam."""
    return load_cases(find_cases(shared_data / "hippocampus")[::6], 1, 3, IntensityRule())


@pytest.fixture(scope="module")
def package(cases: list[Case], recipe: Recipe) -> Package:
    """The shipped package, and what the first two thirds of the cases look like."""
    shipped = open_package("hippocampus")
    manifest = shipped.manifest
    model = replace(manifest.model, seen=None)
    found = measure_training_distribution(cases[:24], model, manifest.routes, recipe)
    model = replace(manifest.model, seen=found)
    return replace(shipped, manifest=replace(manifest, model=model))


@pytest.fixture(scope="module")
def shipped() -> Iterator[Segmenter]:
    with Segmenter.load() as opened:
        yield opened


@pytest.fixture(scope="module")
def segmenter(package: Package) -> Iterator[Segmenter]:
    with Segmenter(package) as opened:
        yield opened


def scans(case: Case, seed: int, recipe: Recipe) -> Iterator[Volume]:
    """A case as it is, in every acquisition of the evaluation, and in random ones."""
    rng = np.random.default_rng(seed)
    yield Volume(np.moveaxis(case.voxels, 0, 3), case.grid)
    for acquisition in acquisitions(recipe.base_spacing_mm):
        yield acquisition.make(case, rng)[0]
    for route in range(recipe.network.routes):
        for _ in range(SIMULATED):
            sample = simulate_sample(case, rng, route, recipe)
            yield Volume(np.moveaxis(sample.voxels, 0, 3), sample.grid)


def remarks(package: Package, volume: Volume) -> list[str]:
    """What a run would say of `volume`, without the run."""
    from rare_trt.plan.routing import choose_route
    from rare_trt.scan.field_of_view import select_regions
    from rare_trt.scan.intensity import normalise
    from rare_trt.scan.out_of_distribution import out_of_distribution_flags

    manifest = package.manifest
    model = manifest.model
    assert model.seen is not None
    (region,) = select_regions(volume, model.field_of_view_mm, None)
    routes = [route_from_entry(entry) for entry in manifest.routes]
    route = choose_route(region.grid.spacing_mm, routes, model.spacing_limits_mm, None).route
    image = normalise(region.voxels, model.intensity)
    return out_of_distribution_flags(image, region.grid, route, model.intensity, model.seen)


def shares(
    package: Package, volumes: Iterator[Volume], rng: np.random.Generator
) -> dict[str, list[bool]]:
    """Whether scans, their negatives, and noise in their place are remarked on."""
    found: dict[str, list[bool]] = {"honest": [], "inverted": [], "noise": []}
    for volume in volumes:
        voxels = volume.voxels
        made = {
            "honest": voxels,
            "inverted": voxels.max() - voxels,
            "noise": rng.rayleigh(1.0, voxels.shape),
        }
        for name, values in made.items():
            try:
                found[name].append(bool(remarks(package, Volume(values, volume.grid))))
            except ScanError:
                # Refused whatever it shows: its field of view is too small or too large.
                continue
    return found


def test_held_out_scans_pass_and_their_negatives_and_noise_do_not(
    package: Package, cases: list[Case], recipe: Recipe
) -> None:
    rng = np.random.default_rng(0)
    found: dict[str, list[bool]] = {"honest": [], "inverted": [], "noise": []}
    for number, case in enumerate(cases[24:]):
        for name, values in shares(package, scans(case, 1000 + number, recipe), rng).items():
            found[name] += values
    assert len(found["honest"]) > 300
    assert np.mean(found["honest"]) <= 0.02
    assert np.mean(found["inverted"]) >= 0.95
    assert np.mean(found["noise"]) == 1.0


def test_a_box_of_a_tumour_is_remarked_on(
    segmenter: Segmenter, package: Package, shared_data: Path
) -> None:
    """FLAIR of another body part in a box of the right size: nothing else would notice."""
    path = shared_data / "tcga_fg6692_sri24" / "OtherEXampleFromTCIA_fla_bet.nii.gz"
    scan = read_scan(path)
    canonical = Canonical(scan.volume.grid)
    voxels = canonical.from_scan(scan.volume.voxels)
    brightest = np.argwhere(voxels >= np.percentile(voxels, 99.9))
    x, y, z = canonical.grid.world_mm(np.median(brightest, axis=0)).tolist()
    result = segmenter.segment(path, at=(x, y, z))
    assert any(flag.startswith("unlike the training data") for flag in result.flags)
    assert any(flag.startswith("doubtful labels") for flag in result.flags)
    assert result.report()["flags"] == result.flags
    with pytest.raises(ScanError, match="doubtful labels"):
        segmenter.segment(path, at=(x, y, z), strict=True)
    box = box_at(canonical.grid, (x, y, z), package.manifest.model.field_of_view_mm.typical)
    assert remarks(package, Volume(voxels[box], box_grid(canonical.grid, box)))


def test_an_example_is_nothing_strange(segmenter: Segmenter, examples: Path) -> None:
    for name in ("hippocampus_1mm", "hippocampus_2mm"):
        result = segmenter.segment(examples / f"{name}.nii.gz", strict=True)
        assert result.boxes[0].remarks == ()
        assert result.flags == []


def test_whole_heads_of_a_small_field_are_told_apart(
    segmenter: Segmenter, shared_data: Path
) -> None:
    """The two edge cases that the network takes by their size and spacing alone."""
    for name in ("anatomical", "reoriented_anat_moved"):
        path = shared_data / "nifti_edge" / "nibabel" / f"{name}.nii"
        assert segmenter.segment(path).boxes[0].remarks
        with pytest.raises(ScanError, match="doubtful labels"):
            segmenter.segment(path, strict=True)


def wrong_scans(scan: Scan) -> dict[str, Scan]:
    """A crop turned front to back and upside down, inverted, and replaced by noise."""
    voxels = scan.volume.voxels.astype(np.float32)
    made = {
        "front to back": voxels[:, ::-1],
        "upside down": voxels[:, :, ::-1],
        "inverted": voxels.max() - voxels,
        "noise": np.random.default_rng(0).rayleigh(1.0, voxels.shape).astype(np.float32),
    }
    return {
        name: Scan(Volume(found, scan.volume.grid), scan.header) for name, found in made.items()
    }


@pytest.mark.parametrize("kind", ["front to back", "upside down", "inverted", "noise", "resected"])
@pytest.mark.parametrize("name", ["hippocampus_1mm", "hippocampus_2mm"])
def test_labels_of_a_wrong_scan_are_doubted(
    shipped: Segmenter, examples: Path, name: str, kind: str
) -> None:
    scan = read_scan(examples / f"{name}.nii.gz")
    if kind == "resected":
        wrong = resected(scan, shipped.segment(scan).labels > 0, 2.0)
    else:
        wrong = wrong_scans(scan)[kind]
    flags = shipped.segment(wrong).label_flags
    assert flags
    with pytest.raises(ScanError) as refused:
        shipped.segment(wrong, strict=True)
    assert str(refused.value) == "; ".join(flags) + ": look at the labels, or leave --strict out"


def resected(scan: Scan, structure: NDArray[np.bool_], rim_mm: float) -> Scan:
    """A scan with the fluid's intensity in a structure and in a rim around it."""
    voxels = scan.volume.voxels.astype(np.float32)
    spacing = scan.volume.grid.spacing_mm
    taken = distance_transform_edt(~structure, sampling=spacing) <= rim_mm
    fluid = float(np.percentile(voxels[voxels > 0], 5.0))
    noise = np.random.default_rng(0).normal(0.0, 0.05 * fluid, voxels.shape)
    left = np.where(taken, fluid + noise, voxels).astype(np.float32)
    return Scan(Volume(left, scan.volume.grid), scan.header)


def test_boxes_in_heads_of_another_scanner_have_no_flag_and_wrong_boxes_do(
    shipped: Segmenter, shared_data: Path
) -> None:
    """Heads that no threshold was derived from: the right places, and air, neck, cerebellum."""
    (folder,) = sorted(shared_data.glob("ixi_t1_2mm"))
    for path in sorted(folder.glob("*_T1.nii.gz"))[:4]:
        scan = read_scan(path)
        labels = read_scan(path.with_name(path.name.replace("_T1.", "_T1_DLMUSE."))).volume
        grid = labels.grid

        def centre(
            values: tuple[int, ...], found: Array = labels.voxels, grid: Grid = grid
        ) -> Triple:
            x, y, z = grid.world_mm(np.argwhere(np.isin(found, values)).mean(axis=0)).tolist()
            return x, y, z

        for label in (47, 48):
            assert shipped.segment(scan, at=centre((label,)), strict=True).flags == []
        for label in (38, 39, 142, 143, 108, 109):
            assert shipped.segment(scan, at=centre((label,))).label_flags
        _, y, z = centre((47, 48))
        corners = Canonical(grid).grid
        air_x = float(corners.world_mm(np.array([17.0 / corners.spacing_mm[0], 0, 0]))[0])
        assert shipped.segment(scan, at=(air_x, y, z)).label_flags


@pytest.mark.parametrize("through", ["scan", "folder"])
def test_a_strict_run_writes_nothing_where_labels_are_doubted(
    examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], through: str
) -> None:
    scan = read_scan(examples / "hippocampus_2mm.nii.gz")
    wrong = wrong_scans(scan)["front to back"]
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    nib.save(nib.Nifti1Image(wrong.volume.voxels, wrong.volume.grid.affine), source / "x.nii.gz")
    given = source / "x.nii.gz" if through == "scan" else source
    target = out / "x_labels.nii.gz" if through == "scan" else out
    assert main(["infer", str(given), "-o", str(target), "--strict"]) == 1
    assert "look at the labels, or leave --strict out" in capsys.readouterr().err
    assert not list(out.glob("*"))


def test_statistics_of_labels_do_not_depend_on_gain_or_output_grid(
    shipped: Segmenter, examples: Path
) -> None:
    scan = read_scan(examples / "hippocampus_1mm.nii.gz")
    found = shipped.segment(scan).boxes[0].label_statistics
    brighter = Scan(Volume(scan.volume.voxels * 3.0 + 50.0, scan.volume.grid), scan.header)
    again = shipped.segment(brighter).boxes[0].label_statistics
    assert np.allclose(found.shape, again.shape, atol=0.01)
    assert np.allclose(found.content, again.content, atol=0.02)
    half = shipped.segment(scan, spacing_out_mm=0.5).boxes[0].label_statistics
    assert np.allclose(found.shape[:12], half.shape[:12], atol=0.1)
    assert np.allclose(found.shape[12:], half.shape[12:], atol=1.0)
    assert np.allclose(found.content, half.content, atol=0.03)


def test_a_gaussian_measures_deviations() -> None:
    """Of two statistics of correlation 0.6."""
    covariance = np.array([[4.0, 1.2], [1.2, 1.0]])
    rows = np.linalg.inv(np.linalg.cholesky(covariance))
    whitening = tuple(tuple(row[: at + 1].tolist()) for at, row in enumerate(rows))
    gaussian = Gaussian((1.0, 2.0), (2.0, 1.0), whitening, 1.0)
    away = np.array([3.0, -1.0])
    expected = np.sqrt(away @ np.linalg.solve(covariance, away) / 2)
    assert gaussian.distance((4.0, 1.0)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "limits", "digits", "words"),
    [
        (0.4812, (0.24, 0.4804), 2, "0.481 (0.240 to 0.480"),
        (0.31, (0.24, 0.29), 2, "0.31 (0.24 to 0.29"),
        (1053.7, (1054.0, 2482.0), 0, "1053.7 (1054.0 to 2482.0"),
        (900.0, (1054.0, 2482.0), 0, "900 (1054 to 2482"),
    ],
)
def test_a_value_outside_its_limits_is_written_so_that_it_shows(
    value: float, limits: tuple[float, float], digits: int, words: str
) -> None:
    assert range_text(value, limits, digits) == words


def test_a_package_that_does_not_know_cannot_be_strict(tiny_package_folder: Path) -> None:
    with (
        Segmenter.load(tiny_package_folder) as segmenter,
        pytest.raises(ScanError, match="does not describe its training distribution"),
    ):
        segmenter.segment("never read.nii", strict=True)


def test_the_block_survives_the_manifest(package: Package) -> None:
    manifest = package.manifest
    again = manifest_from_json(json_from_manifest(manifest))
    assert isinstance(again.model.seen, TrainingDistribution)
    assert again.model.seen == manifest.model.seen
    assert {entry.route for entry in again.model.seen.routes} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("patterns", [], "seen.patterns"),
        ("patterns", [[0.0] * 63], "seen.patterns"),
        ("patterns", [[0.0] * 64] * 2, "not there once per channel"),
        ("min_view_mm", [0, 1, 1], "seen.min_view_mm"),
        ("routes", [{"route": 0, "ranges": [{}]}], "seen.routes"),
        ("scans", 0, "seen.scans"),
    ],
)
def test_a_block_that_makes_no_sense_is_refused(
    package: Package, place: str, value: object, words: str
) -> None:
    values = json.loads(json_from_manifest(package.manifest))
    del values["sha256"]
    manifest_from_json(json_with_seal(values))
    values["model"]["seen"][place] = value
    with pytest.raises(PackageError, match=words):
        manifest_from_json(json_with_seal(values))
