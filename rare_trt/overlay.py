"""The segmentation over its scan in three planes, as a PNG file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from rare_trt.scan.geometry import Array, Canonical, Grid, Volume

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

PANEL_PIXELS: Final = 200
GAP_PIXELS: Final = 6
LINE_PIXELS: Final = 18
OPACITY: Final = 0.55

# Where the slices of the zoomed panels lie among the labelled voxels.
SLICES: Final = (0.1, 0.37, 0.63, 0.9)

# The side of the zoomed panels beside the labels' extent, and at least.
ZOOM_MARGIN: Final = 1.25
ZOOM_MARGIN_MM: Final = 6.0

# Okabe and Ito's palette, which colour-blind readers can distinguish.
COLOURS: Final = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
)
TEXT: Final = (220, 220, 220)
OUTLINE: Final = (255, 255, 255)

# Per canonical axis: its name, and the ends where it begins and where it ends.
AXES: Final = (("x", "L", "R"), ("y", "P", "A"), ("z", "I", "S"))


@dataclass(frozen=True, eq=False)
class _Panel:
    """A square window on the plane across `axis` through the canonical voxel index `centre`, with
    sides of `side_mm`; its first pixel is right (anterior in the sagittal plane) and up."""

    axis: int
    centre: NDArray[np.float64]
    side_mm: float

    @property
    def axes(self) -> tuple[int, int]:
        """The axes that run across and up."""
        across, up = (other for other in range(3) if other != self.axis)
        return across, up

    def indices(self, grid: Grid) -> NDArray[np.float64]:
        """[row, column, 3]: the voxel index of `grid` at the centre of each pixel."""
        across, up = self.axes
        offset = ((np.arange(PANEL_PIXELS) + 0.5) / PANEL_PIXELS - 0.5) * self.side_mm
        index = np.empty((PANEL_PIXELS, PANEL_PIXELS, 3))
        index[..., self.axis] = self.centre[self.axis]
        # The patient's right (anterior, seen sagittally) is on the left, and the top is superior.
        index[..., across] = (self.centre[across] - offset / grid.spacing_mm[across])[None, :]
        index[..., up] = (self.centre[up] - offset / grid.spacing_mm[up])[:, None]
        return index

    def pixel(self, grid: Grid, index: NDArray[np.float64]) -> tuple[int, int]:
        """Column and row of the voxel `index` of `grid`, also outside the panel."""
        column, row = (
            ((self.centre[a] - index[a]) * grid.spacing_mm[a] / self.side_mm + 0.5) * PANEL_PIXELS
            for a in self.axes
        )
        return round(float(column)), round(float(row))


def picture_png(
    scan: Volume,
    labels: Volume,
    title: Sequence[str],
    legend: Sequence[str],
    boxes: Sequence[Grid] = (),
) -> bytes:
    """`labels` over `scan` as PNG: a row per plane (sagittal, coronal, axial).

    The first panel of a row shows all of the scan; the others zoom to the labels, in slices from
    one end of them to the other, whose position in world mm stands below. Up is superior (anterior
    in the axial plane) and the patient's right is on the left, as radiologists read; letters mark
    the sides. Each plane is shown in millimetres, independent of the voxels' proportions. `boxes`
    are parts of the scan that are outlined. `title` has one text per line, `legend` one per label
    from 1 up.
    """
    from PIL import Image, ImageDraw

    voxels = scan.voxels[..., 0] if scan.voxels.ndim == 4 else scan.voxels
    grey, grid = _canonical(voxels, scan.grid)
    marks, marks_grid = _canonical(labels.voxels, labels.grid)
    low, high = np.percentile(grey, (1.0, 99.5))
    grey = np.clip((grey - low) / ((high - low) or 1.0), 0.0, 1.0)
    outlines = [_bounds(box, grid) for box in boxes]
    width = (1 + len(SLICES)) * (PANEL_PIXELS + GAP_PIXELS) + GAP_PIXELS
    title, legend = [_in_ascii(line) for line in title], [_in_ascii(name) for name in legend]
    rows = _legend_rows(legend, width)
    height = 3 * (PANEL_PIXELS + GAP_PIXELS) + (len(title) + len(rows)) * LINE_PIXELS
    canvas = Image.new("RGB", (width, height + 2 * GAP_PIXELS))
    for axis, panels in enumerate(_panels(grid, marks, marks_grid, outlines)):
        for column, panel in enumerate(panels):
            index = grid.world_mm(panel.indices(grid))
            plane = _coloured(_nearest(grey, grid, index), _nearest(marks, marks_grid, index))
            image = Image.fromarray(plane)
            _draw_panel(ImageDraw.Draw(image), panel, grid, outlines)
            step = PANEL_PIXELS + GAP_PIXELS
            canvas.paste(image, (GAP_PIXELS + column * step, GAP_PIXELS + axis * step))
    draw = ImageDraw.Draw(canvas)
    top = 3 * (PANEL_PIXELS + GAP_PIXELS) + GAP_PIXELS
    for line in title:
        draw.text((GAP_PIXELS, top), _fit(draw, line, width - 2 * GAP_PIXELS), fill=TEXT)
        top += LINE_PIXELS
    for row in rows:
        for left, value in row:
            colour = COLOURS[value % len(COLOURS)]
            draw.rectangle((left, top, left + 12, top + 12), fill=colour)
            draw.text((left + 18, top), legend[value], fill=TEXT)
        top += LINE_PIXELS
    file = io.BytesIO()
    canvas.save(file, "PNG")
    return file.getvalue()


def _canonical(voxels: Array, grid: Grid) -> tuple[Array, Grid]:
    canonical = Canonical(grid)
    return canonical.from_scan(voxels), canonical.grid


def _bounds(part: Grid, grid: Grid) -> NDArray[np.float64]:
    """[2, 3]: the voxel indices of `grid` at the first and the last outer face of `part`."""
    faces = list(product(*((-0.5, n - 0.5) for n in part.shape)))
    corners = grid.index(part.world_mm(np.array(faces)))
    return np.array([corners.min(axis=0), corners.max(axis=0)])


def _panels(
    grid: Grid, marks: Array, marks_grid: Grid, outlines: Sequence[NDArray[np.float64]]
) -> list[list[_Panel]]:
    """Per axis the panel of the whole scan and the zoomed ones."""
    found = np.argwhere(marks)
    if len(found):
        index = grid.index(marks_grid.world_mm(found))
        low, high = index.min(axis=0), index.max(axis=0)
        points = np.quantile(index, (0.5, *SLICES), axis=0, method="nearest")
    else:
        whole = [np.array([[-0.5] * 3, np.array(grid.shape) - 0.5])]
        low = np.min([first for first, _ in outlines or whole], axis=0)
        high = np.max([last for _, last in outlines or whole], axis=0)
        points = low + np.outer((0.5, *SLICES), high - low)
    longest = max(grid.extent_mm)
    extent = float(((high - low + 1.0) * grid.spacing_mm).max())
    side = min(longest, max(extent * ZOOM_MARGIN, extent + 2 * ZOOM_MARGIN_MM))
    middle = (np.array(grid.shape) - 1) / 2
    rows = []
    for axis in range(3):
        row = []
        for number, point in enumerate(points):
            centre = middle if number == 0 else (low + high) / 2
            centre = np.where(np.arange(3) == axis, point[axis], centre)
            row.append(_Panel(axis, centre, longest if number == 0 else side))
        rows.append(row)
    return rows


def _nearest(volume: Array, grid: Grid, world_mm: NDArray[np.float64]) -> Array:
    """The voxels of `volume` nearest to the positions `world_mm` [..., 3]; zero outside."""
    index = grid.index(world_mm).round().astype(int)
    inside = np.asarray(((index >= 0) & (index < grid.shape)).all(axis=-1))
    i, j, k = np.where(inside[..., None], index, 0).transpose(2, 0, 1)
    return np.where(inside, volume[i, j, k], 0)


def _coloured(grey: Array, labels: Array) -> NDArray[np.uint8]:
    shade = (np.asarray(grey, np.float64) * 255.0)[..., None].repeat(3, axis=-1)
    for value in np.unique(labels[labels != 0]).tolist():
        colour = np.array(COLOURS[(int(value) - 1) % len(COLOURS)], np.float64)
        here = labels == value
        shade[here] = (1.0 - OPACITY) * shade[here] + OPACITY * colour
    return shade.astype(np.uint8)


def _draw_panel(
    draw: ImageDraw, panel: _Panel, grid: Grid, outlines: Sequence[NDArray[np.float64]]
) -> None:
    """Outlines of boxes that the plane cuts, letters at the sides, and the plane's position."""
    for low, high in outlines:
        if low[panel.axis] <= panel.centre[panel.axis] <= high[panel.axis]:
            left, top = panel.pixel(grid, high)
            right, bottom = panel.pixel(grid, low)
            draw.rectangle((left, top, right - 1, bottom - 1), outline=OUTLINE)
    across, up = (AXES[axis] for axis in panel.axes)
    middle, end = PANEL_PIXELS // 2 - 6, PANEL_PIXELS - 14
    name = AXES[panel.axis][0]
    position = grid.world_mm(panel.centre)[panel.axis]
    for at, text in (
        ((3, middle), across[2]),
        ((end + 4, middle), across[1]),
        ((middle + 3, 1), up[2]),
        ((middle + 3, end), up[1]),
        ((3, end), f"{name} {round(position)} mm"),
    ):
        _legible(draw, at, text)


