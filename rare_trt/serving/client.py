"""The client of a `rare-trt serve` on this machine. Imports nothing that computes."""

from __future__ import annotations

import http
import http.client
import io
import json
import socket
import zipfile
from time import monotonic, sleep
from typing import Final
from urllib.parse import urlencode, urlsplit

from rare_trt.errors import BackendError, RareTrtError, ScanError
from rare_trt.options import SegmentOptions, query_from_options
from rare_trt.storage.naming import LABEL_NAMES, LABELS, PICTURE, REPORT

LOOPBACK: Final = ("127.0.0.1", "localhost")

# The files in a server's response, the picture only on request.
FILES: Final = (LABELS, LABEL_NAMES, REPORT, PICTURE)

# A scan waits at most for a full queue before it.
RESPONSE_SECONDS: Final = 600.0

# A request that a server refuses while it loads or its queue is full is repeated for so long, each
# time after the seconds of the server's Retry-After.
RETRY_SECONDS: Final = 120.0

# Used where a server closed the connection before it read the whole request.
CLOSED: Final = b'{"error": "the server has too many connections: try again later"}'


class UnixConnection(http.client.HTTPConnection):
    """An HTTP connection over the Unix socket at a path."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=RESPONSE_SECONDS)
        self._path = path

    def connect(self) -> None:
        """Connects to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Client:
    """Sends scans to the server at `address`: http://127.0.0.1:PORT, or the path of its socket.

    Raises BackendError where the address is of another machine: scans would travel unencrypted.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._host_and_port = _host_and_port(address) if "://" in address else None
        if self._host_and_port is None and not hasattr(socket, "AF_UNIX"):
            raise BackendError(
                f"{address}: this system's Python has no Unix sockets: name http://127.0.0.1:PORT"
            )

    def segment(
        self, scan: bytes, options: SegmentOptions, *, picture: bool = False, name: str = ""
    ) -> dict[str, bytes]:
        """Has the server segment a scan's file (NIfTI or FreeSurfer's) with keywords of
        Segmenter.segment.

        Returns labels.nii.gz, labels_dseg.tsv, report.json and on request picture.png, which shows
        the scan's `name`. Raises ScanError with the server's sentence where the scan cannot be
        segmented as it is, and BackendError where the server cannot be reached, fails, or stays
        busy for RETRY_SECONDS.
        """
        query = query_from_options(options)
        if picture:
            query += [("picture", "yes"), ("name", name)]
        target = f"/v1/segment?{urlencode(query, errors='replace')}"
        last_try = monotonic() + RETRY_SECONDS
        status, retry_after, body = self._post(target, scan)
        while status == http.HTTPStatus.SERVICE_UNAVAILABLE and monotonic() < last_try:
            sleep(max(0.0, min(max(1.0, retry_after), last_try - monotonic())))
            status, retry_after, body = self._post(target, scan)
        if status != http.HTTPStatus.OK:
            refused = status == http.HTTPStatus.UNPROCESSABLE_ENTITY
            error: type[RareTrtError] = ScanError if refused else BackendError
            raise error(_error_sentence(status, body))
        try:
            with zipfile.ZipFile(io.BytesIO(body)) as archive:
                return {name: archive.read(name) for name in FILES[: 3 + picture]}
        except (zipfile.BadZipFile, KeyError) as error:
            raise self.unexpected_response_error() from error

    def unexpected_response_error(self) -> BackendError:
        """The error for a response that no server of this version sends."""
        return BackendError(
            f"{self.address}: sends something else than labels; expected a `rare-trt serve` of "
            "this version: check --server"
        )

    def _post(self, target: str, body: bytes) -> tuple[int, float, bytes]:
        """Status, seconds until a retry makes sense, and body of the response."""
        connection = self._connection()
        try:
            try:
                kind = {"Content-Type": "application/octet-stream"}
                connection.request("POST", target, body, kind)
            except (BrokenPipeError, ConnectionResetError):
                # A server with too many connections closes some before it reads the request.
                return http.HTTPStatus.SERVICE_UNAVAILABLE, 1.0, CLOSED
            response = connection.getresponse()
            retry_after = float(response.headers.get("Retry-After", 1))
            return response.status, retry_after, response.read()
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise BackendError(
                f"{self.address}: no response from a server ({_reason(error)}): start one with "
                "`rare-trt serve`, or leave out --server"
            ) from error
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if self._host_and_port is None:
            return UnixConnection(self.address)
        return http.client.HTTPConnection(*self._host_and_port, timeout=RESPONSE_SECONDS)


def _host_and_port(address: str) -> tuple[str, int]:
    try:
        url = urlsplit(address)
        if url.scheme == "http" and url.hostname in LOOPBACK and url.port:
            return url.hostname, url.port
    except ValueError:
        # A port that is not a number.
        pass
    raise BackendError(
        f"{address}: expected http://127.0.0.1:PORT or the path of a socket: scans are sent to a "
        "server on this machine only"
    )


def _error_sentence(status: int, body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return f"the server failed with status {status}: look at what it logged"


def _reason(error: Exception) -> str:
    strerror = getattr(error, "strerror", None)
    return str(strerror or error or type(error).__name__)
