"""Public entry point: from a scan to labels on its own grid."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from math import ceil, prod
from numbers import Real
from operator import index
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
from rare_trt.result import Result, SegmentedBox
from rare_trt.scan.channels import read_channels
from rare_trt.scan.field_of_view import box_grid, join_boxes, select_regions, world_points
from rare_trt.scan.geometry import Array, Grid, Shape, Slices
from rare_trt.scan.intensity import normalise
from rare_trt.scan.nifti import Scan, read_scan, refuse_labels
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
    refused with BackendError. `threads` bounds the threads that OpenVINO computes with; without it
    RARE_TRT_THREADS does, or the CPUs that this process may use, a container's quota included.

    A process that is forked after the first scan cannot segment: BackendError says so.
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
        threads: int | None = None,
    ) -> None:
        memory_limit = whole_number("memory_limit", memory_limit)
        gpu_memory_limit = whole_number("gpu_memory_limit", gpu_memory_limit)
        self.package = package
        self._pool = SessionPool(package, backend, gpu_memory_limit, precision, threads)
        self._arguments: dict[str, Any] = {
            "package": package,
            "backend": backend,
            "gpu_memory_limit": gpu_memory_limit,
            "memory_limit": memory_limit,
            "precision": precision,
            "threads": threads,
        }
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
        threads: int | None = None,
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
            threads=threads,
        )

    def __reduce__(self) -> tuple[partial[Segmenter], tuple[()]]:
        """Pickles as the package and the options: another process loads it afresh."""
        self._pool.check_open()
        return partial(type(self), **self._arguments), ()

    def __repr__(self) -> str:
        """The package's name and folder, and the backend that was requested."""
        name, backend = self.package.manifest.name, self._arguments["backend"]
        return f"Segmenter({name!r} in {str(self.package.folder)!r}, backend {backend!r})"

    def read(self, files: Files) -> Scan:
        """The scan in a NIfTI file that holds every channel of the package, or in several files,
        one per channel in the package's order (`package.manifest.model.channels`).

        Raises ScanError where it cannot be read, or has other channels than the package takes.
        """
        names = self.package.manifest.model.channels
        paths = _paths(files)
        if paths is None:
            raise TypeError(
                f"the files are of the type {type(files).__name__}; expected a path, or one path "
                "per channel"
            )
        if len(paths) == 1:
            return read_scan(paths[0], len(names))
        if len(paths) != len(names):
            takes = (
                f"takes {len(names)}, one per channel ({', '.join(names)}): name them in this order"
            )
            if len(names) == 1:
                takes = f"takes one ({names[0]}): segment scans one by one"
            raise ScanError(f"the scan comes in {len(paths)} files; this package {takes}")
        return read_channels(paths)

    def segment(
        self,
        scan: Any,
        *,
        affine: ArrayLike | None = None,
        route: int | None = None,
        at: ArrayLike | None = None,
        at_voxel: ArrayLike | None = None,
        spacing_out_mm: float | None = None,
        strict: bool = False,
    ) -> Result:
        """Labels of `scan`: one already read, files as `read` takes them, an image of nibabel or
        SimpleITK, or an array or tensor [i, j, k] or [i, j, k, channel] and its `affine`, the 4x4
        matrix from voxel index to world mm (right, anterior, superior).

        `route` overrides the choice by spacing. `at` (world mm) segments only a box of the
        trained size around that point, or around each of several, [point, 3]; `at_voxel` the same
        around voxels of the scan's stored axes. Labels outside the boxes are 0; where boxes
        overlap those of the box with the nearest centre are taken. Labels lie on the scan's own
        grid; with `spacing_out_mm` on an isotropic grid along the scan's axes that covers what
        was segmented. Raises ScanError where the scan cannot be segmented as it is; with `strict`
        also where its place in the world is doubtful, or a flag doubts the labels
        (`Result.label_flags`). Raises TypeError where an argument is of another type.
        """
        model = self.package.manifest.model
        self._pool.check_open()
        route = whole_number("route", route)
        spacing_out_mm = real_number("spacing_out_mm", spacing_out_mm)
        if strict and model.label_distribution is None:
            raise ScanError(
                "the package does not describe its training distribution, which a strict run "
                "compares labels with: build it again, or leave --strict out"
            )
        clock = Stopwatch()
        with clock("read"):
            scan = self._checked(scan, affine)
            points = world_points(scan.volume.grid, at, at_voxel)
            if strict and scan.remarks:
                doubts = "; ".join(scan.remarks)
                raise ScanError(f"{doubts}: look at the scan, or leave --strict out")
        with clock("prepare"):
            regions = select_regions(scan.volume, model.field_of_view_mm, points)
            # Boxes of one scan have its spacing.
            decision = choose_route(
                regions[0].grid.spacing_mm,
                list(self._routes.values()),
                model.spacing_limits_mm,
                route,
            )
            images = [normalise(region.voxels, model.intensity) for region in regions]
            remarks = [
                self._remarks(image, region.grid, decision.route)
                for image, region in zip(images, regions, strict=True)
            ]
        with clock("plan"):
            canonical, target = regions[0].canonical, regions[0].canonical.grid
            boxes = [region.box for region in regions]
            if spacing_out_mm is not None:
                covered = box_grid(target, _hull(boxes))
                target = isotropic_grid(covered, spacing_out_mm, model.spacing_limits_mm)
                boxes = [_box_in(region.grid, target) for region in regions]
            parts = subvoxel_counts(target, model.base_spacing_mm)
            fine_grids = [box_grid(target, box).subdivide(parts) for box in boxes]
            plans = [
                plan_resampling(region.grid, self._routes[decision.route], fine)
                for region, fine in zip(regions, fine_grids, strict=True)
            ]

        def run(session: Session) -> list[NDArray[np.uint8]]:
            fine = []
            for plan, image in zip(plans, images, strict=True):
                shape = self._max_shape(session, decision.route, plan, scan.volume.voxels, image)
                fine.append(run_tiles(session, PreparedScan(image, plan, shape), clock))
            return fine

        session, fine_labels = self._pool.run(decision.route, run, clock)
        classes = len(model.labels)
        with clock("labels"):
            labels = [majority_vote(fine, parts, classes) for fine in fine_labels]
            joined = join_boxes(target, boxes, labels)
            own_labels = canonical.to_scan(joined.labels)
            statistics = [
                label_statistics(image, region.grid, found, fine, classes, model.intensity)
                for image, region, found, fine in zip(
                    images, regions, fine_labels, fine_grids, strict=True
                )
            ]
        voxel_mm3 = prod(target.spacing_mm) / prod(parts)
        counts = [count_labels(fine, classes) for fine in fine_labels]
        owned = [
            of_box if mask is None else count_labels(_inside(fine, mask, parts), classes)
            for of_box, fine, mask in zip(counts, fine_labels, joined.owned, strict=True)
        ]
        result = Result(
            labels=own_labels,
            grid=scan.volume.grid if spacing_out_mm is None else canonical.scan_grid(target),
            scan=scan,
            route=decision,
            backend=session.backend,
            precision=session.precision,
            package=self.package,
            timings_ms=clock.timings_ms,
            volumes_mm3=self._volumes_mm3(map(sum, zip(*owned, strict=True)), voxel_mm3),
            boxes=tuple(
                SegmentedBox(
                    at_mm=region.at_mm,
                    part=canonical.scan_slices(box, target.shape),
                    volumes_mm3=self._volumes_mm3(of_box, voxel_mm3),
                    label_statistics=of_labels,
                    remarks=tuple(of_remarks),
                )
                for region, box, of_box, of_labels, of_remarks in zip(
                    regions, boxes, counts, statistics, remarks, strict=True
                )
            ),
            disputes=tuple(joined.disputes),
        )
        if strict and (flags := result.label_flags):
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

    def _checked(self, given: Any, affine: Any) -> Scan:
        """The scan, from files, memory or another library, with voxels that passed validation."""
        channels = len(self.package.manifest.model.channels)
        paths = _paths(given)
        if affine is not None and (paths is not None or isinstance(given, Scan)):
            raise TypeError(
                "affine goes with an array of voxels; this scan has its own: leave it out"
            )
        if paths is not None:
            scan = self.read(paths)
        elif isinstance(given, Scan):
            scan = given
        else:
            # Not on the path of files.
            from rare_trt.scan.arrays import scan_from_memory

            scan = scan_from_memory(given, affine, channels)
        refuse_labels(scan.header)
        if scan.validated is scan.volume.voxels:
            check_channels(scan.volume.voxels.shape, channels)
        else:
            check_voxels(scan.volume.voxels, channels)
        return scan

    def _remarks(self, image: Array, grid: Grid, route: int) -> list[str]:
        """How a normalised `image` on `grid` differs from those of training."""
        model = self.package.manifest.model
        if model.seen is None:
            return []
        return out_of_distribution_flags(image, grid, route, model.intensity, model.seen)

    def _volumes_mm3(self, counts: Iterable[int], voxel_mm3: float) -> dict[str, float]:
        """The volume of each label from 1 up, by its name."""
        names = self.package.manifest.model.labels[1:]
        return {name: count * voxel_mm3 for name, count in zip(names, counts, strict=True)}

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


