"""Segments several scans, past failures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeAlias

from tqdm import tqdm

from rare_trt.batch.outcome import FAULTS, Outcome, failure
from rare_trt.jobs import Executor, Job, ScanSummary, refuse_outputs

Record: TypeAlias = Callable[[Job, Outcome], None]


def run_jobs(executor: Executor, jobs: Sequence[Job], record: Record) -> None:
    """Segments every job, past failures, under a progress bar on a terminal; `record` gets each
    outcome.

    While one scan is segmented the next one is read and the previous one written, no more than
    that. Where the run is interrupted, the scan that is being written is finished and recorded.
    """

    def read(job: Job) -> Any:
        refuse_outputs(job)
        return executor.read(job)

    with (
        ThreadPoolExecutor(1) as reader,
        _Writer(executor, record) as writer,
        # In a log file the lines on the scans are the progress.
        tqdm(jobs, "segmenting", unit="scan", file=sys.stderr, disable=None) as bar,
    ):
        ahead = (reader.submit(read, job) for job in jobs)
        reading = next(ahead)
        for job in bar:
            current, reading = reading, next(ahead, reading)
            try:
                result = executor.segment(job, current.result())
            except FAULTS as error:
                record(job, failure(job, error))
            else:
                writer.save(job, result)


class _Writer:
    """Saves results in a thread, one behind the scan that is segmented."""

    def __init__(self, executor: Executor, record: Record) -> None:
        self._executor, self._record = executor, record
        self._pool = ThreadPoolExecutor(1)
        self._pending: tuple[Job, Future[ScanSummary]] | None = None

    def save(self, job: Job, result: Any) -> None:
        """Begins to save a result, once the one before is saved."""
        self._finish()
        self._pending = job, self._pool.submit(self._executor.save, job, result)

    def _finish(self) -> None:
        if self._pending is None:
            return
        job, future = self._pending
        outcome: Outcome
        try:
            outcome = future.result()
        except FAULTS as error:
            outcome = failure(job, error)
        self._pending = None
        self._record(job, outcome)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._pool:
            self._finish()
