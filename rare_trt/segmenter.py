"""From a scan to labels on its own grid: the library's door."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import ceil, prod
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from rare_trt.backends import Arithmetic, Backend
from rare_trt.constants import POSITION_TOLERANCE
from rare_trt.errors import BackendError, EngineWarning, ScanError, ShapeError
from rare_trt.package.reading import Package, open_package
from rare_trt.plan.memory import tile_shape, usual_limit
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
from rare_trt.scan.out_of_distribution import out_of_distribution_flags
from rare_trt.scan.validation import check_channels, check_voxels
from rare_trt.sessions.candidates import Candidate, SessionCandidates
from rare_trt.sessions.golden import check_golden_vectors_once, read_golden_vectors
from rare_trt.sessions.run import PreparedScan, run_tiles
from rare_trt.sessions.session import Session
from rare_trt.stopwatch import Stopwatch
from rare_trt.storage.cache import Cache

Answer = TypeVar("Answer")

# One file with every channel, or one file per channel.
Files: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class Segmenter:
    """A package on a backend, ready to segment scans. Safe to use from several threads.

    Each route's graph or engine is loaded when the first scan needs it, or at once with
    `preload`. Before its first answer on a machine it must reproduce the package's golden vectors,
    or it is refused. With the backend "auto" the next best one then answers, with an
    EngineWarning; a backend asked for by name answers or raises BackendError.

    `gpu_memory_limit` bounds the bytes that loaded engines and their working memory take.
    `memory_limit` bounds the bytes of host memory that the process takes while OpenVINO segments
    one scan on one route: larger volumes are cut in tiles. Without it the bound is 8 GiB, or half
    of the machine's memory if that is less.
    `precision` asks for one of the precisions that the package offers; a route without it is
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
        self._cache = Cache()
        self._choice = SessionCandidates(package, backend, self._cache, gpu_memory_limit, precision)
        self._memory_limit = usual_limit() if memory_limit is None else memory_limit
        self._candidates: dict[int, list[Candidate]] = {}
        self._sessions: dict[Candidate, Session] = {}
        self._opening = Lock()
        self._routes = {entry.index: entry.route() for entry in package.manifest.routes}
        self._closed = False
        if preload:
            try:
                for route in self._routes:
                    self._with_session(route, lambda session: None)
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
        also where it is unlike the training data, or its place in the world is doubtful, which
        are otherwise among the result's flags.
        """
        model = self.package.manifest.model
        if strict and model.seen is None:
            raise ScanError(
                "the package does not say what its training data look like, which a strict run "
                "holds scans against: build it again, or leave --strict out"
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
            if strict and remarks:
                raise ScanError("; ".join(remarks) + ": look at the scan, or leave --strict out")
        with clock("plan"):
            target = region.grid
            if spacing_out_mm is not None:
                target = isotropic_grid(target, spacing_out_mm, model.spacing_limits_mm)
            parts = subvoxel_counts(target, model.base_spacing_mm)
            plan = plan_resampling(
                region.grid, self._routes[decision.route], target.subdivided(parts)
            )

        def work(session: Session) -> NDArray[np.uint8]:
            max_shape = self._max_shape(session, decision.route, plan, scan.volume.voxels, image)
            return run_tiles(session, PreparedScan(image, plan, max_shape), clock)

        session, answer = self._with_session(decision.route, work, clock)
        with clock("labels"):
            labels = majority_vote(answer, parts, len(model.labels))
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
            remarks=tuple(remarks),
        )

    def warm(self) -> None:
        """Loads every route and has it answer a golden vector, so that no scan is a first one."""
        for route in self._routes:
            vector = next(read_golden_vectors(self.package, route))
            with suppress(ShapeError):
                self._with_session(route, vector.disagreement)

    @property
    def device_bytes(self) -> int:
        """What loaded engines and their working memory take of the GPU's memory."""
        return self._choice.device_bytes

    def close(self) -> None:
        """Lets go of all loaded graphs and engines; safe to call twice."""
        with self._opening:
            self._closed = True
            self._sessions.clear()
            self._choice.close()

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
        """The largest working shape that `session` runs in one piece, of a scan's `voxels` and the
        normalised `image` of what is segmented of them."""
        entry = self._routes[route]
        if session.bytes_per_voxel is None:
            return entry.max_shape
        return tile_shape(
            plan,
            entry,
            session.bytes_per_voxel,
            voxels.shape,
            voxels.itemsize,
            image.shape,
            len(self.package.manifest.model.labels),
            self._memory_limit,
        )

    def _with_session(
        self, route: int, work: Callable[[Session], Answer], clock: Stopwatch | None = None
    ) -> tuple[Session, Answer]:
        """What `work` makes of the best session of `route`, and that session.

        A session that fails makes way for the next one, for good unless it was only the shapes
        of this scan that did not fit.
        """
        clock = clock or Stopwatch()
        with clock("load"):
            *better, last = self._candidates_of(route)
        for place, candidate in enumerate(better):
            try:
                with clock("load"):
                    session = self._opened(route, candidate)
                return session, work(session)
            except BackendError as error:
                self._pass_over(route, candidate, error, [*better, last][place + 1])
        with clock("load"):
            session = self._opened(route, last)
        return session, work(session)

    def _candidates_of(self, route: int) -> list[Candidate]:
        with self._opening:
            if route not in self._candidates:
                self._candidates[route] = self._choice.candidates(route)
            return list(self._candidates[route])

    def _opened(self, route: int, candidate: Candidate) -> Session:
        with self._opening:
            if self._closed:
                raise BackendError("the segmenter was closed; expected an open one: load it again")
            if candidate not in self._sessions:
                session = candidate.open()
                try:
                    check_golden_vectors_once(session, self.package, route, self._cache)
                except BaseException:
                    _give_back(session)
                    raise
                self._sessions[candidate] = session
            return self._sessions[candidate]

    def _pass_over(
        self, route: int, candidate: Candidate, error: BackendError, following: Candidate
    ) -> None:
        if isinstance(error, ShapeError):
            what = f"{candidate.name} cannot answer this scan"
        else:
            what = f"{candidate.name} is not used for route {route} any more"
            with self._opening:
                self._candidates[route] = [c for c in self._candidates[route] if c is not candidate]
                session = self._sessions.pop(candidate, None)
            if session is not None:
                _give_back(session)
        warnings.warn(f"{what}; {following.name} answers: {error}", EngineWarning, stacklevel=4)


