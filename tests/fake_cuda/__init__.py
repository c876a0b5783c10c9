"""A fake CUDA driver for tests without a GPU: builds `fake_cuda.c`, loads it, and steers it.

Load it before cuda-python's first call: cuda-python looks for a library named libcuda.so.1 and
finds the one that is already in the process.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

__all__ = ["REAL_GPU", "FakeDriver", "build", "why_unusable"]

REAL_GPU = "a real CUDA driver and GPU are present"
SONAME = "libcuda.so.1"
SOURCE = Path(__file__).with_name("fake_cuda.c")
FLAGS = ["-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
LINK_FLAGS = [f"-Wl,-soname,{SONAME}", "-Wl,-Bsymbolic", "-pthread"]
HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def why_unusable() -> str | None:
    """Why tests cannot run against the fake driver on this machine, None if they can."""
    if not sys.platform.startswith("linux"):
        return "the fake CUDA driver is for Linux"
    if _compiler() is None:
        return "the fake CUDA driver needs a C compiler"
    if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        return "cuda-python is not installed"
    # In a process of its own: once a real driver is loaded, the fake can no longer take its place.
    ask = f"import ctypes; raise SystemExit(ctypes.CDLL({SONAME!r}).cuInit(0))"
    if not subprocess.run([sys.executable, "-c", ask], capture_output=True).returncode:
        return REAL_GPU
    return None


def build(folder: Path) -> Path | None:
    """Compiles the library into `folder`; None where there is no C compiler."""
    compiler = _compiler()
    if compiler is None:
        return None
    library = folder / SONAME
    command = [*compiler, *FLAGS, *LINK_FLAGS, "-o", str(library), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return library


def _compiler() -> list[str] | None:
    chosen = os.environ.get("CC", "").split()
    for command in (chosen, ["cc"], ["gcc"], ["clang"]):
        if command and shutil.which(command[0]):
            return command
    return None


class FakeDriver:
    """The loaded library: what the machine has, what fails, and what is live.

    There is one in a process: whoever comes later steers the library that is already loaded.
    """

    def __init__(self, library: Path) -> None:
        try:
            self._library = ctypes.CDLL(SONAME, mode=os.RTLD_NOLOAD)
        except OSError:
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
            self._library = ctypes.CDLL(SONAME, mode=os.RTLD_NOLOAD)  # as cuda-python finds it
        if not hasattr(self._library, "fake_reset"):
            raise RuntimeError(f"a real {SONAME} is loaded already")
        self._callbacks: list[object] = []

    def _call(self, name: str, result: type | None, *arguments: object) -> int:
        function = self._library[name]
        function.restype = result
        value = function(*arguments)
        return 0 if value is None else int(value)

    def reset(self) -> int:
        """Back to the state after loading, one device included and cuInit undone.

        Returns how many blocks, handles and queued operations were left over. No other thread may
        be using CUDA.
        """
        left = self._call("fake_reset", ctypes.c_long)
        self._callbacks.clear()
        return left

    def set_devices(self, count: int) -> None:
        """How many devices there are, 0 to 8; with none, cuInit fails with NO_DEVICE."""
        self._call("fake_set_devices", None, ctypes.c_int(count))

    def set_device(
        self,
        name: str = "Fake GPU",
        compute_capability: tuple[int, int] = (8, 9),
        *,
        integrated: bool = False,
        multiprocessors: int = 16,
        total_bytes: int = 8 << 30,
    ) -> None:
        """What every device is. Allocating more than `total_bytes` fails with OUT_OF_MEMORY."""
        major, minor = (ctypes.c_int(part) for part in compute_capability)
        shared, total = ctypes.c_int(integrated), ctypes.c_size_t(total_bytes)
        self._call("fake_set_device", None, name.encode(), major, minor, shared, total)
        self._call("fake_set_multiprocessors", None, ctypes.c_int(multiprocessors))

    @contextmanager
    def fails(self, function: str, code: int, after: int = 0) -> Iterator[None]:
        """Inside, one call of `function` returns `code` and does nothing, after `after` that pass.

        Leaving without that call having come is an error: the test would have tested nothing.
        """
        self._fail(function, code, after)
        try:
            yield
        except BaseException:
            self._fail(function, 0, 0)
            raise
        if self._fail(function, 0, 0):
            raise AssertionError(f"{function} was not called often enough to fail")

    def _fail(self, function: str, code: int, after: int) -> bool:
        arguments = function.encode(), ctypes.c_int(int(code)), ctypes.c_long(after)
        armed = self._call("fake_fail", ctypes.c_int, *arguments)
        if armed < 0:
            raise ValueError(f"{function}: no function of the fake driver")
        return bool(armed)

    def clear_failures(self) -> None:
        """Takes back all failures that are still to come."""
        self._call("fake_clear_failures", None)

    def breaks(self, code: int) -> None:
        """From now on whatever needs the context fails with `code`, until the reset."""
        self._call("fake_break", None, ctypes.c_int(int(code)))

    def calls(self, function: str) -> int:
        """How often `function` was called since the last reset, failed calls included."""
        count = self._call("fake_calls", ctypes.c_long, function.encode())
        if count < 0:
            raise ValueError(f"{function}: no function of the fake driver")
        return count

    def live_device_bytes(self) -> int:
        """Device memory that is allocated and not freed."""
        return self._call("fake_live_device_bytes", ctypes.c_size_t)

    def live_host_bytes(self) -> int:
        """Pinned host memory that is allocated and not freed."""
        return self._call("fake_live_host_bytes", ctypes.c_size_t)

    def peak_device_bytes(self) -> int:
        """The most device memory that was live at once since the last reset."""
        return self._call("fake_peak_device_bytes", ctypes.c_size_t)

    def live_handles(self) -> int:
        """Streams, events, graphs, executable graphs, and retains of primary contexts."""
        return self._call("fake_live_handles", ctypes.c_long)

    def pending(self) -> int:
        """Copies, fills and host functions that are queued and have not run."""
        return self._call("fake_pending", ctypes.c_long)

    def room(self, address: int) -> int:
        """Bytes from `address` to the end of the live block that a device can use there, or 0."""
        return self._call("fake_room", ctypes.c_size_t, ctypes.c_void_p(address))

    def launch(self, stream: int, function: Callable[[], None]) -> int:
        """Queues a Python function on a stream with cuLaunchHostFunc; returns the CUresult.

        Not through cuda-python: what that hands to the driver frees itself after its first call,
        and a captured function is called at each launch of the graph.
        """
        callback = HOST_FUNCTION(lambda _: function())
        self._callbacks.append(callback)
        handle = ctypes.c_void_p(int(stream))
        return self._call("cuLaunchHostFunc", ctypes.c_int, handle, callback, None)
