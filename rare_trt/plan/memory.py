"""What segmenting a scan takes of the host's memory, and the tiles that keep it within a limit."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from math import ceil, inf, prod
from typing import Any, Final

from rare_trt.backends import NEEDS_BF16, Arithmetic
from rare_trt.constants import (
    BYTES_PER_FILTER,
    BYTES_PER_FILTER_BF16,
    FIXED_BYTES,
    LOGIT_BYTES,
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
        raise ValueError(
            f"{text!r} is not an amount of memory; expected bytes or, say, 512MiB or 4GiB"
        )
    return int(count)


def bytes_per_voxel(network: Mapping[str, Any], route: int, computed: Arithmetic) -> float | None:
    """What OpenVINO takes at its peak per working voxel of `route`; None for an unknown network."""
    filters = network.get("filters")
    if not isinstance(filters, int):
        return None
    per_filter = BYTES_PER_FILTER_BF16 if computed in NEEDS_BF16 else BYTES_PER_FILTER
    return float(filters << route) * per_filter


@dataclass(frozen=True)
class MemoryNeeds:
    """What segmenting one scan takes: stored voxels of shape `scan` [i, j, k, ...] and `itemsize`
    bytes each, a normalised image of shape `image` [c, i, j, k], labels in `classes`, and
    `bytes_per_voxel` per working voxel of a run."""

    scan: tuple[int, ...]
    itemsize: int
    image: tuple[int, ...]
    classes: int
    bytes_per_voxel: float

    def resident(self, plan: ResamplingPlan) -> int:
        """Bytes that stay in memory beside a run."""
        # Stored in two orders, the image, and the labels of the output grid and of the scan.
        output = prod(plan.output_shape)
        arrays = prod(self.scan) * 2 * self.itemsize + prod(self.image) * 4
        return FIXED_BYTES + arrays + output + max(output, prod(self.scan[:3]))

    def preparing(self) -> int:
        """Bytes that normalising takes for a moment, beside what stays."""
        return prod(self.image[1:]) * PREPARED_BYTES

    def per_voxel(self, plan: ResamplingPlan) -> float:
        """Bytes of a run per working voxel, the logits of a finer output grid included."""
        finer = prod(plan.output_shape) / prod(plan.working_shape) - 1.0
        return self.bytes_per_voxel + max(0.0, finer) * LOGIT_BYTES * self.classes


def tile_shape(plan: ResamplingPlan, route: Route, needs: MemoryNeeds, limit: int) -> Shape:
    """The working shape that a run may have so that the whole process stays within `limit` bytes.

    The whole volume where it fits, else the tiles that cost least, none smaller than the route's
    `max_shape`. Raises ScanError where not even the smallest tiles fit.
    """
    resident, per_voxel = needs.resident(plan), needs.per_voxel(plan)
    preparing = resident + needs.preparing()
    if max(preparing, resident + prod(plan.working_shape) * per_voxel) <= limit:
        return plan.working_shape
    axes = [_axis_choices(plan, route, axis) for axis in range(3)]
    smallest = prod(sizes[0] for sizes in axes)
    needed = ceil(max(preparing, resident + smallest * per_voxel))
    if needed > limit:
        raise ScanError(
            f"segmenting this scan takes {_mib(needed)} in the smallest tiles; the memory limit is "
            f"{_mib(limit)}: allow more with --memory-limit (memory_limit), or segment a part of "
            "the scan with --at"
        )
    fitting = [shape for shape in product(*axes) if resident + prod(shape) * per_voxel <= limit]
    i, j, k = min(fitting, key=lambda shape: (_work(plan, shape), *shape))
    return i, j, k


def _axis_choices(plan: ResamplingPlan, route: Route, axis: int) -> list[int]:
    """Sizes of a tile along `axis`, ascending: for each number of tiles the least that will do."""
    whole = plan.working_shape[axis]
    sizes = range(route.max_shape[axis], whole, route.multiple)
    least: dict[int, int] = {}
    for size in sizes:
        least.setdefault(tile_count(plan.core[axis], size), size)
    return sorted({min(whole, route.max_shape[axis]), *least.values(), whole})


def _work(plan: ResamplingPlan, shape: tuple[int, ...]) -> int:
    """Working voxels that are run in tiles of `shape`, overlap included."""
    return prod(
        size if size >= whole else size * tile_count(core, size)
        for size, whole, core in zip(shape, plan.working_shape, plan.core, strict=True)
    )


def _mib(count: int) -> str:
    return f"{ceil(count / MIB)} MiB"