def _give_back(session: Session) -> None:
    """Closes a session that failed; what failed first is what is told and what is acted on."""
    with suppress(BackendError):
        session.close()


def isotropic_grid(grid: Grid, spacing_mm: float, limits_mm: tuple[float, float]) -> Grid:
    """The smallest grid of `spacing_mm` along the axes of `grid` that covers its extent."""
    low, high = limits_mm
    if not low <= spacing_mm <= high:
        raise ScanError(
            f"the output spacing is {spacing_mm:g} mm; this package answers at {low:g} to "
            f"{high:g} mm: mend --spacing-out"
        )
    i, j, k = (max(1, ceil(extent / spacing_mm - POSITION_TOLERANCE)) for extent in grid.extent_mm)
    return grid.regridded((spacing_mm, spacing_mm, spacing_mm), (i, j, k))


def _volumes_mm3(
    answer: NDArray[np.uint8], target: Grid, parts: tuple[int, int, int], classes: int
) -> tuple[float, ...]:
    """Volume of each label from 1 up, counted on the answer's own grid."""
    voxel = prod(target.spacing_mm) / prod(parts)
    return tuple(np.count_nonzero(answer == label) * voxel for label in range(1, classes))


def _touches_edge(labels: NDArray[np.uint8]) -> bool:
    outer = (0, -1)
    return bool(labels[outer, :, :].any() or labels[:, outer].any() or labels[:, :, outer].any())
