"""A real `rare-trt serve` in a process of its own, and the plainest client there is."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

REPOSITORY = Path(__file__).parents[1]
WAIT_SECONDS = 180.0


class Plain(http.client.HTTPConnection):
    """To the path of a Unix socket, or to a port."""

    def __init__(self, address: str) -> None:
        super().__init__("127.0.0.1", timeout=WAIT_SECONDS)
        self._address = address

    def connect(self) -> None:
        if "://" in self._address:
            place: Any = ("127.0.0.1", int(self._address.rpartition(":")[2]))
            self.sock = socket.create_connection(place, WAIT_SECONDS)
        else:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(WAIT_SECONDS)
            self.sock.connect(self._address)


@dataclass(frozen=True)
class Response:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def error(self) -> str:
        text = json.loads(self.body)["error"]
        assert isinstance(text, str)
        return text


class Running:
    """A server that is ready; `log` grows with the lines that it logs."""

    def __init__(self, *arguments: str | Path) -> None:
        command = [sys.executable, "-W", "error", "-m", "rare_trt.cli", "serve"]
        self.process = subprocess.Popen(
            [*command, *map(str, arguments)],
            cwd=REPOSITORY,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stderr is not None
        self.log: list[dict[str, Any]] = []
        for line in self.process.stderr:
            self.log.append(json.loads(line))
            if self.log[-1]["event"] == "ready":
                break
        else:
            raise AssertionError(f"the server ended: {self.log}")
        self.address: str = self.log[0]["address"]
        self._reader = Thread(target=self._read)
        self._reader.start()

    def call(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        connection = Plain(self.address)
        try:
            connection.request(method, target, body, dict(headers or {}))
            response = connection.getresponse()
            return Response(response.status, dict(response.headers), response.read())
        finally:
            connection.close()

    def metrics(self) -> dict[str, float]:
        lines = self.call("GET", "/metrics").body.decode().splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
        return {name: float(value) for name, value in pairs}

    def end(self, sig: int = signal.SIGTERM) -> int:
        """Stops it; its exit status."""
        self.process.send_signal(sig)
        status = self.process.wait(WAIT_SECONDS)
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(json.loads(line))


@contextmanager
def running(*arguments: str | Path) -> Iterator[Running]:
    """A server for the length of a block; stopped if it still runs."""
    server = Running(*arguments)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.end(signal.SIGKILL)


class Half:
    """A request of which half has been sent; `finish` sends the rest."""

    def __init__(self, server: Running, body: bytes, target: str = "/v1/segment") -> None:
        self._connection = Plain(server.address)
        self._connection.putrequest("POST", target)
        self._connection.putheader("Content-Length", str(len(body)))
        self._connection.endheaders(body[: len(body) // 2])
        self._rest = body[len(body) // 2 :]

    def finish(self) -> Response:
        self._connection.send(self._rest)
        return self.response()

    def response(self) -> Response:
        response = self._connection.getresponse()
        found = Response(response.status, dict(response.headers), response.read())
        self.leave()
        return found

    def leave(self) -> None:
        self._connection.close()
