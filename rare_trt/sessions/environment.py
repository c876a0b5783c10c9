"""The software around this machine's GPU, read for a diagnosis: whatever fails becomes a text."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import Final, TypeVar

from rare_trt.backends import ENGINE_BACKENDS, EngineBackend
from rare_trt.errors import RareTrtError
from rare_trt.sessions.device import driver_release
from rare_trt.sessions.machine import (
    Machine,
    import_library,
    this_machine,
    this_platform,
    version_of,
)
from rare_trt.sessions.openvino import OpenVinoFacts, openvino_facts

Found = TypeVar("Found")

# In the order in which rare-trt tries them.
BINDINGS: Final = {"cuda-bindings": "cuda.bindings.driver", "PyCUDA": "pycuda.driver"}


@dataclass(frozen=True)
class Environment:
    """Software of a machine besides what Machine lists.

    `driver` is the release of NVIDIA's driver, empty where none was found. `absent` holds the
    reason for every library that cannot be used; `openvino` is such a reason where it is a text.
    """

    python: str
    driver: str
    bindings: str
    openvino: OpenVinoFacts | str
    absent: Mapping[EngineBackend, str]


def inspect_machine() -> tuple[Machine, Environment]:
    """This machine and its software, as far as they can be read; raises nothing."""
    modules = {backend: attempt(partial(import_library, backend)) for backend in ENGINE_BACKENDS}
    machine = attempt(this_machine)
    if isinstance(machine, str):
        usable = {b: version_of(m) for b, m in modules.items() if not isinstance(m, str)}
        machine = Machine(this_platform(), None, machine, usable)
    environment = Environment(
        python=f"{platform.python_version()} ({platform.python_implementation()})",
        driver=_find_driver(),
        bindings=_find_bindings(),
        openvino=attempt(openvino_facts),
        absent={b: reason for b, reason in modules.items() if isinstance(reason, str)},
    )
    return machine, environment


def attempt(probe: Callable[[], Found]) -> Found | str:
    """The result of `probe`, or the message of the error that it raised."""
    try:
        return probe()
    except RareTrtError as error:
        return str(error)
    except Exception as error:
        return f"{_describe(error)}: install it again"


def _describe(error: Exception) -> str:
    line = next(iter(str(error).splitlines()), "")
    return f"cannot be used ({type(error).__name__}: {line})"


def _find_driver() -> str:
    """The release of NVIDIA's driver; empty where there is none."""
    release = driver_release()
    if release:
        return release
    # A Jetson has the library, and writes its release nowhere.
    name = "nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1"
    try:
        ctypes.CDLL(name)
    except OSError:
        return ""
    return "installed, of unknown release"


def _find_bindings() -> str:
    """The first CUDA bindings that can be loaded, and the errors of those before them."""
    found = []
    for name, module in BINDINGS.items():
        try:
            import_module(module)
        except ModuleNotFoundError:
            continue
        except Exception as error:
            found.append(f"{name} {_describe(error)}")
            continue
        found.append(f"{name} {attempt(partial(version, name))}")
        break
    return "; ".join(found) or "none"
