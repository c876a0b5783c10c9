"""The logger of TensorRT and TensorRT for RTX, and the objects that are made with it."""

from __future__ import annotations

import logging
from collections import deque
from threading import Lock
from typing import Any, Final
from weakref import WeakKeyDictionary

from rare_trt.backends import EngineBackend
from rare_trt.errors import BackendError

LOGGER: Final = logging.getLogger(__name__)


def started(kind: Any, backend: EngineBackend, version: str, log: Any) -> Any:
    """The runtime or builder that the class `kind` makes.

    Raises BackendError where the library cannot use the GPU, most often because the driver is older
    than the CUDA that the library was built for: it says so in a warning and gives nothing, which
    its bindings turn into a TypeError.
    """
    log.errors.clear()
    log.warnings.clear()
    try:
        return kind(log)
    except TypeError as error:
        said = "; ".join((*log.errors, *log.warnings)) or str(error)
        raise BackendError(
            f"{backend} {version} cannot use this GPU ({said}): install the driver that "
            "docs/TENSORRT.md names for its CUDA release, or use --backend openvino"
        ) from error


def recorder(module: Any) -> Any:
    """The one logger that a library gets: TensorRT keeps the first one of a process for good.

    Errors and warnings are kept, the last few of each; warnings go to `logging` too. An interrupt
    that comes while TensorRT logs would be lost in its bindings: it is kept in `interrupts`.
    """
    with _RECORDING:
        if module not in _RECORDERS:
            _RECORDERS[module] = _new_recorder(module)
        return _RECORDERS[module]


_RECORDING = Lock()
_RECORDERS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def _new_recorder(module: Any) -> Any:
    # Which library it is, is known at run time only.
    class Recorder(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=4)
            self.warnings: deque[str] = deque(maxlen=4)
            self.interrupts: deque[BaseException] = deque()

        def log(self, severity: Any, message: str) -> None:
            try:
                if severity in (module.ILogger.INTERNAL_ERROR, module.ILogger.ERROR):
                    self.errors.append(message.strip())
                elif severity == module.ILogger.WARNING:
                    self.warnings.append(message.strip())
                    LOGGER.info("%s", message)
            except BaseException as interrupt:
                self.interrupts.append(interrupt)

    return Recorder()
