"""Files written whole or not at all."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
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

    Folders are made as needed. Raises OutputError with one sentence; no temporary file, no new
    file and no new folder is then left. Replacing several files is as good as the file system
    allows: it renames them one by one.
    """
    temporary: dict[Path, Path] = {}
    absent: set[Path] = set()
    written: list[Path] = []
    new_folders: list[Path] = []
    path = Path()
    try:
        for path, data in contents.items():
            if path.exists():
                if not overwrite:
                    refuse_existing([path])
                if path.is_dir():
                    raise IsADirectoryError(EISDIR, "it is a folder")
            else:
                absent.add(path)
                if not path.parent.exists():
                    new_folders += [folder for folder in path.parents if not folder.exists()]
                    path.parent.mkdir(parents=True, exist_ok=True)
            temporary[path] = _write_temporary(path, data)
        for path, temp in temporary.items():
            temp.replace(path)
            if path in absent:
                written.append(path)
    except BaseException as error:
        _remove([*temporary.values(), *written], new_folders)
        if isinstance(error, OSError):
            raise OutputError(
                f"{path}: cannot be written ({error.strerror}): check the folder's permissions "
                "and the free space"
            ) from error
        raise


def _remove(files: Sequence[Path], folders: Sequence[Path]) -> None:
    for path in files:
        with suppress(OSError):
            path.unlink()
    for folder in sorted(set(folders), key=lambda folder: len(folder.parts), reverse=True):
        with suppress(OSError):
            folder.rmdir()


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
