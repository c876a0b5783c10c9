"""Gzip by ISA-L, which inflates scans in half of zlib's time and deflates labels in a quarter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from isal import igzip, isal_zlib

if TYPE_CHECKING:
    from isal.isal_zlib import Decompress

# Labels are mostly runs of zeros: the highest level takes four times as long for the same size.
LEVEL: Final = 1

# A window of 32 KiB in gzip's format, as zlib counts.
WINDOW_BITS: Final = 31

# What a decompressor raises on a damaged stream, a wrong checksum or a wrong length included.
# isal's types call it an exception, not a class of them.
DamagedGzip: type[Exception] = isal_zlib.IsalError  # type: ignore[assignment]


def compress(data: bytes) -> bytes:
    """`data` as a gzip file of one member; the same data gives the same bytes."""
    compressed: bytes = igzip.compress(data, LEVEL, mtime=0)
    return compressed


def decompressor() -> Decompress:
    """Inflates one member: the interface of zlib.decompressobj, `max_length` included."""
    return isal_zlib.decompressobj(WINDOW_BITS)
