"""The cache saves time and can never spoil an answer."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from rare_trt import Segmenter
from rare_trt.storage.cache import Cache


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
    cache.store(b"other", "key 2")
    tmp_path.chmod(0o700)
    assert cache.load("key") == b"content"
    assert cache.load("key 2") is None


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    cache = Cache(blocked / "cache")
    cache.store(b"content", "key")
    assert cache.load("key") is None


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
