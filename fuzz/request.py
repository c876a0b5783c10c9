"""Fuzzing what a request to `rare-trt serve` asks for: query, headers, JSON, paths.

    python fuzz/request.py CORPUS [libFuzzer options]

An input is the query, a line per header, an empty line, and the body.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from rare_trt.errors import RareTrtError
from rare_trt.options import as_query, options_from_query
from rare_trt.serving.request import RequestError, check_size, read_head, read_names

MAX_BYTES: Final = 1 << 20

# Requests may name what is in here, and a link shows the way out.
FOLDER: Final = tempfile.mkdtemp(prefix="rare-trt-fuzz-")
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
ALLOWED: Final = Path(FOLDER).resolve() / "a"
ALLOWED.mkdir()
(ALLOWED / "out").symlink_to("/")
for name in ("in.nii", "in2.nii"):
    (ALLOWED / name).write_bytes(b"in")


def one(data: bytes) -> None:
    """Reads `data` as a request; raises only where what it gives is wrong."""
    head, _, body = data.partition(b"\n\n")
    query, *lines = head.split(b"\n")
    headers = [(name.strip().lower(), value.strip()) for name, _, value in map(_parted, lines)]
    try:
        asking = read_head(query, headers, MAX_BYTES, may_name_files=True)
        # A client says the same again, in an order of its own, and is understood the same; as
        # texts, since NaN is like no number.
        again = options_from_query(as_query(asking.asked))
        assert sorted(map(repr, again.items())) == sorted(map(repr, asking.asked.items()))
        if asking.names_files:
            # The folder has another name in every run.
            names = read_names(body.replace(b"$A", str(ALLOWED).encode()))
            job = names.job([ALLOWED])
            for path in (*job.files, *job.outputs()):
                assert os.path.realpath(path).startswith(f"{ALLOWED}{os.sep}"), path
            check_size(job, MAX_BYTES)
    except RequestError as error:
        assert 400 <= error.status < 600
        assert "\n" not in str(error)
    except RareTrtError:
        # Two outputs of one name, labels that are no .nii, a scan that is no file.
        return


def _parted(line: bytes) -> tuple[bytes, bytes, bytes]:
    return line.partition(b":")


def main() -> None:
    """Hands over to atheris."""
    import atheris

    atheris.instrument_all()
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
