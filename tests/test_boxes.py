"""Boxes around several points: in Python, on the command line, from a table, through a server."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff
from numpy.typing import NDArray

from rare_trt import Grid, Result, Scan, Segmenter, Volume, read_scan
from rare_trt.cli import main
from rare_trt.errors import ScanError
from rare_trt.options import join_negative_values, options_from_query, query_from_options
from rare_trt.points import points_of_scans
from rare_trt.scan.field_of_view import join_boxes
from rare_trt.scan.geometry import Triple


@dataclass(frozen=True)
class Head:
    """A scan as large as a head that holds the crop twice, and the two centres in world mm."""

    scan: Scan
    left: Triple
    right: Triple


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter.load("hippocampus", "openvino")


@pytest.fixture(scope="module")
def head(examples: Path) -> Head:
    crop = read_scan(examples / "hippocampus_2mm.nii.gz").volume
    i, j, k = crop.grid.shape
    rng = np.random.default_rng(0)
    # Never constant, which would be padding.
    voxels = rng.normal(crop.voxels.min(), 1.0, (2 * i + 30, j + 30, k + 30)).astype(np.float32)
    voxels[10 : 10 + i, 15 : 15 + j, 15 : 15 + k] = crop.voxels
    voxels[20 + i : 20 + 2 * i, 15 : 15 + j, 15 : 15 + k] = crop.voxels
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = -80, -90, -40
    grid = Grid(voxels.shape, affine)
    middle = np.array([i - 1, j - 1, k - 1]) / 2
    starts = np.array([[10, 15, 15], [20 + i, 15, 15]])
    (a, b, c), (d, e, f) = grid.world_mm(starts + middle).tolist()
    return Head(Scan(Volume(voxels, grid)), (a, b, c), (d, e, f))


@pytest.fixture
def head_file(head: Head, tmp_path: Path) -> Path:
    path = tmp_path / "head.nii.gz"
    nib.save(nib.Nifti1Image(head.scan.volume.voxels, head.scan.volume.grid.affine), path)
    return path


def text(point: Triple) -> str:
    return ",".join(map(repr, point))


def test_two_points_are_two_boxes(segmenter: Segmenter, head: Head) -> None:
    left, right = (segmenter.segment(head.scan, at=at) for at in (head.left, head.right))
    for at in ([head.left, head.right], np.array([head.left, head.right])):
        both = segmenter.segment(head.scan, at=at)
        assert np.array_equal(both.labels, np.maximum(left.labels, right.labels))
        assert [box.at_mm for box in both.boxes] == [head.left, head.right]
        assert both.at_mm == [head.left, head.right]
        assert [box.volumes_mm3 for box in both.boxes] == [left.volumes_mm3, right.volumes_mm3]
        for name, volume in both.volumes_mm3.items():
            assert volume == left.volumes_mm3[name] + right.volumes_mm3[name]
        assert both.disputes == ()
        for box, alone in zip(both.boxes, (left, right), strict=True):
            assert (both.labels[box.part] == alone.labels[box.part]).all()
            assert np.count_nonzero(both.labels[box.part]) == np.count_nonzero(alone.labels)
    lines = repr(both).splitlines()
    for number, box in enumerate(both.boxes, start=1):
        (line,) = (line for line in lines if line.startswith(f"  box {number} at "))
        assert all(f"{name} {mm3:.0f} mm3" in line for name, mm3 in box.volumes_mm3.items())


def test_one_point_in_a_list_is_that_point(segmenter: Segmenter, head: Head) -> None:
    one, listed = (segmenter.segment(head.scan, at=at) for at in (head.left, [head.left]))
    assert np.array_equal(one.labels, listed.labels)
    assert one.at_mm == listed.at_mm == head.left
    without = {name: value for name, value in one.report().items() if name != "timings_ms"}
    assert {n: v for n, v in listed.report().items() if n != "timings_ms"} == without
    assert "boxes" not in without


def shifted(point: Triple, *by: float) -> Triple:
    x, y, z = (n + d for n, d in zip(point, by, strict=True))
    return x, y, z


def test_overlapping_boxes_share_no_voxel(segmenter: Segmenter, head: Head) -> None:
    """A voxel has the label of the box with the nearest centre, and is counted once."""
    points = [head.left, shifted(head.left, 10, 4, 0), shifted(head.left, -8, 0, 6)]
    alone = [segmenter.segment(head.scan, at=point) for point in points]
    found = segmenter.segment(head.scan, at=points)
    grid = head.scan.volume.grid
    centres = []
    for one in alone:
        (box,) = one.boxes
        centres.append([(part.start + part.stop - 1) / 2 for part in box.part])
    index = np.stack(np.indices(grid.shape), axis=-1)
    far = np.array([(((index - centre) * 2.0) ** 2).sum(axis=-1) for centre in centres])
    for number, one in enumerate(alone):
        outside = np.ones(grid.shape, bool)
        outside[one.boxes[0].part] = False
        far[number][outside] = np.inf
    owner = far.argmin(axis=0)
    clear = np.sort(far, axis=0)[0] < np.sort(far, axis=0)[1]
    expected = np.choose(owner, [one.labels for one in alone])
    expected[np.isinf(far).all(axis=0)] = 0
    assert np.array_equal(found.labels[clear], expected[clear])
    total = sum(found.volumes_mm3.values())
    assert total < sum(sum(one.volumes_mm3.values()) for one in alone)
    assert total == pytest.approx(np.count_nonzero(found.labels) * 8.0, rel=0.15)
    assert found.disputes
    for one, two, voxels in found.disputes:
        both = np.isfinite(far[one]) & np.isfinite(far[two])
        assert voxels == np.count_nonzero((alone[one].labels != alone[two].labels) & both)
        sentence = f"boxes overlap: {one + 1} and {two + 1} label {voxels} voxels differently"
        assert any(flag.startswith(sentence) for flag in found.flags)
    backwards = segmenter.segment(head.scan, at=points[::-1])
    assert np.array_equal(backwards.labels, found.labels)
    assert backwards.volumes_mm3 == found.volumes_mm3


def test_a_box_that_begins_first_has_the_voxels_in_the_middle() -> None:
    grid = Grid((9, 3, 3), np.diag([1.0, 1.0, 1.0, 1.0]))
    boxes = [(slice(a, b), slice(0, 3), slice(0, 3)) for a, b in ((4, 9), (0, 5), (2, 7))]
    labels = [np.full((5, 3, 3), n, np.uint8) for n in (1, 2, 3)]
    found = join_boxes(grid, boxes, labels)
    assert found.labels[:, 1, 1].tolist() == [2, 2, 2, 2, 3, 3, 1, 1, 1]
    assert sum(int(mask.sum()) for mask in found.owned if mask is not None) == 81
    assert found.disputes == [(0, 1, 9), (0, 2, 27), (1, 2, 27)]


def test_boxes_do_not_depend_on_the_order_of_the_axes(segmenter: Segmenter, head: Head) -> None:
    volume = head.scan.volume
    points = [head.left, shifted(head.left, 9, 3, -3)]
    reference = segmenter.segment(head.scan, at=points)
    assert reference.disputes
    for order, flips in list(product(permutations(range(3)), product((1, -1), repeat=3)))[::7]:
        ornt = np.array(list(zip(order, flips, strict=True)))
        voxels = np.ascontiguousarray(apply_orientation(volume.voxels, ornt))
        affine = volume.grid.affine @ inv_ornt_aff(ornt, volume.grid.shape)
        found = segmenter.segment(Scan(Volume(voxels, Grid(voxels.shape, affine))), at=points)
        assert np.array_equal(found.labels, apply_orientation(reference.labels, ornt))
        assert found.volumes_mm3 == reference.volumes_mm3
        marks = np.zeros(found.labels.shape, np.uint8)
        marks[found.boxes[1].part] = 1
        expected = np.zeros(reference.labels.shape, np.uint8)
        expected[reference.boxes[1].part] = 1
        assert np.array_equal(marks, apply_orientation(expected, ornt))


def world_of_labels(result: Result) -> NDArray[np.float64]:
    return result.grid.world_mm(np.argwhere(result.labels))


def test_boxes_share_one_finer_grid(segmenter: Segmenter, head: Head) -> None:
    points = [head.left, head.right]
    found = segmenter.segment(head.scan, at=points, spacing_out_mm=1.0)
    assert found.grid.spacing_mm == pytest.approx((1.0, 1.0, 1.0))
    expected = []
    for point, box in zip(points, found.boxes, strict=True):
        alone = segmenter.segment(head.scan, at=point, spacing_out_mm=1.0)
        assert found.labels[box.part].shape == alone.labels.shape
        assert np.array_equal(found.labels[box.part], alone.labels)
        expected.append(world_of_labels(alone))
    here, there = world_of_labels(found), np.concatenate(expected)
    assert len(here) == len(there)
    np.testing.assert_allclose(here[np.lexsort(here.T)], there[np.lexsort(there.T)], atol=1e-6)
    # A grid that no box lies on: one and the same voxels for both.
    odd = segmenter.segment(head.scan, at=points, spacing_out_mm=1.3)
    for name, volume in odd.volumes_mm3.items():
        assert volume == pytest.approx(found.volumes_mm3[name], rel=0.05)


def test_the_flags_of_several_boxes_name_theirs(segmenter: Segmenter, head: Head) -> None:
    air = shifted(head.left, 0, 0, 24)
    found = segmenter.segment(head.scan, at=[head.left, air])
    named = [
        f"box {n}: {flag}" for n, box in enumerate(found.boxes, 1) for flag in found.box_flags(box)
    ]
    assert any(flag.startswith("box 2: ") for flag in named)
    assert [
        flag for flag in found.flags if not flag.startswith("boxes overlap: 1 and 2 label")
    ] == named
    report = json.loads(found.report_json())
    assert report["flags"] == found.flags
    assert report["at_mm"] == [list(head.left), list(air)]
    assert [box["at_mm"] for box in report["boxes"]] == report["at_mm"]
    assert [box["volumes_mm3"] for box in report["boxes"]] == [b.volumes_mm3 for b in found.boxes]
    assert [
        f"box {number}: {flag}"
        for number, box in enumerate(report["boxes"], start=1)
        for flag in box["flags"]
    ] == named


def test_a_strict_run_names_the_box(segmenter: Segmenter, head: Head) -> None:
    voxels = head.scan.volume.voxels.copy()
    half = voxels.shape[0] // 2
    voxels[half:] = voxels[half:].max() - voxels[half:]
    inverted = Scan(Volume(voxels, head.scan.volume.grid))
    with pytest.raises(ScanError) as refused:
        segmenter.segment(inverted, at=[head.left, head.right], strict=True)
    assert "box 2: " in str(refused.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"at": []}, "the points are []; expected three numbers each"),
        ({"at": (1, 2)}, "the points are (1, 2); expected three numbers each"),
        ({"at": [(1, 2, 3), (1, 2)]}, "expected three numbers each"),
        ({"at": "here"}, "the points are 'here'; expected three numbers each"),
        ({"at": [(0, 0, 0), (np.nan, 0, 0)]}, "expected three finite numbers"),
        (
            {"at": [(900.0, 0, 0)]},
            "the point 900, 0, 0 lies outside the scan, which reaches from -81, -91, -41 to ",
        ),
        ({"at_voxel": (1, 2, 400)}, "the voxel 1, 2, 400 is not one of the scan; expected whole"),
        ({"at_voxel": (1, 2, 10**400)}, "expected three numbers each"),
        ({"at_voxel": (1, 2, -1)}, "the voxel 1, 2, -1 is not one of the scan"),
        ({"at_voxel": (1, 2, 0.5)}, "the voxel 1, 2, 0.5 is not one of the scan"),
        ({"at_voxel": (1, 2, np.nan)}, "the voxel 1, 2, nan is not one of the scan"),
        ({"at": (0, 0, 0), "at_voxel": (1, 2, 3)}, "give all of them by one"),
    ],
)
def test_wrong_points_get_one_sentence(
    segmenter: Segmenter, head: Head, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ScanError) as refused:
        segmenter.segment(head.scan, **options)
    assert words in str(refused.value)


def test_a_voxel_is_one_of_the_stored_axes(segmenter: Segmenter, head: Head) -> None:
    volume = head.scan.volume
    voxel = volume.grid.index(np.array([head.left, head.right])).round().astype(int)
    expected = segmenter.segment(head.scan, at=volume.grid.world_mm(voxel))
    assert np.array_equal(segmenter.segment(head.scan, at_voxel=voxel).labels, expected.labels)
    turned = volume.voxels.transpose(2, 0, 1)[:, ::-1]
    affine = volume.grid.affine[:, [2, 0, 1, 3]].copy()
    affine[:3, 3] += affine[:3, 1] * (turned.shape[1] - 1)
    affine[:3, 1] *= -1
    i, j, k = voxel[0].tolist()
    stored = (k, turned.shape[1] - 1 - i, j)
    found = segmenter.segment(turned, affine=affine, at_voxel=stored)
    assert found.at_mm == pytest.approx(tuple(volume.grid.world_mm(voxel[0]).tolist()))


@pytest.mark.parametrize("flag", ["--at", "--at-voxel"])
def test_a_value_may_begin_with_a_minus(flag: str) -> None:
    given = ["infer", "s.nii", flag, "-28,-20,-18", flag, "-.5,1,2", "--route", "1", flag]
    joined = [f"{flag}=-28,-20,-18", f"{flag}=-.5,1,2"]
    assert join_negative_values(given) == ["infer", "s.nii", *joined, "--route", "1", flag]
    assert join_negative_values([flag, "--strict"]) == [flag, "--strict"]


def labels_of(path: Path) -> NDArray[Any]:
    return np.asarray(nib.load(path).dataobj)


def test_the_command_line_takes_several_points(
    segmenter: Segmenter, head: Head, head_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report = head_file.with_name("l.nii.gz"), head_file.with_name("r.json")
    points = ["--at", text(head.left), "--at", text(head.right)]
    assert head.left[0] < 0
    command = ["infer", str(head_file), "-o", str(out), "--report", str(report)]
    assert main([*command, *points]) == 0
    expected = segmenter.segment(head_file, at=[head.left, head.right])
    printed = capsys.readouterr().out
    for number, box in enumerate(expected.boxes, start=1):
        volumes = (f"{name} {mm3:.0f} mm3" for name, mm3 in box.volumes_mm3.items())
        point = ", ".join(f"{x:g}" for x in (head.left, head.right)[number - 1])
        assert f"  box {number} at {point} mm: {', '.join(volumes)}\n" in printed
    assert np.array_equal(labels_of(out), expected.labels)
    assert json.loads(report.read_text())["at_mm"] == [list(head.left), list(head.right)]
    voxel = head.scan.volume.grid.index(np.array(head.left)).round().astype(int)
    voxels = ["--at-voxel", ",".join(map(str, voxel.tolist()))]
    assert main([*command, *voxels, "--overwrite"]) == 0
    expected = segmenter.segment(head_file, at_voxel=voxel)
    assert np.array_equal(labels_of(out), expected.labels)
    capsys.readouterr()
    for wrong, words in [
        (["--at-voxel", "-1,2,3"], "the voxel -1, 2, 3 is not one of the scan"),
        ([*points, *voxels], "give all of them by one"),
    ]:
        assert main([*command, *wrong, "--overwrite"]) == 1
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--at-voxel", "1.5,2,3"])
    assert "expected three whole numbers" in capsys.readouterr().err


def table(path: Path, *rows: tuple[Any, ...], header: str = "scan\tx\ty\tz") -> Path:
    path.write_text("\n".join([header, *("\t".join(map(str, row)) for row in rows)]) + "\n")
    return path


def test_points_come_from_a_table(
    segmenter: Segmenter, head: Head, head_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By names relative to the table, or to the working folder; a scan has a row per box."""
    folder = head_file.parent / "heads"
    folder.mkdir()
    for name in ("a.nii.gz", "b.nii.gz"):
        (folder / name).write_bytes(head_file.read_bytes())
    monkeypatch.chdir(head_file.parent)
    points = table(
        folder / "points.tsv",
        (*head.left, "left", "b.nii.gz"),
        (*head.right, "right", "heads/a.nii.gz"),
        (1, 2, 3, "of another run", "c.nii.gz"),
        (*head.left, "left", "a.nii.gz"),
        header="x\ty\tz\tside\tscan",
    )
    out = head_file.parent / "out"
    assert main(["infer", "heads", "-o", str(out), "--points", str(points)]) == 0
    one = segmenter.segment(head_file, at=head.left)
    two = segmenter.segment(head_file, at=[head.right, head.left])
    assert np.array_equal(labels_of(out / "b.nii.gz"), one.labels)
    assert np.array_equal(labels_of(out / "a.nii.gz"), two.labels)
    single = head_file.parent / "single.nii.gz"
    command = ["infer", "heads/a.nii.gz", "-o", str(single), "--points", str(points)]
    assert main(command) == 0
    assert np.array_equal(labels_of(single), two.labels)


