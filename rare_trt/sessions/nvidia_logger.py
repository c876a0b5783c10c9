"""The logger of TensorRT and TensorRT for RTX, and the construction of their objects with it."""

from __future__ import annotations

import logging
from collections import deque
from threading import Lock
from typing import Any, Final
from weakref import WeakKeyDictionary

from rare_trt.backends import EngineBackend
from rare_trt.constants import KEPT_ERRORS
from rare_trt.errors import BackendError

LOGGER: Final = logging.getLogger(__name__)


def construct(kind: Any, backend: EngineBackend, version: str, log: Any) -> Any:
    """Returns an object of the library's class `kind`, its runtime or its builder.

    Raises BackendError where the library cannot use the GPU, most often because the driver is older
    than the CUDA that the library was built for: the library then logs a warning and returns
    nothing, which its bindings turn into a TypeError.
    """
    log.errors.clear()
    log.warnings.clear()
    try:
        return kind(log)
    except TypeError as error:
        reason = "; ".join((*log.errors, *log.warnings)) or str(error)
        raise BackendError(
            f"{backend} {version} cannot use this GPU ({reason}): install the driver that "
            "docs/how-to/engines.md names for its CUDA release, or use --backend openvino"
        ) from error


def logger_of(module: Any) -> Any:
    """Returns the one logger of a library: TensorRT uses the first one until the process ends.

    Its `errors` and `warnings` are the last few messages of each kind; warnings go to `logging`
    too. An interrupt during a log call would be lost in TensorRT's bindings: `interrupts` stores
    it.
    """
    with _LOCK:
        if module not in _LOGGERS:
            _LOGGERS[module] = _create_logger(module)
        return _LOGGERS[module]


_LOCK = Lock()
_LOGGERS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def _create_logger(module: Any) -> Any:
    # The base class is known at run time only.
    class MessageLogger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=KEPT_ERRORS)
            self.warnings: deque[str] = deque(maxlen=KEPT_ERRORS)
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

    return MessageLogger()
