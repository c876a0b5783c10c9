"""Atomic, durable writes: all or nothing, fsynced.

A file has a temporary name first, `.NAME.part` beside NAME, under a lock that ends with its
process. So the leftover of a killed process is distinguished from the file of a running one; it is
removed when NAME is written next, and nothing reads it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from errno import EEXIST, EINVAL, EISDIR, ENOSYS, ENOTSUP
from functools import cache
from itertools import takewhile
from pathlib import Path
from stat import S_IMODE
from typing import Final

from rare_trt.errors import OutputError

# Windows has only the last one, and no other system has that.
_CAUTIOUS: Final = (
    getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
)

# Linux: linux/fs.h and fcntl.h.
NOREPLACE: Final = 1
EXCHANGE: Final = 2
AT_FDCWD: Final = -100


def sha256(data: bytes) -> str:
    """The lower-case hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def refuse_existing(paths: list[Path]) -> None:
    """Raises OutputError where one of `paths` exists already, also as a broken link, or is not
    a possible file name."""
    for path in paths:
        try:
            with suppress(FileNotFoundError):
                # The longer of the two names: it must be possible, too.
                temporary_name(path).lstat()
            path.lstat()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise unwritable(path, error) from error
        raise OutputError(f"{path}: exists already: name another output or pass --overwrite")


def write_files(contents: Mapping[Path, bytes], *, overwrite: bool) -> None:
    """Writes all of `contents`, each under a temporary name first, or none of them.

    Folders are made as needed. Raises OutputError with one sentence; no temporary file, no new
    file and no new folder is then left. Replacing several files is as good as the file system
    allows: it renames them one by one. Whatever stops the process or the machine, each file is the
    old one or the new one.
    """
    written: list[Path] = []
    new_folders: list[Path] = []
    path = Path()
    with ExitStack() as claims:
        try:
            staged: list[_Staged] = []
            for path, data in contents.items():
                staged.append(_stage(path, data, claims, new_folders, overwrite=overwrite))
            # Only now, so that one commit of the file system's journal covers every file.
            for file in staged:
                path = file.path
                os.fsync(file.handle)
            for file in staged:
                path = file.path
                file.publish(overwrite=overwrite)
                if file.is_new:
                    written.append(path)
            for folder in {path.parent for path in (*contents, *new_folders)}:
                sync_folder(folder)
        except BaseException as error:
            for path_written in written:
                with suppress(OSError):
                    path_written.unlink()
            claims.close()
            remove_folders(new_folders)
            if isinstance(error, FileExistsError):
                refuse_existing([path])
            if isinstance(error, OSError):
                raise unwritable(path, error) from error
            raise


@dataclass(frozen=True)
class _Staged:
    """The content of `path` under its temporary name, open as `handle`."""

    path: Path
    temporary: Path
    handle: int
    is_new: bool

    def publish(self, *, overwrite: bool) -> None:
        """Gives the content its name; raises FileExistsError where it may not be replaced."""
        claimed_still(self.handle, self.temporary)
        if overwrite:
            self.temporary.replace(self.path)
        else:
            rename_new(self.temporary, self.path)


def _stage(
    path: Path, data: bytes, claims: ExitStack, new_folders: list[Path], *, overwrite: bool
) -> _Staged:
    """Writes `data` under the temporary name of `path`, with the permissions of the file that it
    replaces; folders made for it are added to `new_folders`."""
    is_new = not path.exists()
    if is_new:
        new_folders += make_folder(path.parent)
    elif not overwrite:
        refuse_existing([path])
    elif path.is_dir():
        raise IsADirectoryError(EISDIR, "it is a folder")
    temporary = temporary_name(path)
    handle = claims.enter_context(claimed(temporary, new_file))
    if not is_new:
        temporary.chmod(S_IMODE(path.stat().st_mode))
    put(handle, data)
    return _Staged(path, temporary, handle, is_new)


def unwritable(path: Path, error: OSError) -> OutputError:
    """The error for a `path` that could not be written."""
    return OutputError(
        f"{path}: cannot be written ({error.strerror}): check the folder's permissions and the "
        "free space"
    )


def temporary_name(path: Path) -> Path:
    """Where `path` is written before it has its name."""
    return path.with_name(f".{path.name}.part")


@contextmanager
def claimed(temporary: Path, make: Callable[[Path], int]) -> Iterator[int]:
    """`temporary`, made and opened by `make` and locked; removed at the end unless it was renamed.

    Where it exists already, `make` raises FileExistsError: the leftover of a killed process is then
    removed. Raises OutputError where a running process has it locked.
    """
    while True:
        try:
            handle = make(temporary)
        except FileExistsError:
            _remove_leftover(temporary)
            continue
        try:
            _lock(handle, wait=True)
            # Before it was locked another process may have removed it as a leftover.
            if not _is_still(handle, temporary):
                continue
            yield handle
            return
        finally:
            if _is_still(handle, temporary):
                _remove(temporary)
            os.close(handle)


def claimed_still(handle: int, temporary: Path) -> None:
    """Raises OutputError where another program has removed `temporary`, open as `handle`, as a
    leftover, which can happen where the file system has no locks."""
    if not _is_still(handle, temporary):
        raise _written_by_another(temporary)


def _written_by_another(temporary: Path) -> OutputError:
    return OutputError(
        f"{temporary}: is being written by another program: wait until it has finished"
    )


def new_file(path: Path) -> int:
    """Makes `path` and opens it to be written."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _CAUTIOUS, 0o666)


def new_folder(path: Path) -> int:
    """Makes `path` and opens it."""
    while True:
        path.mkdir()
        # In between another process may have removed it as a leftover.
        with suppress(FileNotFoundError):
            return opened(path)


def write_synced(path: Path, data: bytes) -> None:
    """Writes `data` to a new file, and waits until the disk has it."""
    handle = new_file(path)
    try:
        put(handle, data)
        os.fsync(handle)
    finally:
        os.close(handle)


def put(handle: int, data: bytes) -> None:
    """Writes all of `data` to an open file."""
    rest = memoryview(data)
    while rest:
        # One call takes 2 GiB at most.
        rest = rest[os.write(handle, rest) :]


def sync_folder(folder: Path) -> None:
    """Waits until the names in `folder` are on the disk, where the system supports it."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (EINVAL, ENOTSUP):
            raise
    finally:
        os.close(handle)


def make_folder(folder: Path) -> list[Path]:
    """Creates `folder` where it is missing; returns the new folders, the innermost first."""
    # The usual case: the walk below would take a fifth of a write's time.
    if folder.is_dir():
        return []
    new = list(takewhile(lambda path: not path.exists(), (folder, *folder.parents)))
    folder.mkdir(parents=True, exist_ok=True)
    return new


def remove_folders(folders: Sequence[Path]) -> None:
    """Removes those of `folders` that are empty, the innermost first."""
    for folder in sorted(set(folders), key=lambda folder: len(folder.parts), reverse=True):
        with suppress(OSError):
            folder.rmdir()


def _remove_leftover(temporary: Path) -> None:
    try:
        handle = opened(temporary)
    except FileNotFoundError:
        return
    try:
        if not _lock(handle, wait=False):
            raise _written_by_another(temporary)
        if _is_still(handle, temporary):
            _remove(temporary)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def opened(path: Path) -> int:
    """`path` opened to be read, without following a link or waiting for the other end of a pipe."""
    return os.open(path, os.O_RDONLY | _CAUTIOUS)


def _lock(handle: int, *, wait: bool) -> bool:
    """Whether the lock was free; on file systems without locks it always is."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _is_still(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False


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