def _legible(draw: ImageDraw, at: tuple[int, int], text: str) -> None:
    """Draws `text` light on a dark rim, for dark and light ground."""
    for shift in product((-1, 0, 1), repeat=2):
        draw.text((at[0] + shift[0], at[1] + shift[1]), text, fill=(0, 0, 0))
    draw.text(at, text, fill=TEXT)


def _legend_rows(legend: Sequence[str], width: int) -> list[list[tuple[int, int]]]:
    """Rows of the legend: the left edge and the number of each text, in as many as they need."""
    from PIL import Image, ImageDraw

    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    rows: list[list[tuple[int, int]]] = []
    left = width
    for value, text in enumerate(legend):
        needed = 40 + int(draw.textlength(text))
        if not rows or left + needed > width:
            rows.append([])
            left = GAP_PIXELS
        rows[-1].append((left, value))
        left += needed
    return rows


def _in_ascii(text: str) -> str:
    """`text` on one line, with what the font does not have as Python's escapes: '\\xfc' for 'ü'."""
    line = "".join(letter if letter.isprintable() else "?" for letter in text)
    return line.encode("ascii", "backslashreplace").decode()


def _fit(draw: ImageDraw, text: str, width: int) -> str:
    """`text` with its middle left out where it is wider than `width` pixels."""
    shown, kept = text, len(text)
    while draw.textlength(shown) > width:
        kept -= 1
        shown = f"{text[: kept - kept // 2]}...{text[len(text) - kept // 2 :]}"
    return shown
