"""Golden vectors: real scans that a session must answer as the reference network did."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rare_trt._version import VERSION
from rare_trt.errors import BackendError, ShapeError
from rare_trt.package.manifest import GoldenEntry
from rare_trt.package.reading import Package
from rare_trt.plan.resampling import Plan, plan
from rare_trt.scan.geometry import Shape
from rare_trt.scan.intensity import normalised
from rare_trt.scan.nifti import scan_from_bytes
from rare_trt.sessions.run import answered
from rare_trt.sessions.session import Runs, Session
from rare_trt.storage.cache import Cache


@dataclass(frozen=True, eq=False)
class GoldenRun:
    """A golden vector ready to run: image [c, i, j, k], its plan, and the labels to expect."""

    entry: GoldenEntry
    image: NDArray[np.float32]
    steps: Plan
    max_shape: Shape
    labels: NDArray[np.uint8]

    def disagreement(self, session: Runs) -> float:
        """The share of voxels that `session` labels otherwise."""
        answer = answered(session, self.image, self.steps, self.max_shape)
        return float((answer != self.labels).mean())


def golden_runs(package: Package, route: int) -> Iterator[GoldenRun]:
    """The golden vectors of `route`, read from the package and held to their hashes."""
    model = package.manifest.model
    (entry,) = (entry.route() for entry in package.manifest.routes if entry.index == route)
    for vector in package.manifest.golden:
        if vector.route == route:
            data = package.read(vector.scan)
            scan = scan_from_bytes(data, vector.scan, len(model.channels)).volume
            truth = scan_from_bytes(package.read(vector.labels), vector.labels).volume
            yield GoldenRun(
                entry=vector,
                image=normalised(scan.voxels, model.intensity),
                steps=plan(scan.grid, entry, truth.grid),
                max_shape=entry.max_shape,
                labels=truth.voxels.astype(np.uint8),
            )


def prove(session: Session, package: Package, route: int) -> None:
    """Holds `session` to the golden vectors of `route`; raises BackendError where one differs.

    Vectors whose shapes the session was not built for are left out; one at least must be left.
    Each is run as often as the session changes its way of running.
    """
    proven = 0
    for run in golden_runs(package, route):
        bound = run.entry.max_disagreement[session.precision]
        try:
            share = max(run.disagreement(session) for _ in range(session.proof_runs))
        except ShapeError:
            continue
        proven += 1
        if not share <= bound:
            raise BackendError(
                f"{session.backend} {session.precision} gives {share:.2%} other labels than the "
                f"package's golden vector {run.entry.scan} (at most {bound:.2%} may differ): this "
                "machine's answers cannot be trusted; report what `rare-trt doctor` prints"
            )

    if not proven:
        raise BackendError(
            f"{session.backend} {session.precision} takes none of the golden vectors of route "
            f"{route}, so its answers cannot be checked: build the engine again"
        )


def prove_once(session: Session, package: Package, route: int, cache: Cache) -> None:
    """`prove`, but for sessions that passed it on this machine before."""
    # The manifest names everything else that the answer hangs on, the vectors included.
    key = (session.identity, package.manifest_sha256, str(route), VERSION)
    if cache.load("proved", *key) is None:
        prove(session, package, route)
        cache.store(b"", "proved", *key)
