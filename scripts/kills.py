"""Kills rare-trt with SIGKILL at random moments, and checks the files that it leaves.

    python scripts/kills.py --count 500
    python scripts/kills.py --count 20 --checkpoint DIR --data DIR      # `rare-trt build` as well

Half of the kills fall anywhere in a run, half in the moments after the first temporary file has
appeared, because writing is a small part of it. After each kill every output must be absent, the
old one or the new one, whole. After every tenth, and at the end, a run that is not killed must
write the right labels with the cache as the kills left it, and leave no temporary file. Exits 1
otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tqdm import tqdm

from rare_trt.errors import RareTrtError
from rare_trt.package.reading import open_package
from rare_trt.package.writing import write_package

REPOSITORY: Final = Path(__file__).resolve().parents[1]
TINY: Final = REPOSITORY / "tests" / "data" / "tiny_v1.rare"
SCAN: Final = REPOSITORY / "examples" / "hippocampus_1mm.nii.gz"
OUTPUTS: Final = ("labels.nii.gz", "labels_dseg.tsv", "report.json", "picture.png")

CHECK_EVERY: Final = 10


class BrokenError(Exception):
    """A half-written file, or a run that fails after a kill."""


@dataclass(frozen=True)
class Kill:
    """Whether a run was killed in time, the outcome per output, and the temporary files left."""

    in_time: bool
    outcomes: tuple[str, ...]
    leftovers: int


def run_and_kill(
    command: Sequence[str | Path],
    cache: Path,
    part: Path,
    seconds: tuple[float, float],
    luck: random.Random,
) -> bool:
    """Starts `command` and kills it; False where it ended before.

    `part` is the first file or folder that it makes. `seconds` are the approximate length of a
    run, and of its part after that.
    """
    whole, writing = seconds
    before = _identity(part)
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        env={**os.environ, "RARE_TRT_CACHE": str(cache)},
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    if luck.random() < 0.5:
        delay = luck.uniform(0, 1.1 * whole)
    else:
        while process.poll() is None and _identity(part) in (None, before):
            time.sleep(0.0005)
        delay = luck.uniform(0, writing)
    time.sleep(delay)
    process.kill()
    return process.wait() < 0


def _identity(path: Path) -> tuple[int, int] | None:
    """Inode and time of the file that has this name now: later files reuse names."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    return state.st_ino, state.st_ctime_ns


class InferKills:
    """Kills `rare-trt infer` into `folder`, with labels, names, report and picture."""

    def __init__(self, folder: Path, luck: random.Random) -> None:
        self.folder, self.luck = folder, luck
        self.cache = folder / "cache"
        self.out = folder / "out"
        self.old = self._run(folder / "old", "--route", "1")
        start = time.perf_counter()
        self.new = self._run(folder / "new")
        self.seconds = (time.perf_counter() - start, 0.05)
        self.done = 0

    def once(self) -> Kill:
        """Kills one run, over old outputs or none, with a filled cache or an empty one."""
        self.out.mkdir(exist_ok=True)
        over_old = self.luck.random() < 0.5
        for name in OUTPUTS:
            (self.out / name).unlink(missing_ok=True)
            if over_old:
                (self.out / name).write_bytes(self.old[name])
        if self.luck.random() < 0.5:
            for path in self.cache.glob("*.bin"):
                path.unlink()
        part = self.out / f".{OUTPUTS[0]}.part"
        in_time = run_and_kill(self._command(self.out), self.cache, part, self.seconds, self.luck)
        outcomes = tuple(self._outcome(name) for name in OUTPUTS)
        self.done += 1
        leftovers = len(self._leftovers())
        if self.done % CHECK_EVERY == 0:
            self.check()
        return Kill(in_time, outcomes, leftovers)

    def check(self) -> None:
        """Runs without a kill after all the killed runs; raises BrokenError where it fails."""
        found = self._run(self.out)
        if found[OUTPUTS[0]] != self.new[OUTPUTS[0]]:
            raise BrokenError("a run after a killed one gives other labels")
        left = [path for path in self._leftovers() if path.parent == self.out]
        if left:
            raise BrokenError(f"a run without a kill left {left[0]} behind")

    def _leftovers(self) -> list[Path]:
        return [*self.out.glob(".*.part"), *self.cache.glob(".*.part")]

    def _outcome(self, name: str) -> str:
        path = self.out / name
        if not path.exists():
            return "absent"
        data = path.read_bytes()
        if data == self.old[name]:
            return "old"
        if name == "report.json":
            # Its timings differ from run to run.
            whole = data.endswith(b"}\n") and json.loads(data).keys() == self._report_keys
        else:
            whole = data == self.new[name]
        if not whole:
            raise BrokenError(
                f"{path}: {len(data)} bytes that are neither the old nor the new file"
            )
        return "new"

    @property
    def _report_keys(self) -> set[str]:
        return set(json.loads(self.new["report.json"]))

    def _command(self, out: Path, *more: str) -> list[str | Path]:
        labels, _, report, picture = (out / name for name in OUTPUTS)
        options = ["-o", labels, "--report", report, "--picture", picture, "--overwrite"]
        return ["-m", "rare_trt.cli", "infer", SCAN, "--package", TINY, *options, *more]

    def _run(self, out: Path, *more: str) -> dict[str, bytes]:
        command = [sys.executable, *map(str, self._command(out, *more))]
        environment = {**os.environ, "RARE_TRT_CACHE": str(self.cache)}
        subprocess.run(
            command, env=environment, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL
        )
        return {name: (out / name).read_bytes() for name in OUTPUTS}


