"""Whether peak memory stays within --memory-limit on a large volume.

    python benchmarks/memory.py SCAN [--route 0] [--shape 512,512,300] [--limits 2GiB,4GiB,8GiB]
                                [--precisions int8,fp16]

SCAN is a real scan, mirrored until it fills the shape, with voxels of the route's spacing: a coarse
route's output grid is finer than its scan. Each line is one `rare-trt infer` in a process of its
own, from the file to labels on disk.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from wide import large_scan, wide_package

from rare_trt import read_scan
from rare_trt.package.reading import open_package
from rare_trt.plan.memory import GIB, bytes_of


def main(options: argparse.Namespace) -> None:
    """One line per precision and limit; ends with status 1 where a limit was exceeded."""
    i, j, k = (int(size) for size in options.shape.split(","))
    broken = False
    print(
        f"{i} x {j} x {k}\n{'precision':<10} {'limit':>8} {'peak GiB':>9} {'of limit':>8}  graph s"
    )
    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder) / "scan.nii.gz"
        spacing = open_package("hippocampus").manifest.routes[options.route].spacing_mm
        large_scan(read_scan(options.scan), (i, j, k), spacing, scan)
        for precision in options.precisions.split(","):
            package = wide_package(Path(folder) / f"{precision.replace('+', '-')}.rare", precision)
            for limit in options.limits.split(","):
                peak, line = infer(scan, package.folder, limit, options.route)
                share = peak / bytes_of(limit)
                broken |= share > 1.0
                print(f"{precision:<10} {limit:>8} {peak / GIB:9.2f} {share:8.2f}  {line}")
    sys.exit(1 if broken else 0)


def infer(scan: Path, package: Path, limit: str, route: int) -> tuple[int, str]:
    """Peak bytes of `rare-trt infer` along `route`, and the seconds that it reports."""
    labels = scan.with_name("labels.nii.gz")
    command = [sys.executable, "-m", "rare_trt.cli", "infer", str(scan), "-o", str(labels)]
    command += ["--package", str(package), "--memory-limit", limit, "--overwrite"]
    command += ["--route", str(route)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        said = started.stdout.read()
        _, status, usage = os.wait4(started.pid, 0)
        started.returncode = os.waitstatus_to_exitcode(status)
    if started.returncode != 0:
        raise SystemExit(f"`{' '.join(command)}` ended with status {started.returncode}")
    (milliseconds,) = re.findall(r"(\d+) ms\)", said)
    return usage.ru_maxrss * 1024, f"{int(milliseconds) / 1e3:7.1f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--route", type=int, default=0)
    parser.add_argument("--shape", default="512,512,300")
    parser.add_argument("--limits", default="2GiB,4GiB,8GiB")
    parser.add_argument("--precisions", default="int8,fp16")
    main(parser.parse_args())
