"""Latency by route and stage, as a PNG file."""

from __future__ import annotations

import io
from typing import Final

from rare_trt.bench.benchmark import Bench, Warm
from rare_trt.overlay import COLOURS

WIDTH: Final = 900
LEFT: Final = 210
RIGHT: Final = 170
ROW: Final = 34
BAR: Final = 20
TOP: Final = 44

INK: Final = (40, 40, 40)
PAPER: Final = (255, 255, 255)
OTHER: Final = (150, 150, 150)


def latency_png(found: Bench) -> bytes:
    """One bar per route and precision: its stages' medians side by side, p50 and p99 in figures."""
    from PIL import Image, ImageDraw

    names = list(found.warm[0].stages)
    colours = dict(zip(names, (*COLOURS, (0, 0, 0), OTHER), strict=True))
    longest = max(sum(stage.p50 for stage in warm.stages.values()) for warm in found.warm)
    height = TOP + ROW * (len(found.warm) + 1)
    canvas = Image.new("RGB", (WIDTH, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    title = f"{found.package}: milliseconds from file to file, warm ({found.machine['cpu']})"
    draw.text((12, 14), title, fill=INK)
    for place, warm in enumerate(found.warm):
        top = TOP + ROW * place
        draw.text((12, top + 4), row_name(warm), fill=INK)
        left = float(LEFT)
        for name, stage in warm.stages.items():
            right = left + stage.p50 / longest * (WIDTH - LEFT - RIGHT)
            draw.rectangle((left, top, right, top + BAR), fill=colours[name])
            left = right
        figures = f"{warm.repeated.p50:.1f}  (p99 {warm.repeated.p99:.1f})"
        draw.text((left + 8, top + 4), figures, fill=INK)
    left, top = 12.0, TOP + ROW * len(found.warm)
    for name in names:
        draw.rectangle((left, top + 4, left + 12, top + 16), fill=colours[name])
        draw.text((left + 18, top + 4), name, fill=INK)
        left += 36 + draw.textlength(name)
    file = io.BytesIO()
    canvas.save(file, "PNG")
    return file.getvalue()


def row_name(warm: Warm) -> str:
    """What was measured: route, backend and precision."""
    return f"route {warm.route}, {warm.backend} {warm.precision}"
