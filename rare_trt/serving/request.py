"""Requests to segment: from a query and headers to options, or to a refusal."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl

from rare_trt.errors import RareTrtError
from rare_trt.options import OPTIONS, YES_OR_NO, SegmentOptions, options_from_query

# Of a query: more boxes than anybody segments in one scan.
MAX_FIELDS: Final = 64

# Fields of a query beside the options: whether a picture is wanted, and the name that it shows.
PICTURE: Final = "picture"
NAME: Final = "name"
OTHERS: Final = (PICTURE, NAME)


class RequestError(RareTrtError):
    """A refused request: its HTTP status, one sentence, and the seconds until a retry makes sense,
    None where it makes none."""

    def __init__(self, status: HTTPStatus, sentence: str, retry_after: int | None = None) -> None:
        super().__init__(sentence)
        self.status, self.retry_after = status, retry_after


@dataclass(frozen=True)
class SegmentRequest:
    """The query of a request to segment; its body is the scan's file.

    `options` are keywords of Segmenter.segment; `picture` requests a PNG beside the labels, which
    shows `name`, the scan's.
    """

    options: SegmentOptions
    picture: bool
    name: str = ""


def request_from_head(
    query: bytes, headers: Sequence[tuple[bytes, bytes]], max_bytes: int
) -> SegmentRequest:
    """Parses the query and the headers of a request, whose names are lower-case.

    Raises RequestError where one of them is invalid, or announces a body of more than `max_bytes`.
    """
    found = dict(headers)
    media_type = found.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if media_type.startswith(b"multipart/"):
        raise RequestError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "the body is multipart; expected the scan's file itself (curl --data-binary @FILE)",
        )
    if found.get(b"content-encoding", b"identity").lower() != b"identity":
        raise RequestError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "the body has a content encoding; expected the scan's file as it is",
        )
    length = found.get(b"content-length", b"0")
    if not length.isdigit():
        raise RequestError(
            HTTPStatus.BAD_REQUEST, "Content-Length is not a number; expected the body's bytes"
        )
    fields = _query_fields(query)
    names = [*(option.name for option in OPTIONS), *OTHERS]
    unknown = [name for name, _ in fields if name not in names]
    if unknown:
        raise RequestError(
            HTTPStatus.BAD_REQUEST,
            f"{unknown[0]!r} is not an option; expected one of {', '.join(names)}",
        )
    others = {PICTURE: "no", NAME: ""}
    for name in OTHERS:
        texts = [text for field, text in fields if field == name]
        if len(texts) > 1:
            raise RequestError(HTTPStatus.BAD_REQUEST, f"{name} is given twice: give it once")
        others[name] = texts[0] if texts else others[name]
    picture = others[PICTURE]
    if picture not in YES_OR_NO:
        raise RequestError(HTTPStatus.BAD_REQUEST, f"{PICTURE} is {picture!r}; expected yes or no")
    try:
        options = options_from_query(field for field in fields if field[0] not in OTHERS)
    except argparse.ArgumentTypeError as error:
        raise RequestError(HTTPStatus.BAD_REQUEST, str(error)) from error
    # Beyond 18 digits a number is too large for any file, and slow to read.
    check_body_size(int(length) if len(length) <= 18 else 10**18, max_bytes)
    return SegmentRequest(options, YES_OR_NO[picture], others[NAME])


def check_body_size(size: int, max_bytes: int) -> None:
    """Raises RequestError where a body of `size` bytes exceeds `max_bytes`."""
    if size > max_bytes:
        raise RequestError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the body is larger than {max_bytes} bytes, the server's limit (--max-upload)",
        )


def _query_fields(query: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(
            query.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=bool(query),
            errors="strict",
            max_num_fields=MAX_FIELDS,
        )
    except ValueError as error:
        raise RequestError(
            HTTPStatus.BAD_REQUEST,
            "the query is malformed; expected name=value&name=value, of at most "
            f"{MAX_FIELDS} values",
        ) from error
