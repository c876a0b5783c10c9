"""From a scan to labels: geometry, routes, tiles, boxes, on real scans and the shipped package."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.eulerangles import euler2mat
from nibabel.orientations import apply_orientation, inv_ornt_aff
from numpy.typing import NDArray

from rare_trt import Grid, Scan, Segmenter, Volume, read_scan
from rare_trt.backends import GRAPH_PRECISION
from rare_trt.errors import ScanError
from rare_trt.package.manifest import Manifest
from rare_trt.package.reading import Package
from rare_trt.package.writing import write_package
from rare_trt.plan.memory import bytes_of
from rare_trt.plan.resampling import axis_matrices
from rare_trt.scan.intensity import IntensityRule
from rare_trt.scan.out_of_distribution import label_statistics
from rare_trt.segmenter import isotropic_grid


def dice(a: NDArray[Any], b: NDArray[Any], label: int) -> float:
    both = ((a == label) & (b == label)).sum()
    return 2.0 * float(both) / float((a == label).sum() + (b == label).sum())


def reframed(scan: Scan, voxels: NDArray[np.float32], affine: NDArray[np.float64]) -> Scan:
    """`scan` with other voxels on another grid."""
    i, j, k = voxels.shape
    header = scan.header.copy()
    header.set_data_shape(voxels.shape)
    header.set_sform(affine, 1)
    return Scan(Volume(voxels, Grid((i, j, k), affine)), header)


def averaged(scan: Scan, factors: tuple[int, int, int]) -> Scan:
    """`scan` as a scanner with voxels `factors` times as large would have made it."""
    volume = scan.volume
    shape = [n // f for n, f in zip(volume.grid.shape, factors, strict=True)]
    kept = tuple(slice(0, n * f) for n, f in zip(shape, factors, strict=True))
    blocks = volume.voxels[kept].reshape(
        [size for pair in zip(shape, factors, strict=True) for size in pair]
    )
    affine = volume.grid.affine.copy()
    affine[:3, :3] *= factors
    affine[:3, 3] = volume.grid.world_mm((np.array(factors) - 1) / 2)
    return reframed(scan, blocks.mean(axis=(1, 3, 5), dtype=np.float64).astype(np.float32), affine)


def resliced(scan: Scan, spacing_mm: float) -> Scan:
    """`scan` interpolated linearly to an isotropic spacing."""
    grid = isotropic_grid(scan.volume.grid, spacing_mm, (0.5, 10.0))
    i, j, k = axis_matrices(scan.volume.grid, grid)
    voxels = np.einsum("ai,bj,ck,ijk->abc", i, j, k, scan.volume.voxels, optimize=True)
    return reframed(scan, voxels.astype(np.float32), grid.affine.copy())


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter.load("hippocampus")


@pytest.fixture(scope="module")
def scan(examples: Path) -> Scan:
    return read_scan(examples / "hippocampus_1mm.nii.gz")


@pytest.mark.parametrize(("name", "route", "least"), [("1mm", 0, 0.85), ("2mm", 1, 0.82)])
def test_the_examples_are_segmented_well(
    segmenter: Segmenter, examples: Path, name: str, route: int, least: float
) -> None:
    result = segmenter.segment(examples / f"hippocampus_{name}.nii.gz", spacing_out_mm=1.0)
    truth = read_scan(examples / "truth" / f"{name}.nii.gz").volume
    assert result.route.route == route
    np.testing.assert_allclose(result.grid.affine, truth.grid.affine, atol=1e-5)
    for label in (1, 2):
        assert dice(result.labels, truth.voxels, label) > least
    assert result.flags == []


def test_unseen_scans_are_segmented_well_at_every_resolution(
    segmenter: Segmenter, shared_data: Path
) -> None:
    """Mean over the held-out cases; the figures of the package are in its manifest."""
    names = segmenter.package.manifest.model.training.validation_cases[::3]
    for route, least in enumerate((0.85, 0.83, 0.78, 0.6)):
        scores = []
        for name in names:
            full = read_scan(shared_data / f"hippocampus/images/{name}.nii.gz")
            truth = read_scan(shared_data / f"hippocampus/labels/{name}.nii.gz").volume.voxels
            factor = 2**route
            result = segmenter.segment(averaged(full, (factor,) * 3), spacing_out_mm=1.0)
            assert result.route.route == route
            i, j, k = result.labels.shape
            scores += [dice(result.labels, truth[:i, :j, :k], label) for label in (1, 2)]
        assert np.mean(scores) > least


def test_one_scan_in_48_axis_orders_gives_48_equal_results(
    segmenter: Segmenter, scan: Scan
) -> None:
    volume = averaged(scan, (2, 2, 2)).volume
    reference = segmenter.segment(averaged(scan, (2, 2, 2)))
    for order, flips in product(permutations(range(3)), product((1, -1), repeat=3)):
        ornt = np.array(list(zip(order, flips, strict=True)))
        voxels = apply_orientation(volume.voxels, ornt)
        affine = volume.grid.affine @ inv_ornt_aff(ornt, volume.grid.shape)
        result = segmenter.segment(reframed(scan, voxels, affine))
        assert np.array_equal(result.labels, apply_orientation(reference.labels, ornt))
        assert result.volumes_mm3 == reference.volumes_mm3
        assert np.array_equal(result.grid.affine, affine)


@pytest.mark.parametrize("at", [None, (18.0, 25.0, 17.0)])
def test_labels_on_another_grid_lie_in_their_place_in_every_axis_order(
    segmenter: Segmenter, scan: Scan, at: tuple[float, float, float] | None
) -> None:
    """Each in the scan's own order of axes, and every label where the first order has it."""
    low = averaged(scan, (2, 2, 2))
    volume = low.volume

    def placed(one: Scan) -> tuple[NDArray[np.int64], list[int]]:
        result = segmenter.segment(one, at=at, spacing_out_mm=1.0)
        index = np.argwhere(result.labels)
        # In units of half a voxel, since centres fall between two.
        world = (2 * result.grid.world_mm(index)).round().astype(int)
        order = np.lexsort(world.T)
        return world[order], result.labels[result.labels > 0][order].tolist()

    world, labels = placed(low)
    assert len(labels) > 1000
    for order, flips in product(permutations(range(3)), product((1, -1), repeat=3)):
        ornt = np.array(list(zip(order, flips, strict=True)))
        affine = volume.grid.affine @ inv_ornt_aff(ornt, volume.grid.shape)
        found = placed(reframed(scan, apply_orientation(volume.voxels, ornt), affine))
        assert np.array_equal(found[0], world)
        assert found[1] == labels


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("end", [0, -1])
def test_every_face_is_an_edge(axis: int, end: int) -> None:
    """But a voxel of a large label's tip on it is none."""
    grid = Grid((15, 16, 17), np.diag([1.0, 2.0, 3.0, 1.0]))
    image = np.random.default_rng(0).normal(size=(1, *grid.shape)).astype(np.float32)

    def touch(labels: NDArray[np.uint8]) -> bool:
        return label_statistics(image, grid, labels, grid, 2, IntensityRule()).touch_edge

    labels = np.zeros(grid.shape, np.uint8)
    assert not touch(labels)
    place = [7, 8, 8]
    labels[tuple(place)] = 1
    assert not touch(labels)
    place[axis] = end
    labels[tuple(place)] = 1
    assert touch(labels)
    labels[1:-1, 1:-1, 1:-1] = 1
    assert not touch(labels)


