"""`rare-trt serve` under eight clients at once, then killed and started again.

    python benchmarks/serve_load.py FOLDER [--minutes 5] [--clients 8] [--anyway]

FOLDER holds real scans, any depth down. Each is also averaged to 2, 4 and 8 mm, so that every route
runs, in the shapes that real crops have. Every client posts scans without a pause. Printed at the
end, and failed on:

- a request without labels, or labels other than the first ones of the same scan
- memory that still grows after the first minute (straight line through it, per minute)
- p99 latency of three times the median times the queue's length or more
- after the server was killed at work and started again: a socket that is not replaced, or labels
  other than before
"""

from __future__ import annotations

import argparse
import io
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
class Observations:
    """Latencies, faults and labels' hashes, as all clients together observed them."""

    seconds: list[float] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    labels: dict[str, str] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)


class Serving:
    """A server process on a socket."""

    def __init__(self, socket: Path) -> None:
        self.socket = str(socket)
        command = [sys.executable, "-m", "rare_trt.cli", "serve", "--socket", self.socket]
        # Open for as long as the server runs.
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen([*command, "--queue", str(QUEUE)], stderr=self._log)
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

    def call(self, method: str, target: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Status and body of the response to one request."""
        connection = UnixConnection(self.socket)
        try:
            connection.request(method, target, body)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def metrics(self) -> dict[str, float]:
        """Every metric by its name."""
        lines = self.call("GET", "/metrics")[1].decode().splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
        return {name: float(value) for name, value in pairs}

    def end(self, sig: int) -> int:
        """Ends the server with a signal; returns its exit status."""
        self.process.send_signal(sig)
        status = self.process.wait()
        self._log.close()
        return status


def prepare_scans(folder: Path, out: Path) -> list[Path]:
    """Writes scans of every route, made from those of `folder`."""
    found = sorted(path for path in folder.rglob("*.nii*") if "label" not in str(path).lower())
    found = [path for path in found if "truth" not in str(path)]
    random.Random(0).shuffle(found)
    scans = []
    for number, path in enumerate(found[: MAX_SCANS // len(FACTORS)]):
        image = nib.load(path)
        for factor in FACTORS:
            scan = out / f"{number}_{factor}.nii.gz"
            nib.save(average(image, factor), scan)
            scans.append(scan)
    if not scans:
        raise SystemExit(f"{folder}: no scans: name a folder that holds .nii.gz files")
    return scans


def average(image: nib.Nifti1Image, factor: int) -> nib.Nifti1Image:
    """The mean over blocks of factor³ voxels, on the grid of the blocks' centres."""
    voxels = np.asarray(image.dataobj, np.float32)
    i, j, k = (n // factor for n in voxels.shape)
    blocks = voxels[: i * factor, : j * factor, : k * factor]
    mean = blocks.reshape(i, factor, j, factor, k, factor).mean(axis=(1, 3, 5))
    affine = image.affine @ np.diag([factor, factor, factor, 1.0])
    affine[:3, 3] += image.affine[:3, :3] @ np.full(3, (factor - 1) / 2)
    return nib.Nifti1Image(mean, affine)


def run_client(
    server: Serving, scans: list[Path], seed: int, observed: Observations, end: Event
) -> None:
    """Posts scans until `end`."""
    chance = random.Random(seed)
    while not end.is_set():
        scan = chance.choice(scans)
        try:
            start = perf_counter()
            status, body = server.call("POST", "/v1/segment", scan.read_bytes())
            seconds = perf_counter() - start
        except (OSError, HTTPException) as error:
            with observed.lock:
                observed.faults[type(error).__name__] += 1
            continue
        fault = check_labels(scan, body, observed) if status == 200 else f"{status} {body[:120]!r}"
        with observed.lock:
            if fault:
                observed.faults[fault] += 1
            observed.seconds.append(seconds)


def check_labels(scan: Path, archive: bytes, observed: Observations) -> str | None:
    """A fault where a response's labels differ from the first ones of the same scan."""
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        digest = sha256(files.read("labels.nii.gz")).hexdigest()
    with observed.lock:
        first = observed.labels.setdefault(scan.name, digest)
    return None if digest == first else f"other labels for {scan.name}"


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


def run_load(
    server: Serving, scans: list[Path], clients: int, minutes: float
) -> tuple[Observations, list[tuple[float, float]]]:
    """Runs all clients; returns their observations, and the server's memory once a second."""
    observed, end = Observations(), Event()
    threads = [
        Thread(target=run_client, args=(server, scans, n, observed, end)) for n in range(clients)
    ]
    for thread in threads:
        thread.start()
    memory = []
    for point in resident(server, end):
        memory.append(point)
        print(
            f"\r{point[0]:5.0f} s  {len(observed.seconds):6} scans  {point[1] / 1e6:6.0f} MB  "
            f"{sum(observed.faults.values())} faults ",
            end="",
            file=sys.stderr,
        )
        if point[0] > minutes * 60:
            end.set()
    for thread in threads:
        thread.join()
    print(file=sys.stderr)
    return observed, memory


def kill_servers(socket: Path, scans: list[Path], observed: Observations) -> list[str]:
    """Kills servers at work; returns the faults of those that were started after them."""
    chance = random.Random(1)
    faults = []
    for _ in range(KILLS):
        server = Serving(socket)
        end = Event()
        # Requests that a kill cuts off are no faults.
        cut_off = Observations(labels=observed.labels)
        threads = [
            Thread(target=run_client, args=(server, scans, n, cut_off, end)) for n in range(4)
        ]
        for thread in threads:
            thread.start()
        sleep(chance.uniform(0.1, 1.5))
        end.set()
        server.end(signal.SIGKILL)
        for thread in threads:
            thread.join()
        faults += [fault for fault in cut_off.faults if fault.startswith("other labels")]
    server = Serving(socket)
    for scan in scans:
        status, body = server.call("POST", "/v1/segment", scan.read_bytes())
        fault = check_labels(scan, body, observed) if status == 200 else f"{scan.name}: {status}"
        faults += [fault] if fault else []
    server.end(signal.SIGTERM)
    return faults


def main() -> int:
    """Prints the table; 1 where a check failed."""
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
        scans = prepare_scans(options.folder, work / "in")
        server = Serving(work / "s")
        observed, memory = run_load(server, scans, options.clients, options.minutes)
        metrics = server.metrics()
        stopped = server.end(signal.SIGTERM)
        faults = kill_servers(work / "s", scans, observed)
    p50, p99 = np.quantile(observed.seconds, (0.5, 0.99))
    since = min(FIRST_MINUTE, memory[-1][0] / 2)
    megabytes, slope = growth(memory, since)
    routes = {r: int(metrics.get(f'rare_trt_route_total{{route="{r}"}}', 0)) for r in range(4)}
    bound = 3 * p50 * QUEUE
    checks = {
        f"{len(observed.seconds)} scans by route {routes}, "
        f"faults: {dict(observed.faults) or 'none'}": not observed.faults,
        f"p50 {p50 * 1e3:.0f} ms, p99 {p99 * 1e3:.0f} ms, bound {bound * 1e3:.0f} ms": p99 < bound,
        f"memory after {since:.0f} s: {megabytes:.0f} MB, {slope:+.2f} MB per minute": (
            slope < GROWTH_PER_MINUTE * megabytes
        ),
        f"stopped with exit code {stopped}": stopped == 0,
        f"{KILLS} kills, then started again: {faults or 'the same labels'}": not faults,
    }
    for check, passed in checks.items():
        print(f"{'passed' if passed else 'FAILED'}  {check}")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
