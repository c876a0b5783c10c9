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

from rare_trt.errors import OutputError, RareTrtError, ScanError
from rare_trt.serving.job_queue import Answer, JobQueue, named, posted
from rare_trt.serving.log import log
from rare_trt.serving.metrics import CONTENT_TYPE, GONE, Metrics
from rare_trt.serving.request import Asking, RequestError, read_head, read_names

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

SEGMENT: Final = "/v1/segment"

# The names by which programs of this machine call a server on its loopback port.
HOSTS: Final = (b"127.0.0.1", b"localhost")


@dataclass(frozen=True)
class Limits:
    """`seconds` is how long a client may take over its request, `folders` what requests may name,
    `any_host` whether a request may come under any name, as on a socket that is a file."""

    max_bytes: int
    seconds: float
    folders: tuple[Path, ...]
    any_host: bool


@dataclass(frozen=True)
class Reply:
    """What is sent back."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


class ClientGoneError(Exception):
    """The client has closed the connection."""


class Incoming:
    """The body of one request, with a deadline."""

    def __init__(
        self, receive: Receive, headers: list[tuple[bytes, bytes]], seconds: float
    ) -> None:
        self._receive = receive
        self._deadline = perf_counter() + seconds
        self._whole = False
        self._waits = dict(headers).get(b"expect", b"").lower() == b"100-continue"

    async def read(self, asking: Asking) -> bytes:
        """All of it; raises RequestError where it is larger or too slow."""
        self._waits = False
        parts: list[bytes] = []
        size = 0
        while not self._whole:
            part = await self._part()
            size += len(part)
            asking.check_body(size)
            parts.append(part)
        return b"".join(parts)

    async def drop(self) -> None:
        """Reads what is left and forgets it: a client that still sends would not see an answer.

        One that waits to be told to send sees it at once.
        """
        with suppress(RequestError):
            while not (self._whole or self._waits):
                await self._part()

    async def gone(self) -> None:
        """Returns when the client has closed the connection."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _part(self) -> bytes:
        try:
            left = self._deadline - perf_counter()
            message = await asyncio.wait_for(self._receive(), max(0.0, left))
        except asyncio.TimeoutError as error:
            self._whole = True
            raise RequestError(
                HTTPStatus.REQUEST_TIMEOUT,
                "the request did not come in time: the server's --timeout says how long it waits",
            ) from error
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        self._whole = not message.get("more_body", False)
        body: bytes = message.get("body", b"")
        return body


class App:
    """Answers requests; one per connection, so that no connection lingers."""

    def __init__(self, desk: JobQueue, metrics: Metrics, limits: Limits) -> None:
        self._desk, self._metrics, self._limits = desk, metrics, limits

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        start = perf_counter()
        segments = scope["path"] == SEGMENT
        incoming = Incoming(receive, scope["headers"], self._limits.seconds)
        try:
            reply = await self._reply(scope, incoming, start)
            if reply.status != HTTPStatus.OK:
                await incoming.drop()
            await _sent(reply, send, head_only=scope["method"] == "HEAD")
            status, facts = reply.status, reply.facts
        except ClientGoneError:
            status, facts = GONE, {}
        if segments:
            self._metrics.ended(status)
            log("segment", status=status, seconds=round(perf_counter() - start, 4), **facts)

    async def _reply(self, scope: Message, incoming: Incoming, start: float) -> Reply:
        try:
            self._check_origin(scope)
            page = scope["path"]
            if page == SEGMENT:
                _check_method(scope, "POST")
                answer = await self._segmented(scope, incoming)
                self._metrics.answered(answer, perf_counter() - start)
                facts = {
                    "route": answer.route,
                    "compute_seconds": round(answer.compute_seconds, 4),
                    "bytes_out": len(answer.body),
                }
                return Reply(HTTPStatus.OK, answer.body, answer.content_type, facts=facts)
            pages = {"/healthz": self._health, "/readyz": self._readiness, "/metrics": self._counts}
            if page not in pages:
                known = ", ".join([SEGMENT, *pages])
                raise RequestError(HTTPStatus.NOT_FOUND, f"no such page; expected one of {known}")
            _check_method(scope, "GET", "HEAD")
            return pages[page]()
        except ClientGoneError:
            raise
        except Exception as error:
            return _refused(error)

    async def _segmented(self, scope: Message, incoming: Incoming) -> Answer:
        limits = self._limits
        asking = read_head(
            scope["query_string"],
            scope["headers"],
            limits.max_bytes,
            may_name_files=bool(limits.folders),
        )
        with self._desk.place():
            body = await incoming.read(asking)
            if asking.names_files:
                work = named(read_names(body), asking, limits.folders, limits.max_bytes)
            else:
                work = posted(body, asking)
            del body
            return await self._computed(self._desk.submit(work), incoming)

    async def _computed(self, job: Future[Answer], incoming: Incoming) -> Answer:
        """What the worker makes of `job`, which is dropped if its client goes before its turn."""
        answer: asyncio.Future[Answer] = asyncio.wrap_future(job)
        gone = asyncio.ensure_future(incoming.gone())
        try:
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done() and job.cancel():
                raise ClientGoneError
            # Once begun, a job keeps its place to its end.
            return await answer
        finally:
            gone.cancel()

    def _check_origin(self, scope: Message) -> None:
        """Raises RequestError for what a web page made a browser send."""
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").rpartition(b":")[0] or headers.get(b"host", b"")
        if b"origin" in headers or not (self._limits.any_host or host in HOSTS):
            raise RequestError(
                HTTPStatus.FORBIDDEN,
                "the request comes from a web page or under another name than 127.0.0.1 or "
                "localhost; expected a program of this machine",
            )

    def _health(self) -> Reply:
        return Reply(HTTPStatus.OK, b'{"healthy": true}\n')

    def _readiness(self) -> Reply:
        if self._desk.ready:
            return Reply(HTTPStatus.OK, b'{"ready": true}\n')
        return Reply(HTTPStatus.SERVICE_UNAVAILABLE, b'{"ready": false}\n')

    def _counts(self) -> Reply:
        return Reply(HTTPStatus.OK, self._metrics.text(), CONTENT_TYPE)


def _check_method(scope: Message, *allowed: str) -> None:
    if scope["method"] not in allowed:
        raise RequestError(
            HTTPStatus.METHOD_NOT_ALLOWED, f"this page takes {' and '.join(allowed)} only"
        )


def _refused(error: Exception) -> Reply:
    """One sentence and its status. What is neither a RareTrtError nor the system's refusal is a
    bug: told by its place alone, because its text may hold what was asked."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    facts: dict[str, Any] = {}
    sentence = str(error)
    if isinstance(error, RequestError):
        status = error.status
        if error.retry_after is not None:
            headers = ((b"retry-after", b"%d" % error.retry_after),)
    elif isinstance(error, ScanError):
        status = HTTPStatus.UNPROCESSABLE_ENTITY
    elif isinstance(error, OutputError):
        status = HTTPStatus.CONFLICT
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
    return Reply(status, body, headers=headers, facts=facts)


async def _sent(reply: Reply, send: Send, *, head_only: bool) -> None:
    headers = [
        (b"content-type", reply.content_type.encode()),
        (b"content-length", b"%d" % len(reply.body)),
        (b"connection", b"close"),
        *reply.headers,
    ]
    await send({"type": "http.response.start", "status": int(reply.status), "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head_only else reply.body})
