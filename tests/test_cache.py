"""The cache saves time and can never spoil an answer."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from rare_trt import Segmenter
from rare_trt.cache import MAX_FILES, Cache


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


def test_the_oldest_entries_make_room(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for index in range(MAX_FILES + 3):
        cache.store(bytes([index]), str(index))
        for path in tmp_path.iterdir():
            stamp = path.stat().st_mtime - 1
            os.utime(path, (stamp, stamp))
    assert cache.load("0") is None
    assert cache.load(str(MAX_FILES + 2)) == bytes([MAX_FILES + 2])
    assert len(list(tmp_path.iterdir())) == MAX_FILES


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
