"""The picture for quality control: sides, zoom, slices, boxes, names."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from rare_trt import Segmenter
from rare_trt.cli import main
from rare_trt.overlay import GAP_PIXELS, PANEL_PIXELS, SLICES, TEXT, picture_png
from rare_trt.scan.geometry import Grid, Volume
from rare_trt.scan.nifti import read_scan

REPOSITORY: Final = Path(__file__).parents[1]
STEP: Final = PANEL_PIXELS + GAP_PIXELS

# The world axes that run across and up in the sagittal, coronal and axial plane.
ACROSS_UP: Final = ((1, 2), (0, 2), (0, 1))

# Text, outlines and labels aside, a plane is grey.
ORANGE_OVER_GREY: Final = 60


def pixels(png: bytes) -> NDArray[np.int64]:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def panel(picture: NDArray[np.int64], axis: int, column: int) -> NDArray[np.int64]:
    """The pixels of one panel: column 0 shows the whole scan."""
    top, left = GAP_PIXELS + axis * STEP, GAP_PIXELS + column * STEP
    return picture[top : top + PANEL_PIXELS, left : left + PANEL_PIXELS]


def labelled(part: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows and columns of label 1, which is orange."""
    return np.argwhere(part[..., 0] - part[..., 2] > ORANGE_OVER_GREY)


def drawn(
    shape: tuple[int, int, int],
    points_mm: list[tuple[float, float, float]],
    boxes: list[Grid] | None = None,
    flip: float = 1.0,
) -> tuple[NDArray[np.int64], Grid]:
    """A picture of a dark scan of 1 mm, centred on the world's origin, with label 1 at points."""
    affine = np.diag([flip, 1.0, 1.0, 1.0])
    affine[:3, 3] = [-(n - 1) / 2 for n in shape]
    affine[0, 3] *= flip
    grid = Grid(shape, affine)
    labels = np.zeros(shape, np.uint8)
    for point in points_mm:
        i, j, k = grid.index(np.array(point)).round().astype(int)
        labels[i, j, k] = 1
    voxels = np.random.default_rng(0).uniform(0, 1, shape)
    png = picture_png(Volume(voxels, grid), Volume(labels, grid), ["scan"], ["one"], boxes or [])
    return pixels(png), grid


def test_the_picture_is_the_same_in_any_unit(examples: Path) -> None:
    scan = read_scan(examples / "hippocampus_2mm.nii.gz").volume
    labels = Volume(np.zeros(scan.grid.shape, np.uint8), scan.grid)
    tiny = Volume(scan.voxels.astype(np.float64) * 2.0**-100, scan.grid)
    assert picture_png(tiny, labels, [], []) == picture_png(scan, labels, [], [])


@pytest.mark.parametrize("flip", [1.0, -1.0])
def test_a_picture_has_the_patients_right_on_the_left_and_superior_up(flip: float) -> None:
    """One label right, anterior and superior of the centre of the scan, however it is stored."""
    where = (6.0, 4.0, 8.0)
    picture, _ = drawn((21, 21, 21), [where], flip=flip)
    per_mm = PANEL_PIXELS / 21
    for axis, (across, up) in enumerate(ACROSS_UP):
        row, column = labelled(panel(picture, axis, 0)).mean(axis=0)
        # Sagittal: anterior on the left. Coronal and axial: right on the left.
        assert column == pytest.approx(PANEL_PIXELS / 2 - where[across] * per_mm, abs=2)
        assert row == pytest.approx(PANEL_PIXELS / 2 - where[up] * per_mm, abs=2)


def ink(text: str) -> int:
    """How light `text` is on black."""
    image = Image.new("L", (40, 20))
    ImageDraw.Draw(image).text((5, 3), text, fill=TEXT[0])
    return int(np.asarray(image).astype(int).sum())


def test_positions_have_no_negative_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    monkeypatch.setattr("rare_trt.overlay._legible", lambda draw, at, text: texts.append(text))
    affine = np.diag([0.02, 0.02, 0.02, 1.0])
    affine[:3, 3] = -0.4
    grid = Grid((21, 21, 21), affine)
    picture_png(
        Volume(np.zeros(grid.shape), grid), Volume(np.zeros(grid.shape, np.uint8), grid), [], []
    )
    assert {text for text in texts if text.endswith(" mm")} == {"x 0 mm", "y 0 mm", "z 0 mm"}


