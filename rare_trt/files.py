"""Files written whole or not at all."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from contextlib import suppress
from errno import EISDIR
from pathlib import Path

from rare_trt.errors import OutputError


def sha256(data: bytes) -> str:
    """The lower-case hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def refuse_existing(paths: list[Path]) -> None:
    """Raises OutputError where one of `paths` exists already."""
    for path in paths:
        if path.exists():
            raise OutputError(f"{path}: exists already: name another output or pass --overwrite")


def write_files(contents: Mapping[Path, bytes], *, overwrite: bool) -> None:
    """Writes all of `contents`, each under a temporary name first, or none of them.

    Folders are made as needed. Raises OutputError with one sentence; what was there before is
    then still there, and no temporary file is.
    """
    if not overwrite:
        refuse_existing(list(contents))
    temporary: dict[Path, Path] = {}
    try:
        for path, data in contents.items():
            if path.is_dir():
                raise IsADirectoryError(EISDIR, "it is a folder", str(path))
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary[path] = _write_temporary(path, data)
        for path, temp in temporary.items():
            temp.replace(path)
    except OSError as error:
        raise OutputError(
            f"{error.filename or next(iter(contents))}: cannot be written ({error.strerror}): "
            "check the folder's permissions and the free space"
        ) from error
    finally:
        for temp in temporary.values():
            with suppress(FileNotFoundError):
                temp.unlink()


def _write_temporary(path: Path, data: bytes) -> Path:
    temp = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with temp.open("xb") as file:
            file.write(data)
    except BaseException:
        with suppress(FileNotFoundError):
            temp.unlink()
        raise
    return temp
