"""Gzip by ISA-L, which inflates scans in half of zlib's time and deflates labels in a quarter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from isal import igzip, isal_zlib

from rare_trt.errors import ScanError

if TYPE_CHECKING:
    from isal.isal_zlib import Decompress

# Labels are mostly runs of zeros: the highest level takes four times as long for the same size.
LEVEL: Final = 1

# A window of 32 KiB in gzip's format, as zlib counts.
WINDOW_BITS: Final = 31

MAGIC: Final = b"\x1f\x8b"

# Deflate cannot shrink anything further than this, so smaller data cannot inflate to more.
LARGEST_RATIO: Final = 1032

# Compressed and inflated bytes handled at a time. A member begins with few, because what it leaves
# of them is copied: a stream of many short members would take minutes.
CHUNK: Final = 1 << 18
FIRST_CHUNK: Final = 1 << 12

# The error of a decompressor on a damaged stream, a wrong checksum or a wrong length included.
# isal's types call it an exception, not a class of them.
DamagedGzip: type[Exception] = isal_zlib.IsalError  # type: ignore[assignment]


def compress(data: bytes) -> bytes:
    """`data` as a gzip file of one member; the same data gives the same bytes."""
    compressed: bytes = igzip.compress(data, LEVEL, mtime=0)
    return compressed


def first_bytes(data: bytes, size: int) -> bytes:
    """The first `size` bytes of a file's content, inflated where `data` is a gzip stream; raises
    ScanError where that is damaged."""
    return GzipStream(data).start(size) if data[:2] == MAGIC else data[:size]


def decompressor() -> Decompress:
    """Inflates one member: the interface of zlib.decompressobj, `max_length` included."""
    return isal_zlib.decompressobj(WINDOW_BITS)


class GzipStream:
    """The content of the gzip stream `data`, all its members (RFC 1952), read to a declared size
    and not one byte further.

    Every method raises ScanError where the stream is damaged or truncated, or where a checksum or
    length is wrong.
    """

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._place = 0
        self._member = decompressor()
        self._chunk = FIRST_CHUNK
        self._start = b""

    def start(self, size: int) -> bytes:
        """The first `size` bytes of the content, or all of it; called once, before the rest."""
        self._start = self._read(size)
        return self._start

    def whole(self, size: int, more: int = 0) -> memoryview:
        """The first `size` bytes of the content: memory is allocated only now. Up to `more` bytes
        may follow them, which are checked and left out.

        Raises ScanError where it is shorter or longer, or where other bytes lie behind it.
        """
        if size > LARGEST_RATIO * len(self._data):
            raise ScanError(
                f"the header declares {size} bytes, which {len(self._data)} compressed ones "
                "cannot contain; expected a whole scan: copy it again"
            )
        whole = bytearray(size)
        # A content shorter than its start may be read to its end already.
        whole[: len(self._start)] = self._start[:size]
        found = len(self._start)
        while found < size and (piece := self._read(min(CHUNK, size - found))):
            whole[found : found + len(piece)] = piece
            found += len(piece)
        if found != size or len(self._read(more + 1)) > more:
            raise ScanError(
                f"the gzip stream has {'fewer' if found < size else 'more'} bytes than the "
                f"{size} that the header declares; expected a whole scan and nothing else: copy "
                "it again"
            )
        return memoryview(whole).toreadonly()

    def _read(self, size: int) -> bytes:
        """The next `size` bytes, fewer only at the end, when every checksum was right."""
        pieces: list[bytes] = []
        missing = size
        while missing:
            if self._member.eof:
                if self._place == len(self._data):
                    break
                if bytes(self._data[self._place : self._place + 2]) != MAGIC:
                    behind = len(self._data) - self._place
                    raise _damaged(f"{behind} bytes of something else lie behind it")
                self._member = decompressor()
                self._chunk = FIRST_CHUNK
            chunk = self._data[self._place : self._place + self._chunk]
            try:
                piece = self._member.decompress(chunk, missing)
            except DamagedGzip as error:
                raise _damaged(str(error)) from error
            member = self._member
            left = len(member.unused_data if member.eof else member.unconsumed_tail)
            self._place += len(chunk) - left
            self._chunk = min(2 * self._chunk, CHUNK)
            if not piece and len(chunk) == left and not self._member.eof:
                raise _damaged("it ends too early")
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)


def _damaged(what: str) -> ScanError:
    return ScanError(f"the gzip stream is damaged ({what}); expected a whole scan: copy it again")
