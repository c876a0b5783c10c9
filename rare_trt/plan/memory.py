"""What segmenting a scan takes of the host's memory, and the tiles that keep it within a limit."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from itertools import product
from math import ceil, inf, prod
from typing import Any, Final

from rare_trt.backends import Arithmetic, needs_bf16
from rare_trt.constants import (
    LOGIT_BYTES,
    BYTES_PER_FILTER,
    BYTES_PER_FILTER_BF16,
    FIXED_BYTES,
    MEMORY_LIMIT_BYTES,
    PREPARED_BYTES,
)
from rare_trt.errors import ScanError
from rare_trt.plan.resampling import ResamplingPlan, tile_count
from rare_trt.plan.routing import Route
from rare_trt.scan.geometry import Shape

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
UNITS: Final[Mapping[str, int]] = {"": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB}


def usual_limit() -> int:
    """The limit where none was set: MEMORY_LIMIT_BYTES, or half of the machine's memory if less."""
    if not hasattr(os, "sysconf"):
        return MEMORY_LIMIT_BYTES
    return min(MEMORY_LIMIT_BYTES, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)


def bytes_of(text: str) -> int:
    """Bytes from a number with or without a unit: 500000000, 512MiB, 4GiB; ValueError otherwise."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(KiB|MiB|GiB)?", text.strip())
    count = 0.0 if found is None else float(found[1]) * UNITS[found[2] or ""]
    if not 0.0 < count < inf:
        raise ValueError(f"{text!r} is no amount of memory; expected bytes or, say, 512MiB or 4GiB")
    return int(count)


def bytes_per_voxel(network: Mapping[str, Any], route: int, computed: Arithmetic) -> float | None:
    """What OpenVINO takes at its peak per working voxel of `route`; None for an unknown network."""
    filters = network.get("filters")
    if not isinstance(filters, int):
        return None
    per_filter = BYTES_PER_FILTER_BF16 if needs_bf16(computed) else BYTES_PER_FILTER
    return float(filters << route) * per_filter


def tile_shape(
    steps: ResamplingPlan,
    route: Route,
    per_voxel: float,
    scan: tuple[int, ...],
    stored: int,
    shown: tuple[int, ...],
    classes: int,
    limit: int,
) -> Shape:
    """The working shape that a run may have so that the whole process stays within `limit` bytes.

    The whole volume where it fits, else the tiles that cost least, none smaller than the route's
    `max_shape`. `per_voxel` is what a run takes per working voxel; `scan` is the scan's shape
    [i, j, k, ...] with `stored` bytes per voxel, `shown` the shape [c, i, j, k] of what is
    segmented of it, in `classes`. Raises ScanError where not even the smallest tiles fit.
    """
    # Stored in two orders, and what is shown normalised; labels of the answer and of the scan.
    whole, answer = steps.working_shape, prod(steps.output_shape)
    per_voxel += max(0.0, answer / prod(whole) - 1.0) * LOGIT_BYTES * classes
    held = FIXED_BYTES + prod(scan) * 2 * stored + prod(shown) * 4
    held += answer + max(answer, prod(scan[:3]))
    preparing = held + prod(shown[1:]) * PREPARED_BYTES
    if max(preparing, held + prod(whole) * per_voxel) <= limit:
        return whole
    axes = [_axis_choices(steps, route, axis) for axis in range(3)]
    least = prod(sizes[0] for sizes in axes)
    needed = ceil(max(preparing, held + least * per_voxel))
    if needed > limit:
        raise ScanError(
            f"segmenting this scan takes {_mib(needed)} in the smallest tiles; the memory limit is "
            f"{_mib(limit)}: allow more with --memory-limit (memory_limit), or segment a part of "
            "the scan with --at"
        )
    fitting = [shape for shape in product(*axes) if held + prod(shape) * per_voxel <= limit]
    i, j, k = min(fitting, key=lambda shape: (_work(steps, shape), *shape))
    return i, j, k


def _axis_choices(steps: ResamplingPlan, route: Route, axis: int) -> list[int]:
    """Sizes of a tile along `axis`, ascending: for each number of tiles the least that will do."""
    whole = steps.working_shape[axis]
    sizes = range(route.max_shape[axis], whole, route.multiple)
    least: dict[int, int] = {}
    for size in sizes:
        least.setdefault(tile_count(steps.core[axis], size), size)
    return sorted({min(whole, route.max_shape[axis]), *least.values(), whole})


def _work(steps: ResamplingPlan, shape: tuple[int, ...]) -> int:
    """Working voxels that are run in tiles of `shape`, overlap included."""
    return prod(
        size if size >= whole else size * tile_count(core, size)
        for size, whole, core in zip(shape, steps.working_shape, steps.core, strict=True)
    )


def _mib(count: int) -> str:
    return f"{ceil(count / MIB)} MiB"
