"""Description of this machine: platform, GPU, driver and TensorRT libraries."""

from __future__ import annotations

import importlib
import platform as system
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Final

from rare_trt.backends import ENGINE_BACKENDS, EngineBackend
from rare_trt.errors import BackendError
from rare_trt.sessions.device import Gpu
from rare_trt.sessions.device_factory import open_device

MODULES: Final[Mapping[EngineBackend, str]] = {
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
}

# The first release that is supported, and the first later one that is not.
SUPPORTED: Final[Mapping[EngineBackend, tuple[tuple[int, ...], tuple[int, ...]]]] = {
    "tensorrt": ((10, 3), (12,)),
    "tensorrt-rtx": ((1, 2), (2,)),
}

# How to install each library, the last part of an error message.
INSTALL: Final[Mapping[EngineBackend, str]] = {
    "tensorrt": "install TensorRT 10.3 to 11.x as docs/how-to/engines.md describes",
    "tensorrt-rtx": "pip install 'rare-trt[rtx]'",
}

# The packages that contain TensorRT's lean runtime.
LEAN_RUNTIMES: Final = ("tensorrt_lean_cu12_libs", "tensorrt_lean_cu13_libs")


@dataclass(frozen=True)
class Machine:
    """A machine that may run engines; `no_gpu` is the reason where `gpu` is None.

    `lean_runtimes` are TensorRT's lean runtimes by release. On a later release than it was built
    with, an engine needs the lean runtime of its own release.
    """

    platform: str
    gpu: Gpu | None
    no_gpu: str
    libraries: Mapping[EngineBackend, str]
    lean_runtimes: Mapping[str, Path] = field(default_factory=dict)


def this_machine() -> Machine:
    """Describes this machine; loads the NVIDIA libraries that are installed."""
    gpu, no_gpu = None, ""
    try:
        device = open_device()
    except BackendError as error:
        no_gpu = str(error)
    else:
        gpu = device.gpu
        device.close()
    libraries = {}
    for backend in ENGINE_BACKENDS:
        with suppress(BackendError):
            libraries[backend] = version_of(import_library(backend))
    return Machine(this_platform(), gpu, no_gpu, libraries, lean_runtimes())


def this_platform() -> str:
    """Returns operating system and processor as manifests name them, for example linux-x86_64."""
    processor = {"amd64": "x86_64", "arm64": "aarch64"}.get(
        system.machine().lower(), system.machine().lower()
    )
    return f"{system.system().lower()}-{processor}"


def import_library(backend: EngineBackend) -> Any:
    """Imports the Python module of `backend`'s library.

    Raises BackendError where it is absent or of an unsupported release. A folder that holds only
    type stubs counts as absent.
    """
    name = MODULES[backend]
    try:
        module = importlib.import_module(name)
    except Exception as error:
        # A library of another CUDA or driver release fails in many ways as it is loaded.
        raise BackendError(
            f"the library {name} cannot be loaded ({error}): {INSTALL[backend]}"
        ) from error
    version = getattr(module, "__version__", None)
    if version is None:
        raise BackendError(f"the library {name} is not installed: {INSTALL[backend]}")
    oldest, beyond = SUPPORTED[backend]
    if not oldest <= version_numbers(version) < beyond:
        raise BackendError(
            f"{name} {version} is installed; expected {'.'.join(map(str, oldest))} or later, "
            f"before {'.'.join(map(str, beyond))}: {INSTALL[backend]}"
        )
    return module


def version_of(module: Any) -> str:
    """Returns the release of a library's module without the mark of a preview, as 10.13.0."""
    return ".".join(map(str, version_numbers(module.__version__)))


def version_numbers(version: str) -> tuple[int, ...]:
    """Returns the leading numbers of `version`."""
    (leading,) = re.findall(r"^[\d.]*", version)
    return tuple(int(part) for part in leading.split(".") if part)


def lean_runtimes() -> dict[str, Path]:
    """Returns the installed lean runtimes of TensorRT by release."""
    found = {}
    for name in LEAN_RUNTIMES:
        with suppress(PackageNotFoundError):
            installed = distribution(name)
            for file in installed.files or ():
                if file.name.startswith("libnvinfer_lean.so"):
                    found[installed.version] = Path(str(file.locate()))
    return found
