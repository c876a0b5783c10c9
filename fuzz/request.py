"""Fuzzing the query and the headers of requests to `rare-trt serve`.

    python fuzz/request.py CORPUS [libFuzzer options]

An input is the query, a line per header, an empty line, and the body.
"""

from __future__ import annotations

import sys
from typing import Final

from rare_trt.options import options_from_query, query_from_options
from rare_trt.serving.request import RequestError, check_body_size, request_from_head

MAX_BYTES: Final = 1 << 20


def one(data: bytes) -> None:
    """Parses `data` as a request; raises only where the result is wrong."""
    head, _, body = data.partition(b"\n\n")
    query, *lines = head.split(b"\n")
    headers = [(name.strip().lower(), value.strip()) for name, _, value in map(_split, lines)]
    try:
        options = request_from_head(query, headers, MAX_BYTES).options
        check_body_size(len(body), MAX_BYTES)
    except RequestError as error:
        assert 400 <= error.status < 600
        assert "\n" not in str(error)
        return
    # A client's query, in an order of its own, is read as the same options; compared as texts,
    # since NaN equals no number.
    again = options_from_query(query_from_options(options))
    assert sorted(map(repr, again.items())) == sorted(map(repr, options.items()))


def _split(line: bytes) -> tuple[bytes, bytes, bytes]:
    return line.partition(b":")


def main() -> None:
    """Runs the fuzzer, atheris."""
    import atheris

    atheris.instrument_all()
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