def test_letters_mark_the_sides_of_every_panel() -> None:
    """On a black scan nothing else is drawn near the sides' middles."""
    grid = Grid((21, 21, 21), np.eye(4))
    black = Volume(np.zeros(grid.shape), grid)
    picture = pixels(picture_png(black, Volume(np.zeros(grid.shape, np.uint8), grid), [], []))
    near = slice(PANEL_PIXELS // 2 - 12, PANEL_PIXELS // 2 + 18)
    sides = ((near, slice(0, 20)), (near, slice(-20, None)))
    ends = ((slice(0, 20), near), (slice(-20, None), near))
    assert len({ink(letter) for letter in "RLAPSI"}) == 6
    for axis, letters in enumerate(("APSI", "RLSI", "RLAP")):
        for column in range(1 + len(SLICES)):
            part = panel(picture, axis, column)[..., 0]
            assert [int(part[side].sum()) for side in (*sides, *ends)] == [ink(x) for x in letters]


def test_slices_lead_through_the_labels_and_zoom_to_them() -> None:
    """A rod of labels in a large scan: every panel shows it, the zoomed ones larger."""
    rod = [(20.0, float(y), -10.0) for y in range(-12, 13)]
    picture, _ = drawn((101, 81, 91), rod)
    for axis, (across, up) in enumerate(ACROSS_UP):
        whole = labelled(panel(picture, axis, 0))
        assert len(whole), "the whole scan is shown at the labels"
        for column in range(1, 1 + len(SLICES)):
            zoomed = labelled(panel(picture, axis, column))
            assert len(zoomed) > 4 * len(whole)
            middle = (zoomed.min(axis=0) + zoomed.max(axis=0)) / 2
            np.testing.assert_allclose(middle, PANEL_PIXELS / 2, atol=5)
        if 1 in (across, up):
            extent = np.ptp(zoomed[:, 1 if across == 1 else 0])
            assert 0.6 * PANEL_PIXELS < extent < 0.9 * PANEL_PIXELS


def test_labels_apart_are_both_shown_where_they_are() -> None:
    """As of two boxes: no slice lies between them, where nothing is."""
    two = [(x, float(y), 0.0) for x in (-30.0, 30.0) for y in range(5)]
    picture, _ = drawn((101, 81, 91), two)
    for column in range(1 + len(SLICES)):
        assert len(labelled(panel(picture, 0, column)))
    coronal = labelled(panel(picture, 1, 1))
    assert coronal[:, 1].min() < PANEL_PIXELS / 3
    assert coronal[:, 1].max() > PANEL_PIXELS * 2 / 3


def test_boxes_are_outlined() -> None:
    shape = (61, 61, 61)
    _, grid = drawn(shape, [])
    boxes = [grid.box((5, 10, 20), (20, 30, 15)), grid.box((36, 10, 20), (20, 30, 15))]
    inside = grid.world_mm(np.array([15.0, 25.0, 27.0]))
    x, y, z = inside.tolist()
    plain, _ = drawn(shape, [(x, y, z)])
    picture, _ = drawn(shape, [(x, y, z)], boxes)
    # A sagittal plane cuts one of the boxes; the others cut both.
    for axis, count in enumerate((1, 2, 2)):
        changed = (panel(picture, axis, 0) != panel(plain, axis, 0)).any(axis=-1)
        rows, columns = np.nonzero(changed)
        lines = [
            column
            for column in np.unique(columns)
            if np.count_nonzero(columns == column) > 0.15 * PANEL_PIXELS
        ]
        assert len(lines) == 2 * count, axis
        assert len(np.unique(rows)) < PANEL_PIXELS
    per_mm = PANEL_PIXELS / 61
    rows, columns = np.nonzero((panel(picture, 0, 0) != panel(plain, 0, 0)).any(axis=-1))
    assert np.ptp(columns) + 1 == pytest.approx(30 * per_mm, abs=2)
    assert np.ptp(rows) + 1 == pytest.approx(15 * per_mm, abs=2)


def test_without_labels_the_boxes_are_zoomed_to_and_else_the_scan_is_shown() -> None:
    shape = (61, 61, 61)
    picture, grid = drawn(shape, [])
    for axis in range(3):
        assert len(labelled(panel(picture, axis, 1))) == 0
        assert np.ptp(panel(picture, axis, 1)) > 100
    boxed, _ = drawn(shape, [], [grid.box((5, 10, 20), (20, 30, 15))])
    white = (panel(boxed, 1, 2) == 255).all(axis=-1)
    assert np.ptp(np.nonzero(white)[1]) > PANEL_PIXELS / 2


def test_names_outside_ascii_differ_in_the_picture() -> None:
    """The font that Pillow brings has no more than ASCII, and shows a box for all other letters."""
    grid = Grid((21, 21, 21), np.eye(4))
    scan = Volume(np.random.default_rng(0).uniform(0, 1, grid.shape), grid)
    labels = Volume(np.ones(grid.shape, np.uint8), grid)
    one, other, escaped, label = (
        picture_png(scan, labels, [name], [legend])
        for name, legend in [("ü名", "a"), ("ä名", "a"), (r"\xfc\u540d", "a"), ("ü名", "é")]
    )
    assert one == escaped
    assert one != other
    assert label == picture_png(scan, labels, ["ü名"], [r"\xe9"])


def test_long_names_and_legends_stay_inside() -> None:
    grid = Grid((21, 21, 21), np.eye(4))
    scan = Volume(np.random.default_rng(0).uniform(0, 1, grid.shape), grid)
    labels = Volume(np.ones(grid.shape, np.uint8), grid)
    legend = [f"structure number {n} 12345 mm3" for n in range(40)]
    short = pixels(picture_png(scan, labels, ["name"], legend[:1]))
    long = pixels(picture_png(scan, labels, ["n" * 4000 + "\n\udc80"], legend))
    assert long.shape[1] == short.shape[1]
    assert long.shape[0] > short.shape[0] + 5 * 18
    # Every label's colour is in the legend, and nothing is cut off at the right.
    assert not long[3 * STEP :, -GAP_PIXELS:].any()


def test_the_scans_name_and_the_box_are_in_the_picture(tmp_path: Path, examples: Path) -> None:
    """The same labels under another name, and without the point: other pictures."""
    scan = examples / "hippocampus_1mm.nii.gz"
    grid = read_scan(scan).volume.grid
    centre = grid.world_mm((np.array(grid.shape) - 1) / 2)
    (tmp_path / "b.nii.gz").write_bytes(scan.read_bytes())
    with Segmenter.load("hippocampus") as segmenter:
        x, y, z = centre.tolist()
        results = [
            segmenter.segment(scan, at=(x, y, z)),
            segmenter.segment(tmp_path / "b.nii.gz", at=(x, y, z)),
            segmenter.segment(scan),
        ]
    one, other, whole = (
        pixels(result.files(tmp_path / "l.nii", picture=tmp_path / "p.png")[tmp_path / "p.png"])
        for result in results
    )
    planes = slice(0, 3 * STEP + GAP_PIXELS)
    np.testing.assert_array_equal(one[planes], other[planes])
    assert (one[planes.stop :] != other[planes.stop :]).any()
    assert ((one == 255).all(axis=-1) & (whole != 255).any(axis=-1)).any(), "an outline"


def test_readmes_picture_is_the_one_that_the_command_draws(tmp_path: Path, examples: Path) -> None:
    """Fonts and single voxels may differ between machines; the planes and the layout may not."""
    picture = tmp_path / "labels.png"
    scan = examples / "hippocampus_2mm.nii.gz"
    command = ["infer", str(scan), "-o", str(tmp_path / "l.nii.gz"), "--picture", str(picture)]
    assert main(command) == 0
    readme = (REPOSITORY / "README.md").read_text()
    assert "](docs/images/example_2mm.png)" in readme
    shown = pixels((REPOSITORY / "docs" / "images" / "example_2mm.png").read_bytes())
    found = pixels(picture.read_bytes())
    assert found.shape == shown.shape
    planes = slice(0, 3 * STEP + GAP_PIXELS)
    different = (np.abs(found - shown) > 8).any(axis=-1)
    assert different[planes].mean() < 0.02
    assert different.mean() < 0.02
    assert nib.load(tmp_path / "l.nii.gz").shape == nib.load(scan).shape
