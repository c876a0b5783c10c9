"""A client of `rare-trt serve`, on this machine. Loads nothing that computes."""

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

from rare_trt.errors import BackendError, OutputError, RareTrtError, ScanError
from rare_trt.options import SegmentOptions, as_query
from rare_trt.storage.naming import LABEL_NAMES, LABELS, PICTURE, REPORT

LOOPBACK: Final = ("127.0.0.1", "localhost")

# What a server sends back; the last one on request.
FILES: Final = (LABELS, LABEL_NAMES, REPORT, PICTURE)

# A scan waits at most for a full queue before it.
ANSWER_SECONDS: Final = 600.0

# A server that loads or has a full queue is asked again for so long, each time after as many
# seconds as it says.
PATIENCE_SECONDS: Final = 120.0

# In place of an answer that a server gave before it was sent everything.
CLOSED: Final = b'{"error": "the server has too many connections: try again later"}'

# Which error a status is; all others are the machine's.
ERRORS: Final[dict[int, type[RareTrtError]]] = {409: OutputError, 422: ScanError}


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=ANSWER_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Server:
    """A server at http://127.0.0.1:PORT or at the path of its socket.

    Raises BackendError where the address is of another machine: scans would travel unencrypted.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._place = _host_and_port(address) if "://" in address else None
        if self._place is None and not hasattr(socket, "AF_UNIX"):
            raise BackendError(
                f"{address}: this system's Python has no Unix sockets: name http://127.0.0.1:PORT"
            )

    def segment(
        self, scan: bytes, asked: SegmentOptions, *, picture: bool = False
    ) -> dict[str, bytes]:
        """What the server makes of a scan's file: labels.nii.gz, labels_dseg.tsv, report.json and
        on request picture.png.

        Raises ScanError with the server's sentence where the scan cannot be segmented as it is,
        and BackendError where no answer comes.
        """
        query = as_query(asked) | ({"picture": "yes"} if picture else {})
        target = f"/v1/segment?{urlencode(query)}"
        last_try = monotonic() + PATIENCE_SECONDS
        status, retry_after, body = self._posted(target, scan)
        while status == http.HTTPStatus.SERVICE_UNAVAILABLE and monotonic() < last_try:
            sleep(max(0.0, min(max(1.0, retry_after), last_try - monotonic())))
            status, retry_after, body = self._posted(target, scan)
        if status != http.HTTPStatus.OK:
            raise ERRORS.get(status, BackendError)(_sentence(status, body))
        try:
            with zipfile.ZipFile(io.BytesIO(body)) as archive:
                return {name: archive.read(name) for name in FILES[: 3 + picture]}
        except (zipfile.BadZipFile, KeyError) as error:
            raise self.stranger() from error

    def stranger(self) -> BackendError:
        """What to say of an answer that no server of this version gives."""
        return BackendError(
            f"{self.address}: answers something else than labels; expected a `rare-trt serve` of "
            "this version: check --server"
        )

    def _posted(self, target: str, body: bytes) -> tuple[int, float, bytes]:
        """Status, seconds until another try makes sense, and body of the answer."""
        connection = self._connection()
        try:
            try:
                kind = {"Content-Type": "application/octet-stream"}
                connection.request("POST", target, body, kind)
            except (BrokenPipeError, ConnectionResetError):
                # With too many connections a server closes some before it reads what they send.
                return http.HTTPStatus.SERVICE_UNAVAILABLE, 1.0, CLOSED
            answer = connection.getresponse()
            return answer.status, float(answer.headers.get("Retry-After", 1)), answer.read()
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise BackendError(
                f"{self.address}: no answer from a server ({_reason(error)}): start one with "
                "`rare-trt serve`, or leave out --server"
            ) from error
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if self._place is None:
            return UnixConnection(self.address)
        return http.client.HTTPConnection(*self._place, timeout=ANSWER_SECONDS)


def _host_and_port(address: str) -> tuple[str, int]:
    try:
        url = urlsplit(address)
        if url.scheme == "http" and url.hostname in LOOPBACK and url.port:
            return url.hostname, url.port
    except ValueError:
        # A port that is no number.
        pass
    raise BackendError(
        f"{address}: expected http://127.0.0.1:PORT or the path of a socket: scans are sent to a "
        "server on this machine only"
    )


def _sentence(status: int, body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered with status {status}: look at what it logged"


def _reason(error: Exception) -> str:
    strerror = getattr(error, "strerror", None)
    return str(strerror or error or type(error).__name__)
