"""What a request asks for: from its head and body to options and files, or to a refusal."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl

from rare_trt.errors import RareTrtError
from rare_trt.jobs import Job, check_outputs, labels_beside
from rare_trt.options import YES_OR_NO, SegmentOptions, options_from_query
from rare_trt.storage.naming import file_size

MAX_JSON_BYTES: Final = 1 << 16
MAX_FIELDS: Final = 16

OUTPUTS: Final = ("labels", "report", "picture")


class RequestError(RareTrtError):
    """A request that gets no labels: its status, one sentence, and when to try again."""

    def __init__(self, status: HTTPStatus, sentence: str, retry_after: int | None = None) -> None:
        super().__init__(sentence)
        self.status, self.retry_after = status, retry_after


@dataclass(frozen=True)
class Asking:
    """A request to segment, as far as its head says.

    `names_files`: its body is JSON that names files on this machine; otherwise it is a scan.
    """

    asked: SegmentOptions
    picture: bool
    names_files: bool
    max_bytes: int

    def check_body(self, size: int) -> None:
        """Raises RequestError where a body of `size` bytes is too large."""
        if not self.names_files and size > self.max_bytes:
            raise _too_large(self.max_bytes, "the body")
        if self.names_files and size > MAX_JSON_BYTES:
            raise RequestError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the body is larger than {MAX_JSON_BYTES} bytes; expected JSON that names a few "
                "files: mend the request",
            )


@dataclass(frozen=True)
class Names:
    """The files that a request names, as it names them; those of the scan are one with every
    channel, or one per channel."""

    scan: tuple[str, ...]
    labels: str | None
    report: str | None
    picture: str | None
    overwrite: bool

    def job(self, folders: Sequence[Path]) -> Job:
        """The same with every link followed; whether they are there is not looked at.

        Raises RequestError where one leads out of `folders`, and OutputError where the outputs
        make no sense.
        """
        files = tuple(_inside(path, folders) for path in self.scan)
        # Beside the name that was given, not beside what a link of that name leads to.
        beside = str(labels_beside(Path(self.scan[0])))
        job = Job(
            files,
            _inside(beside if self.labels is None else self.labels, folders),
            None if self.report is None else _inside(self.report, folders),
            None if self.picture is None else _inside(self.picture, folders),
        )
        check_outputs([job])
        return job


def read_head(
    query: bytes, headers: Sequence[tuple[bytes, bytes]], max_bytes: int, *, may_name_files: bool
) -> Asking:
    """What the head of a request asks for; raises RequestError where it is not understood.

    `headers` have lower-case names; `max_bytes` is how large a scan may be.
    """
    found = dict(headers)
    kind = found.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind.startswith(b"multipart/"):
        raise RequestError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "the body is multipart; expected the scan's file itself (curl --data-binary @FILE)",
        )
    if found.get(b"content-encoding", b"identity").lower() != b"identity":
        raise RequestError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "the body has a content encoding; expected the file as it is, .nii or .nii.gz",
        )
    names_files = kind == b"application/json"
    if names_files and not may_name_files:
        raise RequestError(
            HTTPStatus.FORBIDDEN,
            "this server reads no files that requests name: send the scan as the body, or start "
            "the server with --allow DIR",
        )
    length = found.get(b"content-length", b"0")
    if not length.isdigit():
        raise RequestError(HTTPStatus.BAD_REQUEST, "Content-Length is no number: mend the request")
    fields = _fields(query)
    picture = fields.pop("picture", "no")
    if picture not in YES_OR_NO or (names_files and picture != "no"):
        raise RequestError(
            HTTPStatus.BAD_REQUEST,
            f"picture is {picture!r}; expected yes or no, or its path beside that of the scan",
        )
    try:
        asked = options_from_query(fields)
    except argparse.ArgumentTypeError as error:
        raise RequestError(HTTPStatus.BAD_REQUEST, str(error)) from error
    asking = Asking(asked, YES_OR_NO[picture], names_files, max_bytes)
    # Beyond 18 digits a number is too large for any file, and slow to read.
    asking.check_body(int(length) if len(length) <= 18 else 10**18)
    return asking


def read_names(body: bytes) -> Names:
    """The files that a JSON body names; raises RequestError where it is not understood."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(
            HTTPStatus.BAD_REQUEST, "the body is no JSON; mend the request"
        ) from error
    if not isinstance(found, dict) or not found.keys() <= {"scan", *OUTPUTS, "overwrite"}:
        raise RequestError(
            HTTPStatus.BAD_REQUEST,
            "expected one JSON object with scan, and as needed labels, report, picture, overwrite; "
            "options stand in the query",
        )
    scan = found.pop("scan", None)
    files = scan if isinstance(scan, list) else [scan]
    if not files or not all(isinstance(path, str) for path in files):
        raise RequestError(
            HTTPStatus.BAD_REQUEST,
            "scan is missing, or no path; expected a path, or a list of paths, one per channel",
        )
    for name in OUTPUTS:
        if not isinstance(found.get(name, ""), str):
            raise RequestError(HTTPStatus.BAD_REQUEST, f"{name} is no text; expected a path")
    overwrite = found.get("overwrite", False)
    if not isinstance(overwrite, bool):
        raise RequestError(HTTPStatus.BAD_REQUEST, "overwrite is neither true nor false: mend it")
    outputs: dict[str, Any] = {name: found.get(name) for name in OUTPUTS}
    return Names(tuple(files), **outputs, overwrite=overwrite)


def check_size(job: Job, max_bytes: int) -> None:
    """Raises RequestError where the job's scan is larger than `max_bytes`, all its files together,
    and ScanError where one is no file or would keep the server waiting."""
    if sum(file_size(path) for path in job.files) > max_bytes:
        raise _too_large(max_bytes, "the scan")


def _too_large(max_bytes: int, what: str) -> RequestError:
    return RequestError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"{what} is larger than {max_bytes} bytes; the server's --max-upload says how much it "
        "takes",
    )


def _fields(query: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            query.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=bool(query),
            errors="strict",
            max_num_fields=MAX_FIELDS,
        )
    except ValueError as error:
        raise RequestError(
            HTTPStatus.BAD_REQUEST, "the query is damaged; expected name=value&name=value"
        ) from error
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise RequestError(HTTPStatus.BAD_REQUEST, "an option stands twice: name it once")
    return fields


def _inside(text: str, folders: Sequence[Path]) -> Path:
    """The file that `text` names, every link followed; whether it exists is not told outside."""
    try:
        named = Path(text)
        path = named.resolve()
    except (ValueError, OSError, RuntimeError) as error:
        # A zero byte, half a surrogate, links in a circle.
        raise RequestError(
            HTTPStatus.BAD_REQUEST, "a path cannot be read; mend the request"
        ) from error
    if not named.is_absolute():
        raise RequestError(HTTPStatus.BAD_REQUEST, "a path is relative; expected a full one")
    # A folder is not in itself: as an output, its temporary name would lie outside.
    if not any(folder in path.parents for folder in folders):
        raise RequestError(
            HTTPStatus.FORBIDDEN,
            "a path is not inside the folders that this server was started with: see its --allow",
        )
    return path
