"""The server's life: listening, loading, answering, and a clean stop."""

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
from rare_trt.serving.metrics import Metrics

# Beyond what waits in the queue: for refusals, health, metrics, and clients that dawdle.
SPARE_CONNECTIONS: Final = 64


class Deadlines(H11Protocol):
    """uvicorn's HTTP/1.1, and an end for clients that send no request or read no answer.

    uvicorn itself waits for both for ever; the body's deadline is the application's.
    """

    def __init__(self, seconds: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._seconds = seconds
        self._ending: asyncio.TimerHandle | None = None

    # The transport's type is uvicorn's, narrower than that of asyncio's protocols.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._ending = self.loop.call_later(self._seconds, self._end_without_request)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._cancel()
        self._ending = self.loop.call_later(self._seconds, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        super().connection_lost(exc)

    def _end_without_request(self) -> None:
        if self.conn.their_state is h11.IDLE:
            self.transport.abort()

    def _cancel(self) -> None:
        if self._ending is not None:
            self._ending.cancel()


def serve(
    listener: socket.socket, load: Callable[[], Segmenter], queue: int, limits: Limits
) -> None:
    """Answers on `listener` until SIGTERM or SIGINT: then what was taken is answered, nothing new
    is taken, and this returns. Raises what `load` raises."""
    desk = JobQueue(queue)
    server = Server(
        Config(
            App(desk, Metrics(desk), limits),
            http=cast(Any, partial(Deadlines, limits.seconds)),
            loop="asyncio",
            ws="none",
            interface="asgi3",
            lifespan="off",
            # Its lines would hold what was asked.
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=queue + SPARE_CONNECTIONS,
        )
    )
    loading = desk.open(load)
    loading.add_done_callback(partial(_loaded, server))

    def stop(signum: int, frame: object) -> None:
        server.should_exit = True

    # Until uvicorn takes signals itself, and after: it raises one again once it has stopped.
    before = {sig: signal.signal(sig, stop) for sig in (signal.SIGTERM, signal.SIGINT)}
    log("listening", address=_address(listener))
    try:
        server.run([listener])
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)
        desk.close()
    log("stopped")
    loading.result()


def _loaded(server: Server, loading: Future[None]) -> None:
    if loading.exception() is None:
        log("ready")
    else:
        server.should_exit = True


def _address(listener: socket.socket) -> str:
    name = listener.getsockname()
    return name if isinstance(name, str) else f"http://{name[0]}:{name[1]}"
