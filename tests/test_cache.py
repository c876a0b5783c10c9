"""The cache saves time and can never spoil an answer."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from rare_trt import Segmenter
from rare_trt.errors import CacheWarning
from rare_trt.storage.cache import Cache
from rare_trt.storage.files import temporary_name

REPOSITORY: Final = Path(__file__).parents[1]


def test_what_was_stored_comes_back_and_only_under_its_key(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "new")
    cache.store(b"content", "a", "b")
    assert cache.load("a", "b") == b"content"
    assert cache.load("ab") is None
    assert cache.load("a", "c") is None


@pytest.mark.parametrize("position", [0, 31, 32, -1])
def test_a_damaged_entry_counts_as_absent(tmp_path: Path, position: int) -> None:
    cache = Cache(tmp_path)
    cache.store(b"content", "key")
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    assert cache.load("key") is None


def test_the_oldest_entries_make_room_and_other_files_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rare_trt.storage.cache.MAX_CACHE_BYTES", 400)
    mine = tmp_path / "data_1.bin"
    mine.write_bytes(bytes(1000))
    cache = Cache(tmp_path)
    for index in range(6):
        cache.store(bytes(68), str(index))
        for path in tmp_path.iterdir():
            stamp = path.stat().st_mtime - 1
            os.utime(path, (stamp, stamp))
    assert [index for index in range(6) if cache.load(str(index))] == [2, 3, 4, 5]
    assert mine.exists()


def test_an_entry_under_anothers_name_counts_as_absent(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.store(b"one", "1")
    (first,) = tmp_path.iterdir()
    content = first.read_bytes()
    cache.store(b"two", "2")
    (second,) = (path for path in tmp_path.iterdir() if path != first)
    second.write_bytes(content)
    assert cache.load("1") == b"one"
    assert cache.load("2") is None


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_folder_that_others_may_write_is_not_used(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.store(b"content", "key")
    tmp_path.chmod(0o777)
    assert cache.load("key") is None
    with pytest.warns(CacheWarning, match="others own or may write to the cache's folder"):
        cache.store(b"other", "key 2")
    tmp_path.chmod(0o700)
    assert cache.load("key") == b"content"
    assert cache.load("key 2") is None


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    cache = Cache(blocked / "cache")
    with pytest.warns(
        CacheWarning, match=r"cannot be written \(Not a directory\): nothing is kept"
    ):
        cache.store(b"content", "key")
    assert cache.load("key") is None


@pytest.mark.parametrize("found", [RuntimeError("no home"), Path("~/.cache/rare-trt")])
def test_without_a_home_directory_there_is_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: RuntimeError | Path
) -> None:
    """Older releases of platformdirs return a path from "~" on, which would be a folder here."""

    def find(name: str) -> Path:
        if isinstance(found, RuntimeError):
            raise found
        return found

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RARE_TRT_CACHE")
    monkeypatch.setattr("rare_trt.storage.cache.user_cache_path", find)
    cache = Cache()
    with pytest.warns(CacheWarning, match="this user has no home directory: .* RARE_TRT_CACHE"):
        cache.store(b"content", "key")
    assert cache.load("key") is None
    assert list(tmp_path.iterdir()) == []


def test_two_processes_that_write_one_entry_do_not_warn(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.store(b"content", "key")
    (path,) = tmp_path.iterdir()
    with temporary_name(path).open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        cache.store(b"content", "key")
    assert cache.load("key") == b"content"


# As under an arbitrary user id in a container: the system knows neither its name nor its home.
UNKNOWN_USER = """
import pwd, sys
def absent(uid): raise KeyError(uid)
pwd.getpwuid = absent
from rare_trt.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.name != "posix", reason="passwd entries")
@pytest.mark.parametrize("command", ["infer", "info", "verify"])
def test_a_user_without_home_and_passwd_entry_needs_no_cache(
    tmp_path: Path, tiny_package_folder: Path, tiny_scan: Path, command: str
) -> None:
    """Every command runs, with one warning and no traceback."""
    arguments = [str(tiny_package_folder)]
    labels = tmp_path / "labels.nii.gz"
    if command == "infer":
        arguments = [str(tiny_scan), "-o", str(labels), "--package", *arguments]
    done = subprocess.run(
        [sys.executable, "-c", UNKNOWN_USER, command, *arguments],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("this user has no home directory") == 1
    assert labels.exists() == (command == "infer")


def test_labels_are_the_same_with_no_cache_a_fresh_one_and_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_package_folder: Path, tiny_scan: Path
) -> None:
    folder = tmp_path / "cache"
    monkeypatch.setenv("RARE_TRT_CACHE", str(folder))
    found = []
    for state in ("absent", "fresh", "damaged"):
        if state == "damaged":
            for path in folder.iterdir():
                path.write_bytes(path.read_bytes()[:-1] + b"?")
        with Segmenter.load(tiny_package_folder) as segmenter:
            found.append(segmenter.segment(tiny_scan).labels)
    assert folder.stat().st_mode & 0o077 == 0
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
