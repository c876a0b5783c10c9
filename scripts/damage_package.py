"""Changes single bytes of a package, in every file, and checks that each change is refused.

    python scripts/damage_package.py --count 5000 [--package NAME|DIR]

The package is written anew to a temporary folder, so that its manifest has a seal. Every file gets
as many changes as any other, at random places and to random values, first and last byte included.
Exits 1 where a change was not noticed.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from rare_trt.errors import PackageError
from rare_trt.package.manifest import MANIFEST
from rare_trt.package.reading import Package, open_package
from rare_trt.package.writing import write_package


def changes(package: Package, count: int, rng: random.Random) -> Iterator[tuple[str, int, int]]:
    """At least `count` of file, place and what the byte there is combined with."""
    sizes = {name: entry.bytes for name, entry in package.manifest.files.items()}
    sizes[MANIFEST] = (package.folder / MANIFEST).stat().st_size
    each = -(-count // len(sizes))
    for name, size in sorted(sizes.items()):
        places = [0, size - 1, *(rng.randrange(size) for _ in range(each - 2))]
        for place in places[:each]:
            yield name, place, rng.randrange(1, 256)


def is_refused(package: Package, name: str, place: int, flip: int) -> bool:
    """Whether the package with that byte changed is refused when read; restores the byte."""
    path = package.folder / name
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ flip]))
    try:
        again = open_package(package.folder)
        if name != MANIFEST:
            again.read(name)
    except PackageError:
        return True
    else:
        return False
    finally:
        with path.open("r+b") as file:
            file.seek(place)
            file.write(bytes([byte]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--package", default="hippocampus", metavar="NAME|DIR")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    source = open_package(options.package)
    contents = {name: source.read(name) for name in source.manifest.files}
    with tempfile.TemporaryDirectory(prefix="rare-trt-damage-") as folder:
        copy = Path(folder) / "copy.rare"
        package = write_package(copy, source.manifest, contents, overwrite=False)
        asked = list(changes(package, options.count, random.Random(options.seed)))
        unnoticed = [
            f"{name}, byte {place} ^ {flip}"
            for name, place, flip in tqdm(asked, "changing", unit="byte")
            if not is_refused(package, name, place, flip)
        ]
        package.check()
    for line in unnoticed:
        print(f"NOT NOTICED  {line}", file=sys.stderr)
    files = len({name for name, _, _ in asked})
    print(f"{len(asked) - len(unnoticed)} of {len(asked)} changes in {files} files refused")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
