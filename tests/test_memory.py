"""Tiles keep a run within a memory limit and cost as little as they can."""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rare_trt import Grid, Segmenter
from rare_trt.cli import main
from rare_trt.constants import MAX_OVERLAP
from rare_trt.errors import ScanError
from rare_trt.plan.memory import (
    GIB,
    MIB,
    MemoryNeeds,
    bytes_of,
    bytes_per_voxel,
    tile_shape,
    usual_limit,
)
from rare_trt.plan.resampling import ResamplingPlan, plan_resampling, tile_count, tiles
from rare_trt.plan.routing import Route
from rare_trt.scan.geometry import Shape

ROUTE = Route(0, 1.0, (0.95, 1.05), 16, (96, 128, 112))
PER_VOXEL = 200.0


def steps_of(shape: Shape) -> ResamplingPlan:
    grid = Grid(shape, np.eye(4))
    return plan_resampling(grid, ROUTE, grid)


def needs(scan: Shape, part: Shape | None = None, per_voxel: float = PER_VOXEL) -> MemoryNeeds:
    """Of a scan of 16 bits, all of it or a part of it segmented."""
    return MemoryNeeds(scan, 2, (1, *(part or scan)), 3, per_voxel)


def chosen(shape: Shape, limit: int) -> Shape:
    return tile_shape(steps_of(shape), ROUTE, needs(shape), limit)


def test_what_fits_is_run_in_one_piece_whatever_the_largest_trained_shape() -> None:
    assert chosen((256, 256, 256), 8 * GIB) == (256, 256, 256)
    assert chosen((256, 256, 256), 2 * GIB) != (256, 256, 256)


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[st.integers(20, 300)] * 3), st.integers(900, 6000))
def test_tiles_hold_the_limit_and_are_no_smaller_than_the_trained_shape(
    shape: Shape, limit_mib: int
) -> None:
    limit = limit_mib * MIB
    try:
        found = chosen(shape, limit)
    except ScanError:
        return
    steps = steps_of(shape)
    whole = steps.working_shape
    for size, trained, axis in zip(found, ROUTE.max_shape, whole, strict=True):
        assert min(trained, axis) <= size <= axis
    assert prod(found) * PER_VOXEL + prod(shape) * 10 < limit
    covered = np.zeros(shape, np.uint8)
    for tile in tiles(steps, found):
        covered[tile.output] += 1
        run = tuple(len(matrix) for matrix in tile.in_matrices)
        assert all(n <= most for n, most in zip(run, found, strict=True))
    assert (covered == 1).all()


def test_more_memory_never_costs_more_work() -> None:
    shape = (512, 512, 300)
    steps = steps_of(shape)
    work = []
    for limit in (4 * GIB, 6 * GIB, 8 * GIB, 32 * GIB):
        found = tile_shape(steps, ROUTE, needs(shape), limit)
        work.append(sum(prod(len(m) for m in t.in_matrices) for t in tiles(steps, found)))
    assert work == sorted(work, reverse=True)
    assert work[2] <= 1.4 * prod(shape)


def test_neighbours_share_half_a_small_tile_and_no_more_than_is_needed_of_a_large_one() -> None:
    assert tile_count(96, 64) == 2
    assert tile_count(97, 64) == 3
    assert tile_count(512, 288) == 2
    assert tile_count(2 * 288 - MAX_OVERLAP + 1, 288) == 3


def test_what_fits_in_no_tile_is_refused_in_one_sentence() -> None:
    with pytest.raises(ScanError, match=r"takes \d+ MiB in the smallest tiles.* is 512 MiB"):
        chosen((512, 512, 300), 512 * MIB)


def test_a_part_of_a_scan_that_does_not_fit_is_run() -> None:
    """The way out that the refusal names: of the whole scan only what is stored counts."""
    scan, part, limit = (512, 512, 600), (48, 72, 48), 4 * GIB
    with pytest.raises(ScanError, match="segment a part of the scan with --at"):
        chosen(scan, limit)
    steps = steps_of(part)
    found = tile_shape(steps, ROUTE, needs(scan, part), limit)
    assert found == steps.working_shape
    with pytest.raises(ScanError, match="is 700 MiB"):
        tile_shape(steps, ROUTE, needs(scan, part), 700 * MIB)


def test_an_answer_finer_than_the_run_counts() -> None:
    """At 8 mm an answer at 1 mm has 512 voxels per voxel of the run."""
    grid = Grid((40, 40, 40), np.diag([8.0, 8.0, 8.0, 1.0]))
    route = Route(3, 8.0, (0.95, 1.05), 2, (12, 16, 14))
    steps = plan_resampling(grid, route, grid.subdivide((8, 8, 8)))
    logits = prod(steps.output_shape) * 3 * 4
    for limit, whole in ((2 * GIB, True), (600 * MIB, False)):
        found = tile_shape(steps, route, needs(grid.shape, per_voxel=2816.0), limit)
        assert (found == steps.working_shape) == whole
        assert logits * prod(found) / prod(steps.working_shape) < limit - 320 * MIB


def test_memory_grows_with_filters_and_routes() -> None:
    network = {"filters": 16}
    wide, narrow = (bytes_per_voxel(network, 0, one) for one in ("int8", "int8+bf16"))
    assert wide is not None and narrow is not None and wide > 1.5 * narrow
    assert bytes_per_voxel(network, 0, "fp32") == wide
    assert bytes_per_voxel(network, 2, "fp32") == 4 * wide
    assert bytes_per_voxel({}, 0, "fp32") is None


@pytest.mark.parametrize(
    ("text", "count"),
    [("4GiB", 4 * GIB), ("512 MiB", 512 * MIB), ("1.5GiB", 3 * GIB // 2), ("7", 7)],
)
def test_amounts_of_memory_are_read(text: str, count: int) -> None:
    assert bytes_of(text) == count


@pytest.mark.parametrize("text", ["", "4GB", "-1", "0", "GiB", "1e9", "9" * 400, "9" * 308 + "GiB"])
def test_what_is_no_amount_of_memory_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an amount of memory"):
        bytes_of(text)


def test_the_usual_limit_leaves_half_of_a_small_machine() -> None:
    assert GIB // 4 <= usual_limit() <= 8 * GIB


def test_infer_refuses_what_the_limit_cannot_hold(
    tiny_package_folder: Path,
    tiny_scan: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["infer", str(tiny_scan), "--package", str(tiny_package_folder)]
    command += ["-o", str(tmp_path / "labels.nii.gz"), "--memory-limit"]
    assert main([*command, "100MiB"]) == 1
    assert "the memory limit is 100 MiB" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert main([*command, "1GiB"]) == 0


def test_a_limit_that_is_no_amount_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["infer", "scan.nii", "--memory-limit", "much"])
    assert ended.value.code == 2
    assert "not an amount of memory" in capsys.readouterr().err


def test_labels_do_not_hang_on_a_limit_that_is_not_reached(
    tiny_package_folder: Path, tiny_scan: Path
) -> None:
    with Segmenter.load(tiny_package_folder) as usual:
        labels = usual.segment(tiny_scan).labels
    with Segmenter.load(tiny_package_folder, memory_limit=1 * GIB) as limited:
        assert np.array_equal(limited.segment(tiny_scan).labels, labels)
