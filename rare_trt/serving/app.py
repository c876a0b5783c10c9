"""The server's pages, as an ASGI application: segment, health, readiness, metrics."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from time import perf_counter
from typing import Any, Final, TypeAlias

from rare_trt.errors import RareTrtError, ScanError
from rare_trt.serving.job_queue import JobQueue, Segmentation
from rare_trt.serving.log import log
from rare_trt.serving.metrics import CLIENT_GONE, CONTENT_TYPE, ServerMetrics
from rare_trt.serving.request import RequestError, check_body_size, request_from_head

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

SEGMENT: Final = "/v1/segment"

# The names by which programs of this machine call a server on its loopback port.
HOSTS: Final = (b"127.0.0.1", b"localhost")


@dataclass(frozen=True)
class Limits:
    """What a request may take: `max_bytes` of body, sent within `seconds`.

    `any_host` accepts every Host header, as on a Unix socket, which no web page can reach.
    """

    max_bytes: int
    seconds: float
    any_host: bool


@dataclass(frozen=True)
class Response:
    """One HTTP response; `facts` are logged and not sent."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


class ClientGoneError(Exception):
    """The client has closed the connection."""


class RequestBody:
    """The body of one request, bounded in size and time."""

    def __init__(
        self, receive: Receive, headers: list[tuple[bytes, bytes]], limits: Limits
    ) -> None:
        self._receive = receive
        self._max_bytes = limits.max_bytes
        self._deadline = perf_counter() + limits.seconds
        self._is_complete = False
        self._expects_continue = dict(headers).get(b"expect", b"").lower() == b"100-continue"

    async def read(self) -> bytes:
        """Reads the whole body; raises RequestError where it is too large or too slow."""
        self._expects_continue = False
        parts: list[bytes] = []
        size = 0
        while not self._is_complete:
            part = await self._read_part()
            size += len(part)
            check_body_size(size, self._max_bytes)
            parts.append(part)
        return b"".join(parts)

    async def discard(self) -> None:
        """Reads the rest and drops it: a client that still sends would not see a response.

        A client that waits for "100 Continue" sends nothing, and sees the response at once.
        """
        with suppress(RequestError):
            while not (self._is_complete or self._expects_continue):
                await self._read_part()

    async def wait_for_disconnect(self) -> None:
        """Returns when the client has closed the connection."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _read_part(self) -> bytes:
        try:
            left = self._deadline - perf_counter()
            message = await asyncio.wait_for(self._receive(), max(0.0, left))
        except asyncio.TimeoutError as error:
            self._is_complete = True
            raise RequestError(
                HTTPStatus.REQUEST_TIMEOUT,
                "the request did not arrive within the server's --timeout",
            ) from error
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        self._is_complete = not message.get("more_body", False)
        body: bytes = message.get("body", b"")
        return body


class App:
    """Responds to requests; one per connection, so that no connection lingers."""

    def __init__(self, queue: JobQueue, metrics: ServerMetrics, limits: Limits) -> None:
        self._queue, self._metrics, self._limits = queue, metrics, limits

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handles one request, as ASGI calls it."""
        start = perf_counter()
        body = RequestBody(receive, scope["headers"], self._limits)
        try:
            response = await self._respond(scope, body, start)
            if response.status != HTTPStatus.OK:
                await body.discard()
            await _send_response(response, send, head_only=scope["method"] == "HEAD")
            status, facts = response.status, response.facts
        except ClientGoneError:
            status, facts = CLIENT_GONE, {}
        if scope["path"] == SEGMENT:
            self._metrics.record_outcome(status)
            log("segment", status=status, seconds=round(perf_counter() - start, 4), **facts)

    async def _respond(self, scope: Message, body: RequestBody, start: float) -> Response:
        try:
            self._check_origin(scope)
            page = scope["path"]
            if page == SEGMENT:
                _check_method(scope, "POST")
                result = await self._segment(scope, body)
                self._metrics.record_segmentation(result, perf_counter() - start)
                facts = {
                    "route": result.route,
                    "compute_seconds": round(result.compute_seconds, 4),
                    "bytes_out": len(result.archive),
                }
                return Response(HTTPStatus.OK, result.archive, "application/zip", facts=facts)
            pages = {
                "/healthz": self._health,
                "/readyz": self._readiness,
                "/metrics": self._metrics_text,
            }
            if page not in pages:
                known = ", ".join([SEGMENT, *pages])
                raise RequestError(HTTPStatus.NOT_FOUND, f"no such page; expected one of {known}")
            _check_method(scope, "GET", "HEAD")
            return pages[page]()
        except ClientGoneError:
            raise
        except Exception as error:
            return _response_from_error(error)

    async def _segment(self, scope: Message, body: RequestBody) -> Segmentation:
        request = request_from_head(scope["query_string"], scope["headers"], self._limits.max_bytes)
        with self._queue.reserve():
            # The body is in no variable here, so that it is freed once it is segmented.
            return await _wait(self._queue.submit(await body.read(), request), body)

    def _check_origin(self, scope: Message) -> None:
        """Raises RequestError for a request that a web page made a browser send.

        Browsers can reach a port of the loopback from any page: they name the page in Origin, and
        in Host a name of the page's own where its DNS resolves to 127.0.0.1.
        """
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").rpartition(b":")[0] or headers.get(b"host", b"")
        if b"origin" in headers or not (self._limits.any_host or host in HOSTS):
            raise RequestError(
                HTTPStatus.FORBIDDEN,
                "the request comes from a web page or under another name than 127.0.0.1 or "
                "localhost; expected a program of this machine",
            )

    def _health(self) -> Response:
        return Response(HTTPStatus.OK, b'{"healthy": true}\n')

    def _readiness(self) -> Response:
        if self._queue.is_ready:
            return Response(HTTPStatus.OK, b'{"ready": true}\n')
        return Response(HTTPStatus.SERVICE_UNAVAILABLE, b'{"ready": false}\n')

    def _metrics_text(self) -> Response:
        return Response(HTTPStatus.OK, self._metrics.text(), CONTENT_TYPE)


