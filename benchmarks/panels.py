"""Pictures of several answers, one below the other."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image


def save_panels(panels: Sequence[bytes], path: Path) -> None:
    """Writes PNG pictures of one width as one picture."""
    images = [Image.open(io.BytesIO(panel)) for panel in panels]
    canvas = Image.new("RGB", (images[0].width, sum(image.height for image in images)))
    top = 0
    for image in images:
        canvas.paste(image, (0, top))
        top += image.height
    canvas.save(path)
