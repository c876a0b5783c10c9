"""A bounded queue of requests, and the one thread that segments their scans."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from math import ceil
from pathlib import Path
from time import perf_counter
from typing import Final

from rare_trt.errors import ScanError
from rare_trt.scan.nifti import scan_from_bytes
from rare_trt.segmenter import Segmenter
from rare_trt.serving.request import RequestError, SegmentRequest
from rare_trt.storage.naming import LABELS, PICTURE, REPORT

# The name under which errors mention a posted scan; only its client knows the file's name.
NAMELESS: Final = "scan"


@dataclass(frozen=True)
class Segmentation:
    """The output files of one scan in a ZIP archive, and what the server's metrics count."""

    archive: bytes
    route: int
    compute_seconds: float


class JobQueue:
    """Owns the segmenter and one worker thread, because a graph uses every core by itself.

    Up to `max_waiting` requests wait beside the one that is being segmented.
    """

    def __init__(self, max_waiting: int) -> None:
        self._worker = ThreadPoolExecutor(1, "rare-trt")
        self._capacity = max_waiting + 1
        self._reserved = 0
        self._is_computing = False
        self._last_seconds = 1.0
        self._segmenter: Segmenter | None = None

    @property
    def is_ready(self) -> bool:
        """Whether every route is loaded and warm."""
        return self._segmenter is not None

    @property
    def length(self) -> int:
        """The number of requests that have a place and are not being computed."""
        return self._reserved - self._is_computing

    def load(self, load_segmenter: Callable[[], Segmenter]) -> Future[None]:
        """Loads and warms the segmenter in the worker thread."""

        def load_and_warm() -> None:
            segmenter = load_segmenter()
            segmenter.warm()
            self._segmenter = segmenter

        return self._worker.submit(load_and_warm)

    @contextmanager
    def reserve(self) -> Iterator[None]:
        """Reserves a place in the queue, before the body is read: so memory is bounded too.

        Raises RequestError where no place is free, or the segmenter is not loaded yet.
        """
        if not self.is_ready:
            raise RequestError(
                HTTPStatus.SERVICE_UNAVAILABLE, "the server is still loading: try again", 1
            )
        if self._reserved >= self._capacity:
            raise RequestError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{self._reserved} requests are waiting already, as many as --queue allows: try "
                "again later",
                # The next finished scan frees a place.
                max(1, ceil(self._last_seconds)),
            )
        self._reserved += 1
        try:
            yield
        finally:
            self._reserved -= 1

    def submit(self, body: bytes, request: SegmentRequest) -> Future[Segmentation]:
        """Segments the scan's file `body` once the worker is free.

        The body is freed as soon as the future is cancelled, not only when the worker reaches it.
        """
        held = [(body, request)]
        future = self._worker.submit(self._segment, held)
        future.add_done_callback(lambda _: held.clear())
        return future

    def close(self) -> None:
        """Waits for the worker and closes the segmenter."""
        self._worker.shutdown()
        if self._segmenter is not None:
            self._segmenter.close()

    def _segment(self, held: list[tuple[bytes, SegmentRequest]]) -> Segmentation:
        assert self._segmenter is not None
        body, request = held.pop()
        self._is_computing = True
        start = perf_counter()
        try:
            archive, route = segment_to_archive(self._segmenter, body, request)
        finally:
            self._is_computing = False
            self._last_seconds = perf_counter() - start
        return Segmentation(archive, route, self._last_seconds)


def segment_to_archive(
    segmenter: Segmenter, body: bytes, request: SegmentRequest
) -> tuple[bytes, int]:
    """A ZIP archive of the files that `rare-trt infer` writes for the scan `body`, and its route.

    Raises ScanError, without a file's name, where the scan cannot be segmented.
    """
    channels = len(segmenter.package.manifest.model.channels)
    try:
        scan = replace(scan_from_bytes(body, NAMELESS, channels), name=request.name)
        result = segmenter.segment(scan, **request.options)
    except ScanError as error:
        raise ScanError(str(error).removeprefix(f"{NAMELESS}: ")) from error
    files = result.files(
        Path(LABELS),
        report=Path(REPORT),
        picture=Path(PICTURE) if request.picture else None,
    )
    archive = io.BytesIO()
    # Stored, and without a date: labels are compressed already, and equal files give equal bytes.
    with zipfile.ZipFile(archive, "w") as target:
        for path, data in files.items():
            target.writestr(zipfile.ZipInfo(path.name), data)
    return archive.getvalue(), result.route.route