async def _wait(job: Future[Segmentation], body: RequestBody) -> Segmentation:
    """The result of `job`, which is cancelled if its client leaves before it starts."""
    result: asyncio.Future[Segmentation] = asyncio.wrap_future(job)
    gone = asyncio.ensure_future(body.wait_for_disconnect())
    try:
        await asyncio.wait((result, gone), return_when=asyncio.FIRST_COMPLETED)
        if not result.done() and job.cancel():
            raise ClientGoneError
        # A job that has started keeps its place to its end.
        return await result
    finally:
        gone.cancel()


def _check_method(scope: Message, *allowed: str) -> None:
    if scope["method"] not in allowed:
        raise RequestError(
            HTTPStatus.METHOD_NOT_ALLOWED, f"this page takes {' and '.join(allowed)} only"
        )


def _response_from_error(error: Exception) -> Response:
    """The status of `error` and one sentence. An error that is neither a RareTrtError nor the
    system's is a bug: only its location is logged, because its text may contain request data."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    facts: dict[str, Any] = {}
    sentence = str(error)
    if isinstance(error, RequestError):
        status = error.status
        if error.retry_after is not None:
            headers = ((b"retry-after", b"%d" % error.retry_after),)
    elif isinstance(error, ScanError):
        status = HTTPStatus.UNPROCESSABLE_ENTITY
    else:
        status = HTTPStatus.INTERNAL_SERVER_ERROR
        facts["error"] = type(error).__name__
        if isinstance(error, MemoryError):
            sentence = "not enough memory for this scan: free memory, or raise the process's limit"
        elif isinstance(error, OSError):
            sentence = (
                f"a file of the server cannot be used ({error.strerror or 'no reason given'}): "
                "check its folders' permissions and the free space"
            )
        elif not isinstance(error, RareTrtError):
            frames = traceback.extract_tb(error.__traceback__)
            facts["at"] = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames]
            sentence = "the server failed on this request: report what it logged"
    body = json.dumps({"error": sentence}).encode() + b"\n"
    return Response(status, body, headers=headers, facts=facts)


async def _send_response(response: Response, send: Send, *, head_only: bool) -> None:
    headers = [
        (b"content-type", response.content_type.encode()),
        (b"content-length", b"%d" % len(response.body)),
        (b"connection", b"close"),
        *response.headers,
    ]
    await send({"type": "http.response.start", "status": int(response.status), "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head_only else response.body})