# Repeats the last step of `build` and `calibrate`, so that every kill falls into it.
WRITER: Final = """
import sys
from dataclasses import replace
from pathlib import Path
from rare_trt.package.reading import open_package
from rare_trt.package.writing import write_package
source, folder = open_package(sys.argv[1]), Path(sys.argv[2])
contents = {name: source.read(name) for name in source.manifest.files}
while True:
    for maker in ("one", "two"):
        manifest = replace(source.manifest, created_with=maker)
        write_package(folder, manifest, contents, overwrite=True)
"""


class PackageKills:
    """Kills a program that writes a package over and over in `folder`."""

    def __init__(self, folder: Path, luck: random.Random) -> None:
        self.folder, self.luck = folder / "packages" / "tiny.rare", luck
        self.seconds = (1.5, 0.5)
        self._write()

    def once(self) -> Kill:
        """Kills one run, whatever it was writing."""
        part = self.folder.with_name(f".{self.folder.name}.part")
        command = ["-c", WRITER, TINY, self.folder]
        cache = self.folder.parent / "cache"
        in_time = run_and_kill(command, cache, part, self.seconds, self.luck)
        try:
            package = open_package(self.folder)
            package.check()
        except RareTrtError as error:
            raise BrokenError(str(error)) from error
        left = len(list(self.folder.parent.glob(".*")))
        return Kill(in_time, (f"written by {package.manifest.created_with}",), left)

    def check(self) -> None:
        """Writes once without a kill; raises BrokenError where a temporary file is left."""
        self._write()
        left = list(self.folder.parent.glob(".*"))
        if left:
            raise BrokenError(f"writing a package left {left[0]} behind")

    def _write(self) -> None:
        source = open_package(TINY)
        contents = {name: source.read(name) for name in source.manifest.files}
        manifest = replace(source.manifest, created_with="kills.py")
        write_package(self.folder, manifest, contents, overwrite=True)


class BuildKills:
    """Kills `rare-trt build CHECKPOINT` over a package that exists already."""

    def __init__(self, folder: Path, luck: random.Random, checkpoint: Path, data: Path) -> None:
        self.folder, self.luck = folder / "build" / "built.rare", luck
        self.command: list[str | Path] = ["-m", "rare_trt.cli", "build", checkpoint]
        self.command += ["--data", data, "-o", self.folder, "--overwrite"]
        start = time.perf_counter()
        self.check()
        self.seconds = (time.perf_counter() - start, 0.5)

    def once(self) -> Kill:
        """Kills one build."""
        part = self.folder.with_name(f".{self.folder.name}.part")
        before = open_package(self.folder).manifest_sha256
        cache = self.folder.parent / "cache"
        in_time = run_and_kill(self.command, cache, part, self.seconds, self.luck)
        try:
            package = open_package(self.folder)
            package.check()
        except RareTrtError as error:
            raise BrokenError(str(error)) from error
        outcome = "old" if package.manifest_sha256 == before else "new"
        return Kill(in_time, (outcome,), len(list(self.folder.parent.glob(".*.part"))))

    def check(self) -> None:
        """Builds once without a kill, which must succeed."""
        subprocess.run(
            [sys.executable, *map(str, self.command)],
            cwd=REPOSITORY,
            check=True,
            stdout=subprocess.DEVNULL,
        )


def repeat_kills(
    name: str, subject: InferKills | PackageKills | BuildKills, count: int
) -> tuple[Counter[str], int, int]:
    """Kills `subject` `count` times: outcomes, kills in time, kills that left temporary files."""
    outcomes: Counter[str] = Counter()
    in_time = leftovers = 0
    for _ in tqdm(range(count), name, unit="kill"):
        kill = subject.once()
        in_time += kill.in_time
        leftovers += kill.leftovers > 0
        outcomes.update(kill.outcomes)
    subject.check()
    return outcomes, in_time, leftovers


def main() -> int:
    """Prints the outcomes of every kind of kill; 1 where a file was broken."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=500, help="kills of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, help="kill `build` as well; with --data")
    parser.add_argument("--data", type=Path, help="labelled scans for --checkpoint")
    options = parser.parse_args()
    luck = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="rare-trt-kills-") as place:
        folder = Path(place).resolve()
        subjects: dict[str, Callable[[], InferKills | PackageKills | BuildKills]] = {
            "infer": lambda: InferKills(folder, luck),
            "write_package": lambda: PackageKills(folder, luck),
        }
        if options.checkpoint:
            subjects["build"] = lambda: BuildKills(folder, luck, options.checkpoint, options.data)
        for name, subject in subjects.items():
            try:
                outcomes, in_time, leftovers = repeat_kills(name, subject(), options.count)
            except BrokenError as error:
                print(f"{name}: {error}", file=sys.stderr)
                return 1
            found = ", ".join(f"{number} {outcome}" for outcome, number in outcomes.items())
            print(
                f"{name}: {in_time} of {options.count} killed in time, temporary files after "
                f"{leftovers}; found {found}; none half-written"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
