"""One thread that computes, and a bounded number of requests that wait for it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from math import ceil
from pathlib import Path
from time import perf_counter
from typing import Final, TypeAlias

from rare_trt.errors import ScanError
from rare_trt.jobs import run_job
from rare_trt.options import SegmentOptions
from rare_trt.scan.nifti import scan_from_bytes
from rare_trt.segmenter import Segmenter
from rare_trt.serving.request import Asking, Names, RequestError, check_size
from rare_trt.storage.naming import LABELS, PICTURE, REPORT

# What reading calls a scan that came without a name; its client knows the name.
NAMELESS: Final = "scan"


# From a segmenter to an answer's content type, body and route.
Work: TypeAlias = Callable[[Segmenter], tuple[str, bytes, int]]


@dataclass(frozen=True)
class Answer:
    """The body of an answer, and what of it is counted."""

    content_type: str
    body: bytes
    route: int
    compute_seconds: float


class JobQueue:
    """Holds the segmenter. One worker, because a graph takes every core by itself."""

    def __init__(self, queue: int) -> None:
        self._worker = ThreadPoolExecutor(1, "rare-trt")
        self._capacity = queue + 1
        self._admitted = 0
        self._computing = False
        self._last_seconds = 1.0
        self._segmenter: Segmenter | None = None

    @property
    def ready(self) -> bool:
        """Whether every route is loaded and warm."""
        return self._segmenter is not None

    @property
    def waiting(self) -> int:
        """Requests that have a place and are not being computed."""
        return self._admitted - self._computing

    def open(self, load: Callable[[], Segmenter]) -> Future[None]:
        """Loads and warms the segmenter in the worker."""

        def opened() -> None:
            segmenter = load()
            segmenter.warm()
            self._segmenter = segmenter

        return self._worker.submit(opened)

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue, from before its body is read: so that is bounded too.

        Raises RequestError where there is none.
        """
        if not self.ready:
            raise RequestError(
                HTTPStatus.SERVICE_UNAVAILABLE, "the server is still loading: try again", 1
            )
        if self._admitted >= self._capacity:
            raise RequestError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{self._admitted} requests are waiting already, as many as --queue allows: try "
                "again later",
                # A place is free with the next answer.
                max(1, ceil(self._last_seconds)),
            )
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1

    def submit(self, work: Work) -> Future[Answer]:
        """Has `work` done once the worker is free.

        `work` holds a request's body: where the client leaves before its turn, it is let go of at
        once, not when the worker comes to the cancelled place.
        """
        held = [work]
        future = self._worker.submit(self._done, held)
        future.add_done_callback(lambda _: held.clear())
        return future

    def close(self) -> None:
        """Waits for the worker and lets go of the segmenter."""
        self._worker.shutdown()
        if self._segmenter is not None:
            self._segmenter.close()

    def _done(self, held: list[Work]) -> Answer:
        assert self._segmenter is not None
        work = held.pop()
        self._computing = True
        start = perf_counter()
        try:
            content_type, body, route = work(self._segmenter)
        finally:
            self._computing = False
            self._last_seconds = perf_counter() - start
        return Answer(content_type, body, route, self._last_seconds)


def posted(body: bytes, asking: Asking) -> Work:
    """The work on a posted scan: the files that `rare-trt infer` writes, in a ZIP."""
    return partial(_posted, body, asking.asked, picture=asking.picture)


def named(names: Names, asking: Asking, folders: tuple[Path, ...], max_bytes: int) -> Work:
    """The work on a file of this machine: files written as `rare-trt infer` does, and a report."""
    return partial(_named, names, asking.asked, folders, max_bytes)


def _posted(
    body: bytes, asked: SegmentOptions, segmenter: Segmenter, *, picture: bool
) -> tuple[str, bytes, int]:
    channels = len(segmenter.package.manifest.model.channels)
    try:
        result = segmenter.segment(scan_from_bytes(body, NAMELESS, channels), **asked)
    except ScanError as error:
        raise ScanError(str(error).removeprefix(f"{NAMELESS}: ")) from error
    files = result.files(
        Path(LABELS),
        report=Path(REPORT),
        picture=Path(PICTURE) if picture else None,
    )
    archive = io.BytesIO()
    # Stored, and of no date: labels are compressed already, and equal answers are equal bytes.
    with zipfile.ZipFile(archive, "w") as target:
        for path, data in files.items():
            target.writestr(zipfile.ZipInfo(path.name), data)
    return "application/zip", archive.getvalue(), result.route.route


def _named(
    names: Names,
    asked: SegmentOptions,
    folders: tuple[Path, ...],
    max_bytes: int,
    segmenter: Segmenter,
) -> tuple[str, bytes, int]:
    job = names.job(folders)
    check_size(job, max_bytes)
    result = run_job(segmenter, job, asked, overwrite=names.overwrite)
    return "application/json", result.report_json(), result.route.route
