"""The time of the C++ library for a scan, against the Python runtime on the same machine.

    python benchmarks/native.py BUILD SCAN [SCAN ...]

BUILD is where CMake built the library and its example program. `cold` is a new process, from its
start to labels in a file, with compiled model and proof in the cache; `warm` is voxels to labels in
memory with the route loaded. Both sides take turns, figures are medians and the ratio is the median
of the ratios of neighbours, so that a loaded machine slows both alike.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from rare_trt import Scan, Segmenter, read_scan
from rare_trt.package.reading import SHIPPED

PACKAGE = SHIPPED / "hippocampus.rare"
COLD_TURNS = 15
WARM_TURNS = 60
UNTIMED_TURNS = 3

PYTHON = """
import sys
from rare_trt import Segmenter
with Segmenter.load(sys.argv[1], "openvino") as segmenter:
    segmenter.segment(sys.argv[2]).save(sys.argv[3])
"""

# rare_trt_dtype in rare_trt.h
DTYPES = {"uint8": 1, "uint16": 3, "int16": 4, "int32": 6, "float32": 9, "float64": 10}


class NativeScan(ctypes.Structure):
    """rare_trt_scan."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("voxels", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("channels", ctypes.c_int32),
        ("shape", ctypes.c_int64 * 3),
        ("strides", ctypes.c_int64 * 4),
        ("affine", ctypes.c_double * 16),
    )


class Native:
    """An open package of the C++ library in this process."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.rare_trt_last_error.restype = ctypes.c_char_p
        self._library.rare_trt_close.argtypes = [ctypes.c_void_p]
        self._segmenter = ctypes.c_void_p()
        path = os.fsencode(PACKAGE)
        self._check(self._library.rare_trt_open(path, None, ctypes.byref(self._segmenter)))

    def prepared(self, scan: Scan) -> Callable[[], bytes]:
        """A call that segments `scan` and returns its labels with the first axis fastest."""
        voxels, grid = scan.volume.voxels, scan.volume.grid
        asked = NativeScan(
            size=ctypes.sizeof(NativeScan),
            voxels=voxels.ctypes.data,
            dtype=DTYPES[voxels.dtype.name],
            channels=1,
            shape=(ctypes.c_int64 * 3)(*voxels.shape),
            strides=(ctypes.c_int64 * 4)(*voxels.strides),
            affine=(ctypes.c_double * 16)(*grid.affine.ravel()),
        )
        labels = ctypes.create_string_buffer(voxels.size)
        segment = self._library.rare_trt_segment
        segment.argtypes = [ctypes.c_void_p, ctypes.POINTER(NativeScan), *[ctypes.c_void_p] * 4]

        def run() -> bytes:
            self._check(segment(self._segmenter, ctypes.byref(asked), None, labels, None, None))
            return labels.raw

        return run

    def close(self) -> None:
        self._library.rare_trt_close(self._segmenter)

    def _check(self, status: int) -> None:
        if status != 0:
            raise SystemExit(self._library.rare_trt_last_error().decode())


def main(build: Path, scans: list[Path]) -> None:
    """Two lines per scan."""
    print(f"{'scan':<24} {'route':<6}{'start':<6}{'C++ ms':>9} {'Python ms':>10} {'ratio':>6}")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["RARE_TRT_CACHE"] = cache
        native = Native(build / "native" / "librare_trt.so")
        with Segmenter.load(PACKAGE, "openvino") as segmenter:
            for path in scans:
                warm = warm_turns(native, segmenter, read_scan(path))
                cold = cold_turns(build / "native" / "segment", path)
                route = segmenter.segment(path).route.route
                for start, times in (("cold", cold), ("warm", warm)):
                    ours, python = np.array(times).T
                    print(
                        f"{path.name:<24} {route:<6}{start:<6}{median(ours):9.1f} "
                        f"{median(python):10.1f} {median(ours / python):6.2f}"
                    )
        native.close()


def warm_turns(native: Native, segmenter: Segmenter, scan: Scan) -> list[tuple[float, float]]:
    """Milliseconds from voxels to labels in this process; raises where the labels differ."""
    run = native.prepared(scan)
    if run() != segmenter.segment(scan).labels.tobytes(order="F"):
        raise SystemExit("C++ and Python give other labels")
    return turns(run, lambda: segmenter.segment(scan), WARM_TURNS)


def cold_turns(program: Path, scan: Path) -> list[tuple[float, float]]:
    """Milliseconds of the example program and of Python, each in a process of its own."""

    def started(*command: str | Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            labels = Path(folder) / "labels.nii.gz"
            asked = [*command, PACKAGE, scan, labels]
            subprocess.run(asked, check=True, stdout=subprocess.DEVNULL)

    python = (sys.executable, "-c", PYTHON)
    return turns(lambda: started(program), lambda: started(*python), COLD_TURNS)


def turns(
    ours: Callable[[], object], python: Callable[[], object], count: int
) -> list[tuple[float, float]]:
    """Milliseconds of both, run one after the other `count` times."""
    times = []
    for _ in range(UNTIMED_TURNS + count):
        start = perf_counter()
        ours()
        between = perf_counter()
        python()
        times.append(((between - start) * 1e3, (perf_counter() - between) * 1e3))
    return times[UNTIMED_TURNS:]


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]])
