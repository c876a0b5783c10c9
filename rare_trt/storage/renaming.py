"""Renames that Python lacks: never over another file, and two names exchanged at once."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from errno import EEXIST, EINVAL, ENOSYS, ENOTSUP
from functools import cache
from pathlib import Path
from typing import Final

# Linux: linux/fs.h and fcntl.h.
NOREPLACE: Final = 1
EXCHANGE: Final = 2
AT_FDCWD: Final = -100


def rename_new(source: Path, target: Path) -> None:
    """Renames `source` to `target`; raises FileExistsError where `target` is there already.

    Where the system cannot do both at once, existence is checked first; a file that another
    program creates in between is then replaced.
    """
    if _renameat2(source, target, NOREPLACE):
        return
    if target.exists():
        raise FileExistsError(EEXIST, os.strerror(EEXIST), str(target))
    source.rename(target)


def exchange(first: Path, second: Path) -> bool:
    """Each gets the other's name, at no moment neither; False where the system cannot do it."""
    return _renameat2(first, second, EXCHANGE)


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    """False where the C library, the kernel or the file system does not support it."""
    call = _system_call()
    if call is None:
        return False
    if call(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in (EINVAL, ENOSYS, ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(target))


@cache
def _system_call() -> Callable[..., int] | None:
    try:
        call: Callable[..., int] = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return None
    return call
