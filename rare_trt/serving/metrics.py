"""Server metrics in Prometheus' text format."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.process_collector import ProcessCollector

from rare_trt.serving.job_queue import JobQueue, Segmentation

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

# A status of our own for a client that closed the connection; it is never sent.
CLIENT_GONE: Final = 499

# Statuses with an outcome of their own; every other status refuses the request itself.
OUTCOMES: Final[dict[int, str]] = {
    HTTPStatus.OK: "done",
    HTTPStatus.UNPROCESSABLE_ENTITY: "scan_refused",
    HTTPStatus.SERVICE_UNAVAILABLE: "busy",
    HTTPStatus.REQUEST_TIMEOUT: "slow_client",
    HTTPStatus.INTERNAL_SERVER_ERROR: "failed",
    CLIENT_GONE: "client_gone",
}
REFUSED: Final = "request_refused"

SECONDS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)


class ServerMetrics:
    """Counts requests to segment and shows the state of `queue`; holds no request data."""

    def __init__(self, queue: JobQueue) -> None:
        disable_created_metrics()
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "rare_trt_requests", "Requests to segment.", ["outcome"], registry=self._registry
        )
        for outcome in (*OUTCOMES.values(), REFUSED):
            self._requests.labels(outcome)
        self._routes = Counter(
            "rare_trt_route", "Segmented scans by route.", ["route"], registry=self._registry
        )
        self._request_seconds = Histogram(
            "rare_trt_request_seconds",
            "From the head of a request to the labels of its scan.",
            buckets=SECONDS,
            registry=self._registry,
        )
        self._compute_seconds = Histogram(
            "rare_trt_compute_seconds",
            "The part spent segmenting, without receiving and waiting.",
            buckets=SECONDS,
            registry=self._registry,
        )
        length = Gauge(
            "rare_trt_queue_length", "Requests that wait for the worker.", registry=self._registry
        )
        length.set_function(lambda: queue.length)
        ready = Gauge("rare_trt_ready", "1 once every route is warm.", registry=self._registry)
        ready.set_function(lambda: queue.is_ready)

    def record_segmentation(self, segmentation: Segmentation, seconds: float) -> None:
        """Counts a segmented scan, whose request took `seconds` in all."""
        self._routes.labels(str(segmentation.route)).inc()
        self._request_seconds.observe(seconds)
        self._compute_seconds.observe(segmentation.compute_seconds)

    def record_outcome(self, status: int) -> None:
        """Counts the end of a request to segment by its HTTP status."""
        self._requests.labels(OUTCOMES.get(status, REFUSED)).inc()

    def text(self) -> bytes:
        """Every metric in the format that Prometheus scrapes."""
        return generate_latest(self._registry)