def test_a_link_to_a_scan_has_points_of_its_own(tmp_path: Path) -> None:
    scans = [tmp_path / name for name in ("a.nii.gz", "b.nii.gz", "c.nii.gz")]
    scans[0].touch()
    scans[1].symlink_to("a.nii.gz")
    scans[2].symlink_to("a.nii.gz")
    table = tmp_path / "points.tsv"
    table.write_text("scan\tx\ty\tz\na.nii.gz\t1\t0\t0\nb.nii.gz\t2\t0\t0\nc.nii.gz\t3\t0\t0\n")
    found = points_of_scans(table, scans)
    assert [found[scan] for scan in scans] == [((x, 0.0, 0.0),) for x in (1.0, 2.0, 3.0)]
    # A file under a name that only leads to it.
    (tmp_path / "below").symlink_to(tmp_path)
    table.write_text("scan\tx\ty\tz\nbelow/a.nii.gz\t1\t0\t0\n")
    assert points_of_scans(table, scans[:1]) == {scans[0]: ((1.0, 0.0, 0.0),)}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("scan\tx\ty\tz\nother.nii.gz\t1\t2\t3\n", "no point for {head}; expected a row"),
        ("scan\tx\ty\nhead.nii.gz\t1\t2\n", "its first line is 'scan|x|y'; expected the columns"),
        ("", "its first line is ''; expected the columns"),
        ("scan\tx\ty\tz\n\nhead.nii.gz\t1\t2\n", "line 3 is 'head.nii.gz|1|2'; expected a scan"),
        ("scan\tx\ty\tz\nhead.nii.gz\t1\t2\tn/a\n", "line 2 is 'head.nii.gz|1|2|n/a'; expected"),
        ("scan\tx\ty\tz\nhead.nii.gz\t1\t2\t900\n", "outside the scan"),
        (None, "cannot be read (No such file or directory)"),
        (b"\xff\xfe", "cannot be read (not UTF-8)"),
    ],
)
def test_a_wrong_table_gets_one_sentence(
    head_file: Path, capsys: pytest.CaptureFixture[str], lines: str | bytes | None, words: str
) -> None:
    path = head_file.with_name("points.tsv")
    if lines is not None:
        path.write_bytes(lines if isinstance(lines, bytes) else lines.encode())
    before = sorted(head_file.parent.iterdir())
    assert main(["infer", str(head_file), "--points", str(path)]) == 1
    sentence = capsys.readouterr().err
    assert words.format(head=head_file) in sentence
    assert sentence.count("\n") == 1
    assert main(["infer", str(head_file), "--points", str(path), "--at=0,0,0"]) == 1
    assert "leave one out" in capsys.readouterr().err
    assert sorted(head_file.parent.iterdir()) == before


def test_scans_without_a_point_are_named(
    head_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(13):
        (folder / f"s{number:02}.nii.gz").write_bytes(head_file.read_bytes())
    points = table(tmp_path / "p.tsv", ("many/s00.nii.gz", 0, 0, 0))
    out = tmp_path / "out"
    assert main(["infer", str(folder), "-o", str(out), "--points", str(points)]) == 1
    sentence = capsys.readouterr().err
    assert all(f"s{number:02}.nii.gz" in sentence for number in range(1, 11))
    assert "and 2 more" in sentence
    assert not out.exists()


def test_points_are_the_same_in_a_query() -> None:
    options = {"at": ((-28.5, 1e-17, 3.0), (1.0, 2.0, 3.0)), "at_voxel": ((1, 2, 3),), "route": 1}
    assert options_from_query(query_from_options(options)) == options