def whole_number(name: str, value: Any) -> int | None:
    """`value` as an int, also one of NumPy's, or None; raises TypeError where it is neither."""
    try:
        return None if value is None else index(value)
    except TypeError as error:
        raise TypeError(f"{name} is {value!r}; expected a whole number or None") from error


def real_number(name: str, value: Any) -> float | None:
    """`value` as a float, also one of NumPy's, or None; raises TypeError where it is neither."""
    if value is not None and not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}; expected a number or None")
    return None if value is None else float(value)


def count_labels(labels: NDArray[np.uint8], classes: int) -> list[int]:
    """How many voxels have each label from 1 up."""
    return [int(np.count_nonzero(labels == label)) for label in range(1, classes)]


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


def _paths(files: Any) -> list[str | os.PathLike[str]] | None:
    """One path, or several, as a list; None for anything else."""
    paths = [files] if isinstance(files, str | os.PathLike) else files
    if not isinstance(paths, list | tuple):
        return None
    return list(paths) if all(isinstance(path, str | os.PathLike) for path in paths) else None


def _inside(fine: NDArray[np.uint8], mask: NDArray[np.bool_], parts: Shape) -> NDArray[np.uint8]:
    """`fine` labels, 0 in the `parts` of each voxel outside the `mask`."""
    for axis, count in enumerate(parts):
        mask = mask.repeat(count, axis)
    return np.where(mask, fine, np.uint8(0))


def _hull(boxes: Sequence[Slices]) -> Slices:
    """The smallest box that holds all `boxes`."""
    i, j, k = (
        slice(min(part.start for part in parts), max(part.stop for part in parts))
        for parts in zip(*boxes, strict=True)
    )
    return i, j, k


def _box_in(region: Grid, target: Grid) -> Slices:
    """The voxels of `target`, a grid along the same axes, that reach into `region`."""
    faces = region.world_mm(np.array([[-0.5] * 3, np.array(region.shape) - 0.5]))
    low, high = target.index(faces) + 0.5
    start = np.maximum(np.floor(low + POSITION_TOLERANCE), 0).astype(int).tolist()
    stop = np.minimum(np.ceil(high - POSITION_TOLERANCE), target.shape).astype(int).tolist()
    i, j, k = map(slice, start, stop)
    return i, j, k
