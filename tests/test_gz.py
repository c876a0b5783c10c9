"""Gzip in and out is everybody's gzip, and damage is found."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import pytest

from rare_trt.scan.gz import DamagedGzip, compress, decompressor


def test_anybody_reads_what_is_compressed(examples: Path) -> None:
    labels = gzip.decompress((examples / "truth" / "1mm.nii.gz").read_bytes())
    packed = compress(labels)
    assert gzip.decompress(packed) == labels
    assert zlib.decompress(packed, wbits=31) == labels
    assert len(packed) < len(labels) / 10


def test_the_same_data_gives_the_same_bytes() -> None:
    assert compress(bytes(1000)) == compress(bytes(1000))


def test_a_scan_is_inflated_within_a_bound(examples: Path) -> None:
    packed = (examples / "hippocampus_1mm.nii.gz").read_bytes()
    inflate = decompressor()
    pieces = [inflate.decompress(packed, 1000)]
    while not inflate.eof:
        pieces.append(inflate.decompress(inflate.unconsumed_tail, 1000))
    assert max(map(len, pieces)) == 1000
    assert b"".join(pieces) == gzip.decompress(packed)
    assert inflate.unused_data == b""


def test_what_follows_a_member_is_handed_back() -> None:
    inflate = decompressor()
    assert inflate.decompress(compress(b"one") + compress(b"two")) == b"one"
    assert inflate.unused_data == compress(b"two")


@pytest.mark.parametrize("position", [2, -1, -8], ids=["method", "length", "checksum"])
def test_damage_is_found(position: int) -> None:
    packed = bytearray(compress(bytes(range(256)) * 10))
    packed[position] ^= 1
    with pytest.raises(DamagedGzip):
        decompressor().decompress(bytes(packed))


def test_a_stream_that_breaks_off_does_not_end() -> None:
    inflate = decompressor()
    inflate.decompress(compress(bytes(range(256)))[:-4])
    assert not inflate.eof