def test_a_report_says_all_of_its_run(segmenter: Segmenter, scan: Scan) -> None:
    turn = np.eye(4)
    turn[:3, :3] = euler2mat(0.0, 0.0, np.radians(10.0))
    thick = averaged(scan, (1, 1, 4)).volume
    tilted = reframed(scan, thick.voxels, turn @ thick.grid.affine)
    x, y, z = tilted.volume.grid.world_mm((np.array(thick.grid.shape) - 1) / 2).round(1).tolist()
    result = segmenter.segment(tilted, at=(x, y, z), spacing_out_mm=1.0)
    report = result.report()
    manifest = segmenter.package.manifest
    graph = segmenter.package.graph(1, GRAPH_PRECISION[result.precision])
    assert report["package"] == {
        "name": "hippocampus",
        "manifest_sha256": segmenter.package.manifest_sha256,
        "graph_sha256": manifest.files[graph.file].sha256,
        "weights_sha256": manifest.files[graph.weights].sha256,
    }
    assert report["scan"]["shape"] == thick.grid.shape
    assert report["scan"]["spacing_mm"] == pytest.approx((1.0, 1.0, 4.0))
    assert report["scan"]["obliqueness_deg"] == pytest.approx(10.0, abs=1e-3)
    assert report["at_mm"] == (x, y, z)
    assert report["labels"]["shape"] == result.labels.shape
    assert report["labels"]["spacing_mm"] == pytest.approx((1.0, 1.0, 1.0))
    assert report["route"]["route"] == 1
    assert report["route"]["spacing_mm"] == pytest.approx((1.0, 1.0, 4.0))
    assert report["route"]["working_spacing_mm"] == pytest.approx((2.0, 2.0, 2.0))
    assert report["route"]["factors"] == pytest.approx((2.0, 2.0, 0.5))
    assert report["largest_resampling_factor"] == pytest.approx(2.0)
    assert list(report["volumes_mm3"]) == list(manifest.model.labels[1:])
    assert report["flags"] == result.flags


