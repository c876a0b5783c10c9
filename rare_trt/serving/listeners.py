"""Listening sockets of this machine: a Unix socket of one user, or a port of the loopback."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import ECONNREFUSED
from pathlib import Path
from stat import S_ISSOCK

from rare_trt.errors import BackendError


@contextmanager
def listen_on_socket(path: Path) -> Iterator[socket.socket]:
    """Listens on a Unix socket at `path` for this user alone (mode 0600); removed afterwards.

    A socket that a killed server left behind is replaced. Raises BackendError where another server
    listens there, another file is there, or no socket can be made there.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise BackendError(f"{path}: this system's Python has no Unix sockets: use --port")
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
        # At once, so that another server that starts finds this one listening.
        listener.listen()
    except OSError as error:
        listener.close()
        raise BackendError(
            f"{path}: no socket can be made there ({error.strerror or error}); expected a folder "
            "that this user may write to, and at most about 100 characters: name another path"
        ) from error
    finally:
        os.umask(before)
    made = _identity(path)
    try:
        yield listener
    finally:
        listener.close()
        with suppress(OSError):
            if _identity(path) == made:
                path.unlink()


@contextmanager
def listen_on_port(port: int) -> Iterator[socket.socket]:
    """Listens on `port` of 127.0.0.1, or on a free one for 0.

    Raises BackendError where the port is taken or not valid.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        # A restart finds its port free although old connections linger.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            # Before the port is logged.
            listener.listen()
        except (OSError, OverflowError) as error:
            raise BackendError(
                f"port {port} of 127.0.0.1 cannot be used ({error}): name another one"
            ) from error
        yield listener


def _identity(path: Path) -> tuple[int, int, int]:
    """Device, inode and time of the socket at `path`: a later socket may get the same inode."""
    state = path.stat()
    return state.st_dev, state.st_ino, state.st_mtime_ns


def _remove_stale(path: Path) -> None:
    try:
        is_socket = S_ISSOCK(path.lstat().st_mode)
    except OSError:
        return
    if not is_socket:
        raise BackendError(f"{path}: exists already and is not a socket: name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        code = probe.connect_ex(str(path))
    if code == 0:
        raise BackendError(f"{path}: a server is there already: name another path, or stop it")
    if code != ECONNREFUSED:
        raise BackendError(
            f"{path}: a socket is there already, and whether a server listens on it cannot be "
            f"found out ({os.strerror(code)}): name another path"
        )
    path.unlink()
