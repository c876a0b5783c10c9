"""The server process: uvicorn on a listening socket, connection deadlines, and a clean stop."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Final, cast

import h11
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from rare_trt.segmenter import Segmenter
from rare_trt.serving.app import App, Limits
from rare_trt.serving.job_queue import JobQueue
from rare_trt.serving.log import log
from rare_trt.serving.metrics import ServerMetrics

# Connections beyond the queue: for refusals, health, metrics, and slow clients.
SPARE_CONNECTIONS: Final = 64


class DeadlineProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with a deadline of `seconds` to send a request's head, and to read the
    response.

    uvicorn itself has neither; the application has the deadline of the body.
    """

    def __init__(self, seconds: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._seconds = seconds
        self._deadline: asyncio.TimerHandle | None = None

    # The transport's type is uvicorn's, narrower than that of asyncio's protocols.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the deadline of the request's head."""
        super().connection_made(transport)
        self._deadline = self.loop.call_later(self._seconds, self._abort_without_request)

    def on_response_complete(self) -> None:
        """Starts the deadline of a client that does not read its response."""
        super().on_response_complete()
        self._cancel()
        self._deadline = self.loop.call_later(self._seconds, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancels the deadline."""
        self._cancel()
        super().connection_lost(exc)

    def _abort_without_request(self) -> None:
        if self.conn.their_state is h11.IDLE:
            self.transport.abort()

    def _cancel(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()


def serve(
    listener: socket.socket, load: Callable[[], Segmenter], max_waiting: int, limits: Limits
) -> None:
    """Serves requests on `listener` until SIGTERM or SIGINT; those taken by then are finished.

    `max_waiting` requests wait beside the one that is being segmented. Raises what `load` raises.
    """
    queue = JobQueue(max_waiting)
    server = Server(
        Config(
            App(queue, ServerMetrics(queue), limits),
            http=cast(Any, partial(DeadlineProtocol, limits.seconds)),
            loop="asyncio",
            ws="none",
            interface="asgi3",
            lifespan="off",
            # uvicorn's own log lines would hold request data.
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=max_waiting + SPARE_CONNECTIONS,
        )
    )
    loading = queue.load(load)
    loading.add_done_callback(partial(_on_loaded, server))

    def stop(signum: int, frame: object) -> None:
        server.should_exit = True

    # uvicorn takes the signals only while it runs, and raises one again once it has stopped.
    before = {sig: signal.signal(sig, stop) for sig in (signal.SIGTERM, signal.SIGINT)}
    log("listening", address=_address(listener))
    try:
        server.run([listener])
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)
        queue.close()
    log("stopped")
    loading.result()


def _on_loaded(server: Server, loading: Future[None]) -> None:
    if loading.exception() is None:
        log("ready")
    else:
        server.should_exit = True


def _address(listener: socket.socket) -> str:
    name = listener.getsockname()
    return name if isinstance(name, str) else f"http://{name[0]}:{name[1]}"