def test_all_48_orders_of_one_head_give_one_answer(segmenter: Segmenter, shared_data: Path) -> None:
    """The files hold one anatomy; a box around one point of it must be one answer."""
    answers = set()
    for path in sorted((shared_data / "nifti_space48").glob("*.nii.gz"))[::6]:
        head = read_scan(path)
        centre = head.volume.grid.world_mm((np.array(head.volume.grid.shape) - 1) / 2).round(3)
        x, y, z = centre.tolist()
        answers.add(tuple(segmenter.segment(head, at=(x, y, z)).volumes_mm3.items()))
    assert len(answers) == 1


def test_a_header_only_rotation_changes_nothing(segmenter: Segmenter, scan: Scan) -> None:
    turn = np.eye(4)
    turn[:3, :3] = euler2mat(0.3, 0.2, 0.25)
    turned = reframed(scan, scan.volume.voxels, turn @ scan.volume.grid.affine)
    straight, oblique = segmenter.segment(scan), segmenter.segment(turned)
    assert turned.volume.grid.obliqueness_deg > 15
    assert np.array_equal(straight.labels, oblique.labels)


@pytest.mark.parametrize(
    ("factors", "route"),
    [((1, 1, 1), 0), ((2, 2, 2), 1), ((4, 4, 4), 2), ((8, 8, 8), 3), ((1, 1, 4), None)],
)
def test_labels_lie_on_the_scans_own_grid(
    segmenter: Segmenter, scan: Scan, factors: tuple[int, int, int], route: int | None
) -> None:
    low = averaged(scan, factors)
    result = segmenter.segment(low)
    assert result.labels.dtype == np.uint8
    assert result.labels.shape == low.volume.grid.shape
    assert result.grid is low.volume.grid
    if route is not None:
        assert result.route.route == route
        assert not result.route.resampled
    else:
        assert result.route.resampled
    assert set(np.unique(result.labels)) == {0, 1, 2}


def test_a_scan_between_routes_is_resampled_and_stays_in_place(
    segmenter: Segmenter, scan: Scan
) -> None:
    result = segmenter.segment(resliced(scan, 1.5))
    assert result.route.resampled
    full = segmenter.segment(scan)
    for label in (1, 2):
        found, expected = (
            r.grid.world_mm(np.argwhere(r.labels == label)).mean(axis=0) for r in (result, full)
        )
        # Half a voxel of the 1.5 mm scan: a shift of the whole structure would be more.
        assert np.abs(found - expected).max() < 0.75


