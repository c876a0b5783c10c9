"""What a machine keeps between starts: compiled models and passed checks.

The cache only saves time: an entry that is absent, damaged or not writable is made again.
Its folder is $RARE_TRT_CACHE, or the platform's own place for caches.
"""

from __future__ import annotations

import os
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from platformdirs import user_cache_path, user_data_path

from rare_trt.constants import DIGEST_BYTES, MAX_CACHE_BYTES
from rare_trt.errors import OutputError
from rare_trt.storage.files import write_files

# Only files with such names belong to the cache: the folder may hold others.
OWN_FILES = "[0-9a-f]" * 64 + ".bin"


class Cache:
    """Bytes under a key. Each file starts with a SHA-256 over its key and content.

    A folder that another user owns or may write to is not used: a compiled model is code.
    """

    def __init__(self, folder: Path | None = None) -> None:
        named = os.environ.get("RARE_TRT_CACHE")
        self.folder = folder or (Path(named) if named else user_cache_path("rare-trt"))

    def load(self, *key: str) -> bytes | None:
        """What was stored under `key`, or None where it is absent, damaged or of another key."""
        path = self._path(key)
        try:
            if not self._is_private():
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
        """Stores `content` under `key` if the folder can be used; removes the oldest files."""
        with suppress(OutputError, OSError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._is_private():
                write_files({self._path(key): _digest(key, content) + content}, overwrite=True)
                self._make_room()

    def _make_room(self) -> None:
        files = sorted(self.folder.glob(OWN_FILES), key=lambda path: path.stat().st_mtime)
        held = sum(path.stat().st_size for path in files)
        for path in files[:-1]:
            if held <= MAX_CACHE_BYTES:
                return
            held -= path.stat().st_size
            path.unlink()

    def _is_private(self) -> bool:
        if os.name != "posix":
            return True
        state = self.folder.stat()
        return state.st_uid == os.getuid() and not state.st_mode & 0o022

    def _path(self, key: tuple[str, ...]) -> Path:
        return self.folder / f"{_digest(key, b'').hex()}.bin"


def _digest(key: tuple[str, ...], content: bytes) -> bytes:
    digest = sha256(chr(0).join(key).encode() + b"\0\0")
    digest.update(content)
    return digest.digest()


def home_folder() -> Path | None:
    """The folder for what a user makes and keeps: $RARE_TRT_HOME, or the platform's own place for
    data. None where there is neither, as for a user without a home."""
    named = os.environ.get("RARE_TRT_HOME")
    if named:
        return Path(named)
    try:
        folder = user_data_path("rare-trt")
    except RuntimeError:
        return None
    # Older releases of platformdirs return ~ itself where no home is known.
    return folder if folder.is_absolute() else None
