"""From a scan to labels on its own grid: the library's door."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import ceil, prod
from pathlib import Path
from threading import Lock
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from rare_trt._version import VERSION
from rare_trt.cache import Cache
from rare_trt.errors import BackendError, ScanError
from rare_trt.field_of_view import region_of
from rare_trt.geometry import Grid, Triple
from rare_trt.intensity import normalised
from rare_trt.manifest import GoldenEntry
from rare_trt.nifti import Scan, check_voxels, read_scan, scan_from_bytes
from rare_trt.package import Package, open_package
from rare_trt.planning import (
    BUCKET,
    TOLERANCE,
    Plan,
    Tile,
    answer_parts,
    largest_share,
    plan,
    tiles,
)
from rare_trt.result import Result
from rare_trt.routing import choose_route
from rare_trt.sessions import Backend, Inputs, Session, open_session
from rare_trt.stopwatch import Stopwatch


class Segmenter:
    """A package on a backend, ready to segment scans. Safe to use from several threads.

    Each route's graph is loaded when the first scan needs it. Before its first answer on a
    machine it must reproduce the package's golden vectors, or it is refused.
    """

    def __init__(self, package: Package, backend: Backend = "auto") -> None:
        self.package = package
        self._backend: Backend = backend
        self._cache = Cache()
        self._sessions: dict[int, Session] = {}
        self._opening = Lock()
        self._routes = {entry.index: entry.route() for entry in package.manifest.routes}

    @classmethod
    def load(
        cls, package: str | os.PathLike[str] = "hippocampus", backend: Backend = "auto"
    ) -> Segmenter:
        """A package that ships with rare-trt, by name, or the one in a folder."""
        return cls(open_package(package), backend)

    def segment(
        self,
        scan: str | os.PathLike[str] | Scan,
        *,
        route: int | None = None,
        at: Triple | None = None,
        spacing_out_mm: float | None = None,
    ) -> Result:
        """Labels of `scan`, a NIfTI file or one already read.

        `route` overrides the choice by spacing. `at` (world mm) segments only a box of the
        trained size around that point; labels outside it are 0. Labels lie on the scan's own
        grid; with `spacing_out_mm` on an isotropic grid along the scan's axes that covers what
        was segmented. Raises ScanError where the scan cannot be segmented as it is.
        """
        model = self.package.manifest.model
        clock = Stopwatch()
        with clock("read"):
            if isinstance(scan, Scan):
                check_voxels(scan.volume.voxels, len(model.channels))
            else:
                scan = read_scan(Path(scan), len(model.channels))
        with clock("prepare"):
            region = region_of(scan.volume.grid, model.field_of_view_mm, at)
            decision = choose_route(
                region.grid.spacing_mm, list(self._routes.values()), model.spacing_limits_mm, route
            )
            image = normalised(region.cut(scan.volume.voxels), model.intensity)
        with clock("plan"):
            target = region.grid
            if spacing_out_mm is not None:
                target = isotropic_grid(target, spacing_out_mm, model.spacing_limits_mm)
            parts = answer_parts(target, model.base_spacing_mm)
            steps = plan(region.grid, self._routes[decision.route], target.subdivided(parts))
        with clock("load"):
            session = self._session(decision.route)
        answer = self._run(session, decision.route, image, steps, clock)
        with clock("labels"):
            labels = largest_share(answer, parts, len(model.labels))
            touches_edge = _touches_edge(labels)
            if spacing_out_mm is None:
                own, labels = scan.volume.grid, region.placed(labels)
            else:
                own, labels = region.canonical.scan_grid(target), region.canonical.to_scan(labels)
        return Result(
            labels=labels,
            grid=own,
            scan=scan,
            route=decision,
            backend=session.backend,
            precision=session.precision,
            package=self.package,
            timings_ms=clock.timings_ms,
            volumes_mm3=_volumes_mm3(answer, target, parts, len(model.labels)),
            touches_edge=touches_edge,
            at_mm=at,
        )

    def close(self) -> None:
        """Lets go of all loaded graphs."""
        self._sessions.clear()

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _session(self, route: int) -> Session:
        with self._opening:
            if route not in self._sessions:
                session = open_session(self.package, route, self._backend, self._cache)
                self._prove(session, route)
                self._sessions[route] = session
            return self._sessions[route]

    def _run(
        self,
        session: Session,
        route: int,
        image: NDArray[np.float32],
        steps: Plan,
        clock: Stopwatch,
    ) -> NDArray[np.uint8]:
        answer = np.zeros(steps.output_shape, np.uint8)
        for tile in tiles(steps, self._routes[route].max_shape):
            with clock("inputs"):
                inputs = graph_inputs(image, tile)
            with clock("graph"):
                labels = session.run(inputs)
            i, j, k = (len(matrix) for matrix in tile.out_matrices)
            answer[tile.output] = labels[:i, :j, :k]
        return answer

    def _prove(self, session: Session, route: int) -> None:
        """Holds `session` to the golden vectors of `route`, once per machine."""
        vectors = [golden for golden in self.package.manifest.golden if golden.route == route]
        # The manifest names everything else that the answer hangs on, the vectors included.
        key = (session.identity, self.package.manifest_sha256, str(route), VERSION)
        if self._cache.load("proved", *key) is not None:
            return
        for vector in vectors:
            self._prove_one(session, vector)
        self._cache.store(b"", "proved", *key)

    def _prove_one(self, session: Session, vector: GoldenEntry) -> None:
        model = self.package.manifest.model
        scan = scan_from_bytes(
            self.package.read(vector.scan), vector.scan, len(model.channels)
        ).volume
        truth = scan_from_bytes(self.package.read(vector.labels), vector.labels).volume
        image = normalised(scan.voxels, model.intensity)
        steps = plan(scan.grid, self._routes[vector.route], truth.grid)
        answer = self._run(session, vector.route, image, steps, Stopwatch())
        share = float((answer != truth.voxels).mean())
        bound = vector.max_disagreement[session.precision]
        if not share <= bound:
            raise BackendError(
                f"{session.backend} {session.precision} gives {share:.2%} other labels than the "
                f"package's golden vector {vector.scan} (at most {bound:.2%} may differ): this "
                "machine's answers cannot be trusted; report its CPU and versions"
            )


def isotropic_grid(grid: Grid, spacing_mm: float, limits_mm: tuple[float, float]) -> Grid:
    """The smallest grid of `spacing_mm` along the axes of `grid` that covers its extent."""
    low, high = limits_mm
    if not low <= spacing_mm <= high:
        raise ScanError(
            f"the output spacing is {spacing_mm:g} mm; this package answers at {low:g} to "
            f"{high:g} mm: mend --spacing-out"
        )
    i, j, k = (max(1, ceil(extent / spacing_mm - TOLERANCE)) for extent in grid.extent_mm)
    return grid.regridded((spacing_mm, spacing_mm, spacing_mm), (i, j, k))


def graph_inputs(image: NDArray[np.float32], tile: Tile) -> Inputs:
    """What the graph takes for one tile of `image` [c, i, j, k]; axes are padded to buckets."""
    slab = image[(slice(None), *tile.image)]
    i, j, k = tile.in_matrices
    oi, oj, ok = tile.out_matrices
    inputs: Inputs = {"image": _padded(slab, (1, 2, 3))[None]}
    inputs |= {"in_i": _padded(i, (1,)), "in_j": _padded(j, (1,)), "in_k": _padded(k, (1,))}
    return inputs | {
        "out_i": _padded(oi, (0,)),
        "out_j": _padded(oj, (0,)),
        "out_k": _padded(ok, (0,)),
    }


def _padded(array: NDArray[np.float32], axes: Sequence[int]) -> NDArray[np.float32]:
    shape = list(array.shape)
    for axis in axes:
        shape[axis] += -shape[axis] % BUCKET
    padded = np.zeros(shape, np.float32)
    padded[tuple(slice(0, n) for n in array.shape)] = array
    return padded


def _volumes_mm3(
    answer: NDArray[np.uint8], target: Grid, parts: tuple[int, int, int], classes: int
) -> tuple[float, ...]:
    """Volume of each label from 1 up, counted on the answer's own grid."""
    voxel = prod(target.spacing_mm) / prod(parts)
    return tuple(np.count_nonzero(answer == label) * voxel for label in range(1, classes))


def _touches_edge(labels: NDArray[np.uint8]) -> bool:
    outer = (0, -1)
    return bool(labels[outer, :, :].any() or labels[:, outer].any() or labels[:, :, outer].any())