def test_the_same_place_at_every_resolution(segmenter: Segmenter, scan: Scan) -> None:
    """Centres of the whole hippocampus in the world, from 1 to 8 mm voxels.

    Truth that was sampled at every k-th voxel would be (k - 1) / 2 voxels of 1 mm astray.
    """
    centres = []
    for factor in (1, 2, 4, 8):
        result = segmenter.segment(averaged(scan, (factor,) * 3), spacing_out_mm=1.0)
        centres.append(result.grid.world_mm(np.argwhere(result.labels)).mean(axis=0))
    astray = np.abs(np.array(centres) - centres[0]).max(axis=1)
    assert (astray[1:] < (0.4, 1.0, 2.0)).all()


def test_volumes_and_spacing_out_come_from_one_answer(segmenter: Segmenter, scan: Scan) -> None:
    low = averaged(scan, (4, 4, 4))
    own, fine = segmenter.segment(low), segmenter.segment(low, spacing_out_mm=1.0)
    assert own.volumes_mm3 == fine.volumes_mm3
    counted = [float((fine.labels == label).sum()) for label in (1, 2)]
    np.testing.assert_allclose(list(fine.volumes_mm3.values()), counted, rtol=1e-6)
    assert fine.grid.spacing_mm == pytest.approx((1.0, 1.0, 1.0))
    assert fine.grid.extent_mm == pytest.approx(low.volume.grid.extent_mm)


def small_profile(package: Package, folder: Path, shape: tuple[int, int, int]) -> Package:
    """`package` with a small largest shape on route 0, so that its scans must be tiled."""
    manifest: Manifest = package.manifest
    first = manifest.routes[0]
    routes = (replace(first, profile=replace(first.profile, max=shape)), *manifest.routes[1:])
    # The golden vectors were made in one piece: tiled labels may differ from them.
    loose = tuple(
        replace(golden, max_disagreement=dict.fromkeys(golden.max_disagreement, 0.05))
        for golden in manifest.golden
    )
    contents = {name: package.read(name) for name in manifest.files}
    return write_package(
        folder, replace(manifest, routes=routes, golden=loose), contents, overwrite=False
    )


def least_limit(package: Package, scan: Scan) -> int:
    """The memory limit that is just enough for the smallest tiles, as the refusal names it."""
    with pytest.raises(ScanError) as refused:
        Segmenter(package, memory_limit=1).segment(scan)
    (needed,) = re.findall(r"takes (\d+) MiB in the smallest tiles", str(refused.value))
    return bytes_of(f"{needed}MiB")


def test_a_scan_read_for_another_package_is_held_to_this_ones_channels(
    segmenter: Segmenter, examples: Path, tmp_path: Path
) -> None:
    image = nib.load(examples / "hippocampus_1mm.nii.gz")
    two = np.stack([image.get_fdata(dtype=np.float32)] * 2, axis=3)
    path = tmp_path / "two.nii.gz"
    nib.save(nib.Nifti1Image(two, image.affine), path)
    with pytest.raises(ScanError, match="2 channels or time points; expected 1"):
        segmenter.segment(read_scan(path, 2))


