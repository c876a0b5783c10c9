"""Damages real scans at random and counts what input validation lets through.

    python scripts/damage.py scans [--count 200000] [--seed 0] [--data DIR]

Takes the .nii.gz files of the examples, and of DIR, and validates truncated, flipped and
spliced variants of them. A variant whose content is still, byte for byte, that of a whole scan
does no harm and is counted apart: a flip in gzip's header (time, name, system), or one that makes
the stream copy the same bytes, mostly zeros, from elsewhere. Exits 1 where any other one passes.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
from numpy.random import Generator
from tqdm import tqdm

from rare_trt.errors import ScanError
from rare_trt.scan.validation import validate_nifti

EXAMPLES: Final = Path(__file__).parents[1] / "examples"
PROCESSES: Final = 2
BATCH: Final = 500

# Larger files take long to read and have no other kinds of bytes.
LARGEST_FILE: Final = 200_000

# The longest run of bytes that a fault replaces: a sector.
LONGEST_RUN: Final = 512

Damage: TypeAlias = Callable[[bytes, bytes, Generator], bytes]
Counts: TypeAlias = Counter[tuple[str, str]]


def truncated(scan: bytes, other: bytes, rng: Generator) -> bytes:
    return scan[: rng.integers(len(scan))]


def one_bit(scan: bytes, other: bytes, rng: Generator) -> bytes:
    changed = bytearray(scan)
    changed[rng.integers(len(scan))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def some_bytes(scan: bytes, other: bytes, rng: Generator) -> bytes:
    changed = bytearray(scan)
    for place in rng.integers(0, len(scan), int(rng.integers(1, 9))):
        changed[place] = rng.integers(256)
    return bytes(changed)


def gzip_field(scan: bytes, other: bytes, rng: Generator) -> bytes:
    """One byte of the first or last 32, which hold gzip's own fields."""
    changed = bytearray(scan)
    changed[rng.integers(-32, 32)] = rng.integers(256)
    return bytes(changed)


def lost_run(scan: bytes, other: bytes, rng: Generator) -> bytes:
    """A run of bytes set to zero, as a lost sector reads."""
    place, size = _run(scan, rng)
    return scan[:place] + bytes(size) + scan[place + size :]


def cut_out(scan: bytes, other: bytes, rng: Generator) -> bytes:
    place, size = _run(scan, rng)
    return scan[:place] + scan[place + size :]


def repeated(scan: bytes, other: bytes, rng: Generator) -> bytes:
    place, size = _run(scan, rng)
    return scan[: place + size] + scan[place:]


def spliced(scan: bytes, other: bytes, rng: Generator) -> bytes:
    """The head of one scan and the tail of another."""
    return scan[: rng.integers(len(scan))] + other[rng.integers(len(other)) :]


def appended(scan: bytes, other: bytes, rng: Generator) -> bytes:
    """One scan and the head of another behind it."""
    return scan + other[: rng.integers(1, len(other) + 1)]


DAMAGES: Final[tuple[Damage, ...]] = (
    *(truncated, one_bit, some_bytes, gzip_field, lost_run, cut_out, repeated, spliced, appended),
)


def _run(scan: bytes, rng: Generator) -> tuple[int, int]:
    size = int(rng.integers(1, min(LONGEST_RUN, len(scan) // 2) + 1))
    return int(rng.integers(len(scan) - size)), size


def judge(scans: Sequence[bytes], seed: int, batch: int) -> Counts:
    """What becomes of one batch of variants, the same for the same seed."""
    rng = np.random.default_rng([seed, batch])
    counts: Counts = Counter()
    for _ in range(BATCH):
        scan, other = (scans[n] for n in rng.integers(0, len(scans), 2))
        damage = DAMAGES[rng.integers(len(DAMAGES))]
        variant = damage(scan, other, rng)
        while variant in (scan, other):
            variant = damage(scan, other, rng)
        counts[damage.__name__, outcome(variant, scan, other)] += 1
    return counts


def outcome(variant: bytes, scan: bytes, other: bytes) -> str:
    try:
        validate_nifti(variant, channels=1)
    except ScanError:
        return "refused"
    content = gzip.decompress(variant)
    whole = content in (gzip.decompress(scan), gzip.decompress(other))
    return "same content" if whole else "LET THROUGH"


def scans_of(folders: Sequence[Path]) -> list[bytes]:
    """The .nii.gz files of the folders that are small enough and are valid as they are."""
    found = []
    for path in sorted(path for folder in folders for path in folder.rglob("*.nii.gz")):
        if path.stat().st_size <= LARGEST_FILE:
            data = path.read_bytes()
            try:
                validate_nifti(data, channels=1)
            except ScanError:
                continue
            found.append(data)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Damages scans and counts what passes the gate.")
    parser.add_argument("what", choices=["scans"])
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, action="append", default=[], help="more scans")
    options = parser.parse_args()
    scans = scans_of([EXAMPLES, *options.data])
    batches = range(-(-options.count // BATCH))
    counts: Counts = Counter()
    with Pool(PROCESSES) as pool, tqdm(total=len(batches) * BATCH, unit="variant") as bar:
        for found in pool.imap_unordered(partial(judge, scans, options.seed), batches):
            counts.update(found)
            bar.update(BATCH)
    outcomes = ("refused", "same content", "LET THROUGH")
    print(f"{'':<12}" + "".join(f"{name:>14}" for name in outcomes))
    for damage in DAMAGES:
        row = [counts[damage.__name__, name] for name in outcomes]
        print(f"{damage.__name__:<12}" + "".join(f"{value:>14}" for value in row))
    through = sum(counts[damage.__name__, outcomes[-1]] for damage in DAMAGES)
    print(f"{counts.total()} variants of {len(scans)} scans, {through} let through")
    return 1 if through else 0


if __name__ == "__main__":
    sys.exit(main())
