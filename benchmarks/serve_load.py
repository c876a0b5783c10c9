"""`rare-trt serve` under eight clients at once, then killed and started again.

    python benchmarks/serve_load.py FOLDER [--minutes 5] [--clients 8] [--anyway]

FOLDER holds real scans, any depth down. Each is also averaged to 2, 4 and 8 mm, so that every route
answers, in the shapes that real crops have. Every client asks without a pause, most by posting a
scan, one in four by naming a file. Said at the end, and failed on:

- an answer that is none, or labels other than those of the first answer to the same scan
- memory that still grows after the first minute (straight line through it, per minute)
- p99 latency of three times the median times the queue's length or more
- a file that is half written, or left over, after the server was killed at work and started again
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import random
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path
from threading import Event, Lock, Thread
from time import perf_counter, sleep

import nibabel as nib
import numpy as np
from quiet import require_quiet

from rare_trt.serving.client import UnixConnection

QUEUE = 8
FACTORS = (1, 2, 4, 8)
MAX_SCANS = 48
KILLS = 10
FIRST_MINUTE = 60.0

# Resident bytes go up and down by some; per minute, and as a share of what the server holds.
GROWTH_PER_MINUTE = 0.005


@dataclass
class Seen:
    """What the clients saw."""

    seconds: list[float] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    labels: dict[str, str] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)


class Serving:
    """A server process on a socket."""

    def __init__(self, socket: Path, allowed: Path) -> None:
        self.socket = str(socket)
        command = [sys.executable, "-m", "rare_trt.cli", "serve", "--socket", self.socket]
        # Open for as long as the server runs.
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [*command, "--allow", str(allowed), "--queue", str(QUEUE)], stderr=self._log
        )
        while True:
            sleep(0.1)
            if self.process.poll() is not None:
                self._log.seek(0)
                raise SystemExit(f"the server ended:\n{self._log.read()}")
            try:
                if self.call("GET", "/readyz")[0] == 200:
                    return
            except (OSError, HTTPException):
                # Not listening yet.
                continue

    def call(self, method: str, target: str, body: bytes | None = None, kind: str = "x/x"):
        connection = UnixConnection(self.socket)
        try:
            connection.request(method, target, body, {"Content-Type": kind})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def named(self, scan: Path, labels: Path):
        """A request that names files."""
        names = {"scan": str(scan), "labels": str(labels), "overwrite": True}
        return self.call("POST", "/v1/segment", json.dumps(names).encode(), "application/json")

    def metrics(self) -> dict[str, float]:
        lines = self.call("GET", "/metrics")[1].decode().splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
        return {name: float(value) for name, value in pairs}

    def end(self, sig: int) -> int:
        self.process.send_signal(sig)
        status = self.process.wait()
        self._log.close()
        return status


def prepared(folder: Path, out: Path) -> list[Path]:
    """Scans of every route from those of `folder`."""
    found = sorted(path for path in folder.rglob("*.nii*") if "label" not in str(path).lower())
    found = [path for path in found if "truth" not in str(path)]
    random.Random(0).shuffle(found)
    scans = []
    for number, path in enumerate(found[: MAX_SCANS // len(FACTORS)]):
        image = nib.load(path)
        for factor in FACTORS:
            scan = out / f"{number}_{factor}.nii.gz"
            nib.save(averaged(image, factor), scan)
            scans.append(scan)
    if not scans:
        raise SystemExit(f"{folder}: no scans: name a folder that holds .nii.gz files")
    return scans


def averaged(image: nib.Nifti1Image, factor: int) -> nib.Nifti1Image:
    """The mean over blocks of factor³ voxels, on the grid of the blocks' centres."""
    voxels = np.asarray(image.dataobj, np.float32)
    i, j, k = (n // factor for n in voxels.shape)
    blocks = voxels[: i * factor, : j * factor, : k * factor]
    mean = blocks.reshape(i, factor, j, factor, k, factor).mean(axis=(1, 3, 5))
    affine = image.affine @ np.diag([factor, factor, factor, 1.0])
    affine[:3, 3] += image.affine[:3, :3] @ np.full(3, (factor - 1) / 2)
    return nib.Nifti1Image(mean, affine)


def client(server: Serving, scans: list[Path], out: Path, seed: int, seen: Seen, end: Event):
    """Asks until `end`."""
    chance = random.Random(seed)
    out.mkdir()
    while not end.is_set():
        scan = chance.choice(scans)
        names_it = chance.random() < 0.25
        labels = out / scan.name
        try:
            start = perf_counter()
            if names_it:
                status, answer = server.named(scan, labels)
            else:
                status, answer = server.call("POST", "/v1/segment", scan.read_bytes())
            seconds = perf_counter() - start
        except (OSError, HTTPException) as error:
            with seen.lock:
                seen.faults[type(error).__name__] += 1
            continue
        # Two ways to ask, one answer: what of it does not hold timings.
        found = labels.read_bytes() if names_it and status == 200 else _labels(status, answer)
        digest = sha256(found).hexdigest()
        with seen.lock:
            if status != 200:
                seen.faults[f"{status} {answer[:120]!r}"] += 1
            elif seen.labels.setdefault(scan.name, digest) != digest:
                seen.faults[f"other labels for {scan.name}"] += 1
            seen.seconds.append(seconds)


def _labels(status: int, answer: bytes) -> bytes:
    """The labels in a ZIP whose files are stored."""
    if status != 200:
        return b""
    with zipfile.ZipFile(io.BytesIO(answer)) as files:
        return files.read("labels.nii.gz")


def resident(server: Serving, end: Event) -> Iterator[tuple[float, float]]:
    """Seconds since the start and resident bytes, once a second."""
    start = perf_counter()
    while not end.wait(1.0):
        yield perf_counter() - start, server.metrics()["process_resident_memory_bytes"]


def growth(memory: list[tuple[float, float]], since: float) -> tuple[float, float]:
    """Resident megabytes, and their slope per minute, after `since` seconds."""
    seconds, resident_bytes = np.array([point for point in memory if point[0] >= since]).T
    slope = np.polyfit(seconds, resident_bytes, 1)[0]
    return float(resident_bytes.mean()) / 1e6, float(slope) * 60 / 1e6


def loaded(server: Serving, scans: list[Path], work: Path, clients: int, minutes: float):
    """Runs all clients; gives what they saw and what the server held."""
    seen, end = Seen(), Event()
    threads = [
        Thread(target=client, args=(server, scans, work / f"out_{n}", n, seen, end))
        for n in range(clients)
    ]
    for thread in threads:
        thread.start()
    memory = []
    for point in resident(server, end):
        memory.append(point)
        print(
            f"\r{point[0]:5.0f} s  {len(seen.seconds):6} answers  {point[1] / 1e6:6.0f} MB  "
            f"{sum(seen.faults.values())} faults ",
            end="",
            file=sys.stderr,
        )
        if point[0] > minutes * 60:
            end.set()
    for thread in threads:
        thread.join()
    print(file=sys.stderr)
    return seen, memory


def killed(work: Path, scans: list[Path]) -> list[str]:
    """Kills servers at work on named files; what is wrong with the files afterwards."""
    out = work / "killed"
    out.mkdir()
    chance = random.Random(1)
    wrong = []
    asked: set[Path] = set()
    for _ in range(KILLS):
        server = Serving(work / "s", work)
        end = Event()

        def ask(server: Serving = server, end: Event = end) -> None:
            while not end.is_set():
                scan = chance.choice(scans)
                asked.add(scan)
                try:
                    server.named(scan, out / scan.name)
                except (OSError, HTTPException):
                    return

        threads = [Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        sleep(chance.uniform(0.1, 1.5))
        server.end(signal.SIGKILL)
        end.set()
        for thread in threads:
            thread.join()
        wrong += [f"half written: {path.name}" for path in out.glob("*.nii.gz") if not whole(path)]
    # What was asked for before a kill is asked for again, as its owner would.
    server = Serving(work / "s", work)
    for scan in sorted(asked):
        server.named(scan, out / scan.name)
    server.end(signal.SIGTERM)
    right = {scan.name for scan in asked}
    right |= {name.replace(".nii.gz", "_dseg.tsv") for name in right}
    return wrong + [f"left over: {p.name}" for p in out.iterdir() if p.name not in right]


def whole(path: Path) -> bool:
    """Whether a label file can be read to its end."""
    if path.name.startswith("."):
        return True
    try:
        nib.Nifti1Image.from_bytes(gzip.decompress(path.read_bytes())).get_fdata()
    except (OSError, EOFError, ValueError):
        return False
    return True


def main() -> int:
    """Prints the table; 1 where something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--anyway", action="store_true", help="on a loaded machine too")
    options = parser.parse_args()
    print(require_quiet(options.anyway))
    with tempfile.TemporaryDirectory(prefix="rt-") as folder:
        work = Path(folder)
        (work / "in").mkdir()
        scans = prepared(options.folder, work / "in")
        server = Serving(work / "s", work)
        seen, memory = loaded(server, scans, work, options.clients, options.minutes)
        metrics = server.metrics()
        stopped = server.end(signal.SIGTERM)
        wrong = killed(work, scans)
    p50, p99 = np.quantile(seen.seconds, (0.5, 0.99))
    since = min(FIRST_MINUTE, memory[-1][0] / 2)
    megabytes, slope = growth(memory, since)
    routes = {r: int(metrics.get(f'rare_trt_route_total{{route="{r}"}}', 0)) for r in range(4)}
    bound = 3 * p50 * QUEUE
    checks = {
        f"{len(seen.seconds)} answers by route {routes}, faults: {dict(seen.faults) or 'none'}": (
            not seen.faults
        ),
        f"p50 {p50 * 1e3:.0f} ms, p99 {p99 * 1e3:.0f} ms, bound {bound * 1e3:.0f} ms": p99 < bound,
        f"memory after {since:.0f} s: {megabytes:.0f} MB, {slope:+.2f} MB per minute": (
            slope < GROWTH_PER_MINUTE * megabytes
        ),
        f"stopped with exit code {stopped}": stopped == 0,
        f"{KILLS} kills, then started again: {wrong or 'every file whole, none left over'}": (
            not wrong
        ),
    }
    for what, holds in checks.items():
        print(f"{'holds ' if holds else 'BROKEN'}  {what}")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
