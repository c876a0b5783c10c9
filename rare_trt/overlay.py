"""The segmentation over its scan in three planes, as a PNG file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rare_trt.scan.geometry import Array, Canonical, Grid, Volume

PANEL_PIXELS: Final = 320
GAP_PIXELS: Final = 8
LEGEND_PIXELS: Final = 44
OPACITY: Final = 0.55

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


def picture_png(scan: Volume, labels: Volume, title: str, legend: Sequence[str]) -> bytes:
    """Sagittal, coronal and axial planes of `scan` through the centre of `labels`, as PNG.

    Up is superior (anterior in the axial plane) and the patient's right is on the left, as
    radiologists read. Each plane is shown in millimetres, independent of the voxels' proportions.
    `legend` has one text per label from 1 up.
    """
    from PIL import Image, ImageDraw

    voxels = scan.voxels[..., 0] if scan.voxels.ndim == 4 else scan.voxels
    grey, grid = _canonical(voxels, scan.grid)
    marks, marks_grid = _canonical(labels.voxels, labels.grid)
    low, high = np.percentile(grey, (1.0, 99.5))
    grey = np.clip((grey - low) / ((high - low) or 1.0), 0.0, 1.0)
    found = np.argwhere(marks)
    index = found.mean(axis=0) if len(found) else (np.array(marks.shape) - 1) / 2
    centre = marks_grid.world_mm(index)
    longest = max(grid.extent_mm)
    width = 3 * PANEL_PIXELS + 4 * GAP_PIXELS
    canvas = Image.new("RGB", (width, PANEL_PIXELS + LEGEND_PIXELS + 2 * GAP_PIXELS))
    for axis in range(3):
        plane = _coloured(
            _plane(grey, grid, centre, axis, longest),
            _plane(marks, marks_grid, centre, axis, longest, grid),
        )
        left = GAP_PIXELS + axis * (PANEL_PIXELS + GAP_PIXELS)
        canvas.paste(Image.fromarray(plane), (left, GAP_PIXELS))
    draw = ImageDraw.Draw(canvas)
    top = PANEL_PIXELS + 2 * GAP_PIXELS
    draw.text((GAP_PIXELS, top), title, fill=(220, 220, 220))
    left = GAP_PIXELS
    for value, text in enumerate(legend):
        colour = COLOURS[value % len(COLOURS)]
        draw.rectangle((left, top + 22, left + 12, top + 34), fill=colour)
        draw.text((left + 18, top + 22), text, fill=(220, 220, 220))
        left += 40 + int(draw.textlength(text))
    file = io.BytesIO()
    canvas.save(file, "PNG")
    return file.getvalue()


def _canonical(voxels: Array, grid: Grid) -> tuple[Array, Grid]:
    canonical = Canonical(grid)
    return canonical.from_scan(voxels), canonical.grid


def _plane(
    volume: Array,
    grid: Grid,
    centre_mm: NDArray[np.float64],
    axis: int,
    longest_mm: float,
    frame: Grid | None = None,
) -> Array:
    """Nearest voxels of `volume` in the plane through `centre_mm` across `axis`, on the pixels of
    a square panel that shows `frame` (default: `grid`) centred; zero outside."""
    frame = frame or grid
    across, up = [other for other in range(3) if other != axis]
    offset = ((np.arange(PANEL_PIXELS) + 0.5) / PANEL_PIXELS - 0.5) * longest_mm
    middle = (np.array(frame.shape) - 1) / 2
    index = np.empty((PANEL_PIXELS, PANEL_PIXELS, 3))
    index[..., axis] = frame.index(centre_mm)[axis]
    # The first pixel is the patient's right (anterior, seen sagittally) and the top is superior.
    index[..., across] = (middle[across] - offset / frame.spacing_mm[across])[None, :]
    index[..., up] = (middle[up] - offset / frame.spacing_mm[up])[:, None]
    index = grid.index(frame.world_mm(index)).round().astype(int)
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
