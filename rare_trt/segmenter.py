"""Public entry point: from a scan to labels on its own grid."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from math import ceil, prod
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from rare_trt.backends import Arithmetic, Backend
from rare_trt.constants import POSITION_TOLERANCE
from rare_trt.errors import ScanError, ShapeError
from rare_trt.package.reading import Package, open_package, route_from_entry
from rare_trt.plan.memory import MemoryNeeds, tile_shape, usual_limit
from rare_trt.plan.resampling import (
    ResamplingPlan,
    majority_vote,
    plan_resampling,
    subvoxel_counts,
)
from rare_trt.plan.routing import choose_route
from rare_trt.result import Result
from rare_trt.scan.channels import read_channels
from rare_trt.scan.field_of_view import select_region
from rare_trt.scan.geometry import Array, Grid, Shape, Triple
from rare_trt.scan.intensity import normalise
from rare_trt.scan.nifti import Scan, read_scan
from rare_trt.scan.out_of_distribution import label_statistics, out_of_distribution_flags
from rare_trt.scan.validation import check_channels, check_voxels
from rare_trt.sessions.golden import read_golden_vectors
from rare_trt.sessions.pool import SessionPool
from rare_trt.sessions.run import PreparedScan, run_tiles
from rare_trt.sessions.session import Session
from rare_trt.stopwatch import Stopwatch

# One file with every channel, or one file per channel.
Files: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class Segmenter:
    """A package on a backend, ready to segment scans. Safe to use from several threads.

    Each route's graph or engine is loaded when the first scan needs it, or at once with
    `preload`. Before its first scan on a machine it must reproduce the package's golden vectors,
    or it is refused. With the backend "auto" the next best one is then used, with an
    EngineWarning; a backend requested by name runs or raises BackendError.

    `gpu_memory_limit` bounds the bytes that loaded engines and their working memory take.
    `memory_limit` bounds the bytes of host memory that the process takes while OpenVINO segments
    one scan on one route: larger volumes are cut in tiles. Without it the bound is 8 GiB, or half
    of the machine's memory if that is less.
    `precision` selects one of the precisions that the package offers; a route without it is
    refused with BackendError.
    """

    def __init__(
        self,
        package: Package,
        backend: Backend = "auto",
        *,
        preload: bool = False,
        gpu_memory_limit: int | None = None,
        memory_limit: int | None = None,
        precision: Arithmetic | None = None,
    ) -> None:
        self.package = package
        self._pool = SessionPool(package, backend, gpu_memory_limit, precision)
        self._memory_limit = usual_limit() if memory_limit is None else memory_limit
        self._routes = {entry.index: route_from_entry(entry) for entry in package.manifest.routes}
        if preload:
            try:
                for route in self._routes:
                    self._pool.run(route, lambda session: None)
            except BaseException:
                self.close()
                raise

    @classmethod
    def load(
        cls,
        package: str | os.PathLike[str] = "hippocampus",
        backend: Backend = "auto",
        *,
        preload: bool = False,
        gpu_memory_limit: int | None = None,
        memory_limit: int | None = None,
        precision: Arithmetic | None = None,
        require_signature: str | os.PathLike[str] | None = None,
    ) -> Segmenter:
        """A package that ships with rare-trt, by name, or the one in a folder.

        `require_signature` is a public key in PEM that must have signed it.
        """
        opened = open_package(package, require_signature=require_signature)
        return cls(
            opened,
            backend,
            preload=preload,
            gpu_memory_limit=gpu_memory_limit,
            memory_limit=memory_limit,
            precision=precision,
        )

    def read(self, files: Files) -> Scan:
        """The scan in a NIfTI file that holds every channel of the package, or in several files,
        one per channel in the package's order (`package.manifest.model.channels`).

        Raises ScanError where it cannot be read, or has other channels than the package takes.
        """
        names = self.package.manifest.model.channels
        paths = [files] if isinstance(files, str | os.PathLike) else files
        if len(paths) == 1:
            return read_scan(Path(paths[0]), len(names))
        if len(paths) != len(names):
            takes = (
                f"takes {len(names)}, one per channel ({', '.join(names)}): name them in this order"
            )
            if len(names) == 1:
                takes = f"takes one ({names[0]}): segment scans one by one"
            raise ScanError(f"the scan comes in {len(paths)} files; this package {takes}")
        return read_channels([Path(path) for path in paths])

    def segment(
        self,
        scan: Files | Scan,
        *,
        route: int | None = None,
        at: Triple | None = None,
        spacing_out_mm: float | None = None,
        strict: bool = False,
    ) -> Result:
        """Labels of `scan`: one already read, or files as `read` takes them.

        `route` overrides the choice by spacing. `at` (world mm) segments only a box of the
        trained size around that point; labels outside it are 0. Labels lie on the scan's own
        grid; with `spacing_out_mm` on an isotropic grid along the scan's axes that covers what
        was segmented. Raises ScanError where the scan cannot be segmented as it is; with `strict`
        also where its place in the world is doubtful, or a flag doubts the labels
        (`Result.label_flags`).
        """
        model = self.package.manifest.model
        if strict and model.label_distribution is None:
            raise ScanError(
                "the package does not describe its training distribution, which a strict run "
                "compares labels with: build it again, or leave --strict out"
            )
        clock = Stopwatch()
        with clock("read"):
            if not isinstance(scan, Scan):
                scan = self.read(scan)
            if scan.validated is scan.volume.voxels:
                check_channels(scan.volume.voxels.shape, len(model.channels))
            else:
                check_voxels(scan.volume.voxels, len(model.channels))
            remarks = list(scan.remarks)
            if strict and remarks:
                raise ScanError("; ".join(remarks) + ": look at the scan, or leave --strict out")
        with clock("prepare"):
            region = select_region(scan.volume, model.field_of_view_mm, at)
            decision = choose_route(
                region.grid.spacing_mm, list(self._routes.values()), model.spacing_limits_mm, route
            )
            image = normalise(region.voxels, model.intensity)
            if model.seen is not None:
                remarks += out_of_distribution_flags(
                    image, region.grid, decision.route, model.intensity, model.seen
                )
        with clock("plan"):
            target = region.grid
            if spacing_out_mm is not None:
                target = isotropic_grid(target, spacing_out_mm, model.spacing_limits_mm)
            parts = subvoxel_counts(target, model.base_spacing_mm)
            fine = target.subdivide(parts)
            plan = plan_resampling(region.grid, self._routes[decision.route], fine)

        def run(session: Session) -> NDArray[np.uint8]:
            max_shape = self._max_shape(session, decision.route, plan, scan.volume.voxels, image)
            return run_tiles(session, PreparedScan(image, plan, max_shape), clock)

        session, fine_labels = self._pool.run(decision.route, run, clock)
        with clock("labels"):
            labels = majority_vote(fine_labels, parts, len(model.labels))
            statistics = label_statistics(
                image, region.grid, fine_labels, fine, len(model.labels), model.intensity
            )
            if spacing_out_mm is None:
                own, labels = scan.volume.grid, region.place(labels)
            else:
                own, labels = region.canonical.scan_grid(target), region.canonical.to_scan(labels)
        result = Result(
            labels=labels,
            grid=own,
            scan=scan,
            route=decision,
            backend=session.backend,
            precision=session.precision,
            package=self.package,
            timings_ms=clock.timings_ms,
            volumes_mm3=_volumes_mm3(fine_labels, target, parts, len(model.labels)),
            touches_edge=statistics.touch_edge,
            at_mm=at,
            remarks=tuple(remarks),
            label_statistics=statistics,
        )
        if strict and (flags := result.label_flags()):
            raise ScanError("; ".join(flags) + ": look at the labels, or leave --strict out")
        return result

    def warm(self) -> None:
        """Loads every route and runs a golden vector through it, so that no scan is the first."""
        for route in self._routes:
            vector = next(read_golden_vectors(self.package, route))
            with suppress(ShapeError):
                self._pool.run(route, vector.disagreement)

    @property
    def device_bytes(self) -> int:
        """What loaded engines and their working memory take of the GPU's memory."""
        return self._pool.device_bytes

    def close(self) -> None:
        """Releases all loaded graphs and engines; safe to call twice."""
        self._pool.close()

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _max_shape(
        self, session: Session, route: int, plan: ResamplingPlan, voxels: Array, image: Array
    ) -> Shape:
        """The largest working shape that `session` runs in one piece, for the stored `voxels` of a
        scan and the normalised `image` of its segmented part."""
        entry = self._routes[route]
        if session.bytes_per_voxel is None:
            return entry.max_shape
        classes = len(self.package.manifest.model.labels)
        needs = MemoryNeeds(
            voxels.shape, voxels.itemsize, image.shape, classes, session.bytes_per_voxel
        )
        return tile_shape(plan, entry, needs, self._memory_limit)


def isotropic_grid(grid: Grid, spacing_mm: float, limits_mm: tuple[float, float]) -> Grid:
    """The smallest grid of `spacing_mm` along the axes of `grid` that covers its extent."""
    low, high = limits_mm
    if not low <= spacing_mm <= high:
        raise ScanError(
            f"the output spacing is {spacing_mm:g} mm; this package gives labels at {low:g} "
            f"to {high:g} mm: choose --spacing-out in that range"
        )
    i, j, k = (max(1, ceil(extent / spacing_mm - POSITION_TOLERANCE)) for extent in grid.extent_mm)
    return grid.regrid((spacing_mm, spacing_mm, spacing_mm), (i, j, k))


def _volumes_mm3(
    labels: NDArray[np.uint8], target: Grid, parts: tuple[int, int, int], classes: int
) -> tuple[float, ...]:
    """Volume of each label from 1 up, counted in the `parts` of each voxel of `target`."""
    voxel = prod(target.spacing_mm) / prod(parts)
    return tuple(np.count_nonzero(labels == label) * voxel for label in range(1, classes))
