"""What is counted, in Prometheus' text format."""

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

from rare_trt.serving.job_queue import Answer, JobQueue

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

# The client has gone: a status of ours, never sent.
GONE: Final = 499

# Statuses that have an outcome of their own; every other one refuses the request itself.
OUTCOMES: Final[dict[int, str]] = {
    HTTPStatus.OK: "done",
    HTTPStatus.UNPROCESSABLE_ENTITY: "scan_refused",
    HTTPStatus.SERVICE_UNAVAILABLE: "busy",
    HTTPStatus.REQUEST_TIMEOUT: "slow_client",
    HTTPStatus.INTERNAL_SERVER_ERROR: "failed",
    GONE: "client_gone",
}
REFUSED: Final = "request_refused"

SECONDS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """Counts of requests to segment, and the state of `desk`. Nothing of what was asked."""

    def __init__(self, desk: JobQueue) -> None:
        disable_created_metrics()
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "rare_trt_requests", "Requests to segment.", ["outcome"], registry=self._registry
        )
        for outcome in (*OUTCOMES.values(), REFUSED):
            self._requests.labels(outcome)
        self._routes = Counter(
            "rare_trt_route", "Answers by the route taken.", ["route"], registry=self._registry
        )
        self._request_seconds = Histogram(
            "rare_trt_request_seconds",
            "From the head of an answered request to its answer.",
            buckets=SECONDS,
            registry=self._registry,
        )
        self._compute_seconds = Histogram(
            "rare_trt_compute_seconds",
            "Of it, without waiting and receiving.",
            buckets=SECONDS,
            registry=self._registry,
        )
        waiting = Gauge(
            "rare_trt_queue_length", "Requests that wait for the worker.", registry=self._registry
        )
        waiting.set_function(lambda: desk.waiting)
        ready = Gauge("rare_trt_ready", "1 once every route is warm.", registry=self._registry)
        ready.set_function(lambda: desk.ready)

    def answered(self, answer: Answer, seconds: float) -> None:
        """Counts an answer that took `seconds` in all."""
        self._routes.labels(str(answer.route)).inc()
        self._request_seconds.observe(seconds)
        self._compute_seconds.observe(answer.compute_seconds)

    def ended(self, status: int) -> None:
        """Counts the end of a request to segment."""
        self._requests.labels(OUTCOMES.get(status, REFUSED)).inc()

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self._registry)
