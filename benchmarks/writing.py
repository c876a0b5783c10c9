"""The cost of fsync: labels and their names written with it and without.

python benchmarks/writing.py FOLDER
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from tqdm import tqdm

from rare_trt.storage.files import write_files

RUNS = 200
CONTENTS = {"labels.nii.gz": os.urandom(4000), "labels_dseg.tsv": b"0\tbackground\n"}


def milliseconds(folder: Path, what: str) -> str:
    taken = []
    for number in tqdm(range(RUNS), what):
        files = {folder / f"{number}_{name}": data for name, data in CONTENTS.items()}
        start = perf_counter()
        write_files(files, overwrite=False)
        taken.append((perf_counter() - start) * 1e3)
        for path in files:
            path.unlink()
    taken.sort()
    return f"{what}: median {statistics.median(taken):.2f} ms, 90 % {taken[RUNS * 9 // 10]:.2f} ms"


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1]) as folder:
        found = [milliseconds(Path(folder), "with fsync")]
        fsync, os.fsync = os.fsync, lambda handle: None
        try:
            found.append(milliseconds(Path(folder), "without"))
        finally:
            os.fsync = fsync
    print("\n".join(found))


if __name__ == "__main__":
    main()