@pytest.mark.parametrize("shape", [(48, 48, 48), (32, 64, 48), (48, 64, 32)])
def test_a_tiled_scan_agrees_with_the_untiled_one(
    segmenter: Segmenter, scan: Scan, tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    small = small_profile(segmenter.package, tmp_path / "small.rare", shape)
    tiled = Segmenter(small, memory_limit=least_limit(small, scan))
    whole, parts = segmenter.segment(scan).labels, tiled.segment(scan).labels
    assert any(n > most for n, most in zip(whole.shape, shape, strict=True))
    assert not np.array_equal(whole, parts)
    assert dice(whole > 0, parts > 0, 1) >= 0.98


def test_tiles_agree_on_unseen_scans(
    segmenter: Segmenter, shared_data: Path, tmp_path: Path
) -> None:
    small = small_profile(segmenter.package, tmp_path / "small.rare", (32, 64, 48))
    for name in segmenter.package.manifest.model.training.validation_cases[::2]:
        scan = read_scan(shared_data / f"hippocampus/images/{name}.nii.gz")
        tiled = Segmenter(small, memory_limit=least_limit(small, scan))
        whole, parts = segmenter.segment(scan).labels, tiled.segment(scan).labels
        assert dice(whole > 0, parts > 0, 1) >= 0.98, name


def test_a_box_around_a_point_is_the_crop_alone(segmenter: Segmenter, scan: Scan) -> None:
    """A large scan with the crop inside it: --at must answer as for the crop."""
    i, j, k = scan.volume.grid.shape
    rng = np.random.default_rng(0)
    # Never constant, which would be padding.
    big = rng.normal(scan.volume.voxels.min(), 1.0, (i + 60, j + 60, k + 60)).astype(np.float32)
    big[30 : 30 + i, 30 : 30 + j, 30 : 30 + k] = scan.volume.voxels
    affine = scan.volume.grid.affine.copy()
    affine[:3, 3] = scan.volume.grid.world_mm(np.array([-30, -30, -30]))
    head = reframed(scan, big, affine)
    with pytest.raises(ScanError, match="--at X,Y,Z"):
        segmenter.segment(head)
    x, y, z = scan.volume.grid.world_mm((np.array([i, j, k]) - 1) / 2).tolist()
    result = segmenter.segment(head, at=(x, y, z))
    assert result.labels.shape == big.shape
    inside = result.labels[30 : 30 + i, 30 : 30 + j, 30 : 30 + k]
    assert result.labels.sum() == inside.sum()
    expected = segmenter.segment(scan).labels
    assert dice(inside > 0, expected > 0, 1) > 0.9
    with pytest.raises(ScanError, match="outside the scan"):
        segmenter.segment(head, at=(1000.0, 0.0, 0.0))


@pytest.mark.parametrize("value", [0.0, -1000.0, 1e6])
def test_padding_changes_nothing(segmenter: Segmenter, scan: Scan, value: float) -> None:
    pad = [(7, 20), (0, 33), (15, 1)]
    voxels = np.pad(scan.volume.voxels, pad, constant_values=value)
    affine = scan.volume.grid.affine.copy()
    affine[:3, 3] = scan.volume.grid.world_mm(np.array([-7, 0, -15]))
    padded, plain = segmenter.segment(reframed(scan, voxels, affine)), segmenter.segment(scan)
    assert (padded.labels == np.pad(plain.labels, pad)).all()
    assert padded.volumes_mm3 == pytest.approx(plain.volumes_mm3)
    assert padded.grid.shape == voxels.shape


def test_what_a_physicist_should_look_at_is_flagged(segmenter: Segmenter, scan: Scan) -> None:
    noise = np.random.default_rng(0).normal(100, 10, scan.volume.grid.shape).astype(np.float32)
    flags = segmenter.segment(reframed(scan, noise, scan.volume.grid.affine)).flags
    assert any("outside the training range" in flag for flag in flags)
    result = segmenter.segment(scan)
    volumes = {"anterior hippocampus": 0.0, "posterior hippocampus": 1500.0}
    nothing = replace(result, boxes=(replace(result.boxes[0], volumes_mm3=volumes),))
    assert nothing.flags == ["empty label: anterior hippocampus"]
    cut = scan.volume.voxels[: scan.volume.grid.shape[0] // 2]
    halved = segmenter.segment(reframed(scan, np.ascontiguousarray(cut), scan.volume.grid.affine))
    assert any("touches the edge" in flag for flag in halved.flags)
    forced = segmenter.segment(scan, route=1)
    assert "the route was forced" in forced.flags


def test_a_label_lost_on_a_coarse_grid_is_flagged(segmenter: Segmenter, scan: Scan) -> None:
    """At 10 mm the answer still holds both parts, but few voxels are mostly one of them."""
    grid = scan.volume.grid
    (i, j, k) = (n // 10 for n in grid.shape)
    blocks = scan.volume.voxels[: i * 10, : j * 10, : k * 10].reshape(i, 10, j, 10, k, 10)
    low = reframed(scan, blocks.mean(axis=(1, 3, 5)), np.diag([10.0, 10.0, 10.0, 1.0]))
    result = segmenter.segment(low)
    for label, (name, volume) in enumerate(result.volumes_mm3.items(), start=1):
        lost = any(f"lost on this grid: {name}" in flag for flag in result.flags)
        assert lost == (volume > 0 and not (result.labels == label).any())
    emptied = replace(result, labels=np.zeros_like(result.labels))
    assert sum("lost on this grid" in flag for flag in emptied.flags) == 2


def test_labels_of_a_scan_made_in_memory_lie_where_its_grid_says(
    segmenter: Segmenter, scan: Scan, tmp_path: Path
) -> None:
    """A header that does not describe the grid must not decide where labels go."""
    volume = scan.volume
    mirrored = volume.grid.affine.copy()
    mirrored[0, 0], mirrored[0, 3] = -1.0, volume.grid.shape[0]
    turned = Scan(Volume(volume.voxels, Grid(volume.grid.shape, mirrored)), scan.header)
    segmenter.segment(turned).save(tmp_path / "labels.nii.gz")
    np.testing.assert_allclose(nib.load(tmp_path / "labels.nii.gz").affine, mirrored)


def test_segmenters_can_be_loaded_side_by_side(scan: Scan) -> None:
    """In a fresh interpreter, so that the first import of OpenVINO happens in several threads."""
    code = """
from concurrent.futures import ThreadPoolExecutor
import sys
from rare_trt import Segmenter
def run(path):
    with Segmenter.load() as segmenter:
        return tuple(segmenter.segment(path).volumes_mm3.items())
with ThreadPoolExecutor(4) as pool:
    print(len(set(pool.map(run, [sys.argv[1]] * 4))))
"""
    path = Path(__file__).parents[1] / "examples" / "hippocampus_2mm.nii.gz"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "1", done.stderr


def test_threads_get_the_answers_of_one_thread(segmenter: Segmenter, scan: Scan) -> None:
    scans = [averaged(scan, (factor,) * 3) for factor in (1, 2, 4, 8)] * 3
    expected = [segmenter.segment(one).labels for one in scans]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: segmenter.segment(one).labels, scans))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_another_number_of_channels_is_refused(segmenter: Segmenter, scan: Scan) -> None:
    """A scan handed over in memory is validated as a file is."""
    two = np.stack([scan.volume.voxels] * 2, axis=-1)
    with pytest.raises(ScanError, match="2 channels"):
        segmenter.segment(Scan(Volume(two, scan.volume.grid), scan.header))
    for odd in (scan.volume.voxels[..., None, None], scan.volume.voxels[..., None][..., :0]):
        with pytest.raises(ScanError, match="the voxels have shape"):
            segmenter.segment(Scan(Volume(odd, scan.volume.grid), scan.header))
    none = Volume(scan.volume.voxels[:0], Grid((0, *scan.volume.grid.shape[1:]), np.eye(4)))
    with pytest.raises(ScanError, match="the voxels have shape 0 x"):
        segmenter.segment(Scan(none))
    holed = scan.volume.voxels.copy()
    holed[3, 3, 3] = np.nan
    masked = np.ma.masked_invalid(holed)
    with pytest.raises(ScanError, match="masked array"):
        segmenter.segment(Scan(Volume(masked, scan.volume.grid), scan.header))
    with pytest.raises(ScanError, match="NaN"):
        segmenter.segment(Scan(Volume(holed, scan.volume.grid), scan.header))
