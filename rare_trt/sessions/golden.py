"""Golden vectors: real scans that a session must answer as the reference network did."""

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
from rare_trt.sessions.session import Runs, Session
from rare_trt.storage.cache import Cache


@dataclass(frozen=True, eq=False)
class GoldenVector:
    """A golden vector: its entry, and its scan ready to run, with the labels to expect."""

    entry: GoldenEntry
    scan: PreparedScan

    def disagreement(self, session: Runs) -> float:
        """The share of voxels that `session` labels otherwise."""
        return float((run_tiles(session, self.scan) != self.scan.truth).mean())


def read_golden_vectors(package: Package, route: int) -> Iterator[GoldenVector]:
    """The golden vectors of `route`, read from the package and verified against their hashes."""
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
    """Verifies `session` against the golden vectors of `route`; raises BackendError where one
    differs.

    Vectors whose shapes the session was not built for are left out; at least one must be left.
    Each is run as often as the session changes its way of running.
    """
    checked = 0
    for vector in read_golden_vectors(package, route):
        bound = vector.entry.max_disagreement[session.precision]
        try:
            share = max(vector.disagreement(session) for _ in range(session.proof_runs))
        except ShapeError:
            continue
        checked += 1
        if not share <= bound:
            raise BackendError(
                f"{session.backend} {session.precision} gives {share:.2%} other labels than the "
                f"package's golden vector {vector.entry.scan} (at most {bound:.2%} may differ): "
                "this machine's answers cannot be trusted; report what `rare-trt doctor` prints"
            )
    if not checked:
        raise BackendError(
            f"{session.backend} {session.precision} takes none of the golden vectors of route "
            f"{route}, so its answers cannot be checked: build the engine again"
        )


def check_golden_vectors_once(session: Session, package: Package, route: int, cache: Cache) -> None:
    """`check_golden_vectors`, but for sessions that passed it on this machine before."""
    # The manifest names everything else that the answer hangs on, the vectors included.
    key = (session.identity, package.manifest_sha256, str(route), VERSION)
    if cache.load("proved", *key) is None:
        check_golden_vectors(session, package, route)
        cache.store(b"", "proved", *key)
