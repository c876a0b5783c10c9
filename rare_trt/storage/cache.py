"""What a machine keeps between starts: compiled models and passed checks.

The cache only saves time: an entry that is absent, damaged or not writable is made again.
Its folder is $RARE_TRT_CACHE, or the platform's own place for caches. Where there is none, as for a
user without a home directory, a warning is issued and nothing is kept.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from platformdirs import user_cache_path, user_data_path

from rare_trt.constants import DIGEST_BYTES, MAX_CACHE_BYTES
from rare_trt.errors import CacheWarning, OutputError
from rare_trt.storage.files import write_files

# Only files with such names belong to the cache: the folder may hold others.
OWN_FILES = "[0-9a-f]" * 64 + ".bin"


class Cache:
    """Bytes under a key. Each file starts with a SHA-256 over its key and content.

    A folder that another user owns or may write to is not used: a compiled model is code.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or user_folder("RARE_TRT_CACHE", user_cache_path)

    def load(self, *key: str) -> bytes | None:
        """What was stored under `key`, or None where it is absent, damaged or of another key."""
        if self.folder is None:
            return None
        path = self.folder / _name(key)
        try:
            if not is_private(self.folder):
                return None
            with path.open("rb") as file:
                digest, content = file.read(DIGEST_BYTES), file.read()
        except OSError:
            return None
        if _digest(key, content) != digest:
            return None
        with suppress(OSError):
            path.touch()
        return content

    def store(self, content: bytes, *key: str) -> None:
        """Stores `content` under `key`, and removes the oldest files.

        Where the folder cannot be used it warns instead, once per process with Python's usual
        filters.
        """
        if self.folder is None:
            _warn("the cache has no folder, because this user has no home directory")
            return
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not is_private(self.folder):
                _warn(f"{self.folder}: others own or may write to the cache's folder")
                return
            entry = _digest(key, content) + content
            write_files({self.folder / _name(key): entry}, overwrite=True)
        except (OutputError, OSError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            # Without a cause another process was writing the same entry.
            if isinstance(cause, OSError):
                _warn(f"{self.folder}: the cache's folder cannot be written ({cause.strerror})")
            return
        # Another process may remove the same files.
        with suppress(OSError):
            _make_room(self.folder)


def user_folder(variable: str, find: Callable[[str], Path]) -> Path | None:
    """The folder in the environment variable, else the one that platformdirs' `find` names.

    None where the user has no home directory, as under an arbitrary user id in a container.
    """
    if named := os.environ.get(variable):
        return Path(named)
    try:
        folder = find("rare-trt")
    except RuntimeError:
        return None
    # Releases of platformdirs that raise no error return a path from "~" on.
    return folder if folder.is_absolute() else None


def home_folder() -> Path | None:
    """The folder for what a user makes and keeps: $RARE_TRT_HOME, or the platform's own place for
    data; None as `user_folder`."""
    return user_folder("RARE_TRT_HOME", user_data_path)


def _warn(what: str) -> None:
    # From one line, so that Python shows each sentence once.
    warnings.warn(
        f"{what}: nothing is kept between starts, which take longer; name a folder of your own in "
        "RARE_TRT_CACHE",
        CacheWarning,
        stacklevel=1,
    )


def _make_room(folder: Path) -> None:
    files = sorted(folder.glob(OWN_FILES), key=lambda path: path.stat().st_mtime)
    held = sum(path.stat().st_size for path in files)
    for path in files[:-1]:
        if held <= MAX_CACHE_BYTES:
            return
        held -= path.stat().st_size
        path.unlink()


def is_private(folder: Path, *, or_system: bool = False) -> bool:
    """Whether `folder` is this user's, or with `or_system` root's, and nobody else may write to
    it."""
    if os.name != "posix":
        return True
    state = folder.stat()
    owners = (0, os.getuid()) if or_system else (os.getuid(),)
    return state.st_uid in owners and not state.st_mode & 0o022


def _name(key: tuple[str, ...]) -> str:
    return f"{_digest(key, b'').hex()}.bin"


def _digest(key: tuple[str, ...], content: bytes) -> bytes:
    digest = sha256(chr(0).join(key).encode() + b"\0\0")
    digest.update(content)
    return digest.digest()
