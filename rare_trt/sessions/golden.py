"""Golden-vector check: a session must reproduce the labels of the package's real scans."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rare_trt._version import VERSION
from rare_trt.errors import BackendError, ShapeError
from rare_trt.package.manifest import GoldenEntry
from rare_trt.package.reading import Package, route_from_entry
from rare_trt.plan.resampling import plan_resampling
from rare_trt.scan.intensity import normalise
from rare_trt.scan.nifti import scan_from_bytes
from rare_trt.sessions.run import PreparedScan, run_tiles
from rare_trt.sessions.session import Runner, Session
from rare_trt.storage.cache import Cache


@dataclass(frozen=True, eq=False)
class GoldenVector:
    """A golden vector: its entry, and its scan ready to run, with the expected labels."""

    entry: GoldenEntry
    scan: PreparedScan

    def disagreement(self, session: Runner) -> float:
        """Returns the share of voxels that `session` labels differently."""
        return float((run_tiles(session, self.scan) != self.scan.truth).mean())


def read_golden_vectors(package: Package, route: int) -> Iterator[GoldenVector]:
    """Yields the golden vectors of `route`, read from the package and verified by their hashes."""
    model = package.manifest.model
    (entry,) = (
        route_from_entry(entry) for entry in package.manifest.routes if entry.index == route
    )
    for vector in package.manifest.golden:
        if vector.route == route:
            data = package.read(vector.scan)
            scan = scan_from_bytes(data, vector.scan, len(model.channels)).volume
            truth = scan_from_bytes(package.read(vector.labels), vector.labels).volume
            prepared = PreparedScan(
                image=normalise(scan.voxels, model.intensity),
                plan=plan_resampling(scan.grid, entry, truth.grid),
                max_shape=entry.max_shape,
                truth=truth.voxels.astype(np.uint8),
            )
            yield GoldenVector(vector, prepared)


def check_golden_vectors(session: Session, package: Package, route: int) -> None:
    """Verifies `session` against the golden vectors of `route`, as `find_disagreement` does.

    Raises BackendError where the labels of a vector differ beyond its bound.
    """
    fault = find_disagreement(session, package, route)
    if fault is not None:
        raise BackendError(
            f"{fault}, so it is not used: run `rare-trt verify` on another machine; where it fails "
            "there too, build the package again, else report the output of `rare-trt doctor` here"
        )


def find_disagreement(session: Session, package: Package, route: int) -> str | None:
    """The first golden vector of `route` whose labels by `session` differ beyond its bound, in a
    few words; None where there is none.

    Vectors of other shapes than the session was built for are left out; raises BackendError where
    that leaves none. Each vector is run `session.golden_runs` times.
    """
    checked = 0
    for vector in read_golden_vectors(package, route):
        bound = vector.entry.max_disagreement[session.precision]
        try:
            share = max(vector.disagreement(session) for _ in range(session.golden_runs))
        except ShapeError:
            continue
        checked += 1
        if not share <= bound:
            return (
                f"{session.backend} {session.precision} labels {100 * share:.3g}% of the voxels of "
                f"golden vector {vector.entry.scan} differently than the package (at most "
                f"{100 * bound:.3g}% may differ)"
            )
    if not checked:
        raise BackendError(
            f"{session.backend} {session.precision} accepts the shapes of no golden vector of "
            f"route {route}, so its labels cannot be verified: build the engine again"
        )
    return None


def check_golden_vectors_once(session: Session, package: Package, route: int, cache: Cache) -> None:
    """Calls `check_golden_vectors`, unless `cache` records that an equal session passed it."""
    # The manifest's hash covers everything else that the labels depend on, the vectors included.
    key = (session.identity, package.manifest_sha256, str(route), VERSION)
    if cache.load("proved", *key) is None:
        check_golden_vectors(session, package, route)
        cache.store(b"", "proved", *key)
