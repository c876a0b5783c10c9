"""What a machine remembers between starts: compiled models and passed checks.

The cache only ever saves time: whatever is absent, damaged or cannot be written is made again.
Its folder is $RARE_TRT_CACHE, or the platform's own place for caches.
"""

from __future__ import annotations

import os
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from platformdirs import user_cache_path

from rare_trt.errors import OutputError
from rare_trt.files import write_files

# Four routes at two precisions, for a few packages; about 25 MB each.
MAX_FILES = 32
DIGEST_BYTES = 32


class Cache:
    """Bytes under a key. Each file starts with the SHA-256 of the rest and is held to it."""

    def __init__(self, folder: Path | None = None) -> None:
        named = os.environ.get("RARE_TRT_CACHE")
        self.folder = folder or (Path(named) if named else user_cache_path("rare-trt"))

    def load(self, *key: str) -> bytes | None:
        """What was stored under `key`, or None where it is absent or damaged."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        content = data[DIGEST_BYTES:]
        if sha256(content).digest() != data[:DIGEST_BYTES]:
            return None
        with suppress(OSError):
            path.touch()
        return content

    def store(self, content: bytes, *key: str) -> None:
        """Keeps `content` under `key`, where the folder can be written; drops the oldest files."""
        data = sha256(content).digest() + content
        with suppress(OutputError, OSError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_files({self._path(key): data}, overwrite=True)
            files = sorted(self.folder.glob("*.bin"), key=lambda path: path.stat().st_mtime)
            for path in files[:-MAX_FILES]:
                path.unlink()

    def _path(self, key: tuple[str, ...]) -> Path:
        return self.folder / f"{sha256(chr(0).join(key).encode()).hexdigest()}.bin"
