"""Files written whole or not at all."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rare_trt.errors import OutputError
from rare_trt.storage import files
from rare_trt.storage.files import (
    claimed,
    new_file,
    put,
    refuse_existing,
    sha256,
    temporary_name,
    write_files,
)


def tree(folder: Path) -> dict[str, bytes | None]:
    """All there is below `folder`: files with their content, folders with None."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def test_sha256_is_the_published_digest() -> None:
    assert sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_all_files_are_written_and_folders_made(tmp_path: Path) -> None:
    write_files({tmp_path / "a.bin": b"1", tmp_path / "new" / "b.bin": b"2"}, overwrite=False)
    assert tree(tmp_path) == {"a.bin": b"1", "new": None, "new/b.bin": b"2"}


def test_nothing_to_write_is_no_error(tmp_path: Path) -> None:
    write_files({}, overwrite=False)
    assert tree(tmp_path) == {}


def test_existing_file_stops_all_of_them(tmp_path: Path) -> None:
    (tmp_path / "b.bin").write_bytes(b"old")
    with pytest.raises(OutputError, match=r"b\.bin: exists already.*--overwrite"):
        write_files({tmp_path / "a.bin": b"1", tmp_path / "b.bin": b"2"}, overwrite=False)
    assert tree(tmp_path) == {"b.bin": b"old"}


@pytest.mark.parametrize("length", [251, 255])
def test_a_name_too_long_for_its_temporary_file_is_refused_before_the_work(
    tmp_path: Path, length: int
) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        refuse_existing([tmp_path / ("a" * length)])
    refuse_existing([tmp_path / ("a" * 249)])


def test_overwrite_replaces_the_content(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"something longer than the new content")
    write_files({tmp_path / "a.bin": b"new"}, overwrite=True)
    assert tree(tmp_path) == {"a.bin": b"new"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_failing_second_file_leaves_nothing_behind(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "file").write_bytes(b"not a folder")
    before = tree(tmp_path)
    with pytest.raises(OutputError, match="cannot be written"):
        write_files(
            {tmp_path / "a.bin": b"1", tmp_path / "file" / "b.bin": b"2"}, overwrite=overwrite
        )
    assert tree(tmp_path) == before


def test_failing_second_file_leaves_the_first_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"old")
    (tmp_path / "file").write_bytes(b"not a folder")
    before = tree(tmp_path)
    with pytest.raises(OutputError):
        write_files({tmp_path / "a.bin": b"1", tmp_path / "file" / "b.bin": b"2"}, overwrite=True)
    assert tree(tmp_path) == before


def test_folder_under_the_second_name_leaves_the_first_as_it_was(tmp_path: Path) -> None:
    """A folder of that name is found only when the temporary file takes its place."""
    (tmp_path / "a.bin").write_bytes(b"old")
    (tmp_path / "b.bin").mkdir()
    before = tree(tmp_path)
    with pytest.raises(OutputError):
        write_files({tmp_path / "a.bin": b"1", tmp_path / "b.bin": b"2"}, overwrite=True)
    assert tree(tmp_path) == before


def test_refusal_is_one_sentence_with_the_path_and_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError) as error:
        write_files({tmp_path / "file" / "b.bin": b"2"}, overwrite=False)
    assert str(tmp_path / "file") in str(error.value)
    assert "\n" not in str(error.value)


def test_name_too_long_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_files({tmp_path / "a.bin": b"1", tmp_path / ("b" * 300): b"2"}, overwrite=True)
    assert tree(tmp_path) == {}


def test_refuse_existing_names_the_first_that_exists(tmp_path: Path) -> None:
    refuse_existing([tmp_path / "a", tmp_path / "b"])
    (tmp_path / "b").touch()
    with pytest.raises(OutputError, match="b: exists already"):
        refuse_existing([tmp_path / "a", tmp_path / "b"])


def test_a_link_to_nothing_is_there(tmp_path: Path) -> None:
    """It is not written over unasked, nor is what it leads to made."""
    link = tmp_path / "a.bin"
    link.symlink_to(tmp_path / "absent")
    for refuses in (
        lambda: refuse_existing([link]),
        lambda: write_files({link: b"1"}, overwrite=False),
    ):
        with pytest.raises(OutputError, match=r"a\.bin: exists already"):
            refuses()
    assert link.is_symlink()
    assert not (tmp_path / "absent").exists()
    write_files({link: b"1"}, overwrite=True)
    assert tree(tmp_path) == {"a.bin": b"1"}


def test_a_name_that_no_file_can_have_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / ("b" * 300), tmp_path / "file" / "b.bin"):
        with pytest.raises(OutputError, match="cannot be written"):
            refuse_existing([path])


def test_what_another_process_wrote_meanwhile_stays_when_ours_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failing call takes back what it wrote itself, and nothing else."""
    target = tmp_path / "a.bin"

    def overtaken(handle: int, data: bytes) -> None:
        target.write_bytes(b"theirs")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rare_trt.storage.files.put", overtaken)
    with pytest.raises(OutputError, match="No space left"):
        write_files({target: b"ours"}, overwrite=False)
    assert tree(tmp_path) == {"a.bin": b"theirs"}


@pytest.mark.parametrize("at_once", [True, False])
def test_what_another_process_wrote_meanwhile_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    """Between our look and our rename; also where the system cannot look and rename at once."""
    target = tmp_path / "a.bin"

    def overtaken(handle: int, data: bytes) -> None:
        put(handle, data)
        target.write_bytes(b"theirs")

    if not at_once:
        monkeypatch.setattr("rare_trt.storage.files._renameat2", lambda *_: False)
    monkeypatch.setattr("rare_trt.storage.files.put", overtaken)
    with pytest.raises(OutputError, match=r"exists already.*--overwrite"):
        write_files({target: b"ours"}, overwrite=False)
    assert tree(tmp_path) == {"a.bin": b"theirs"}


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path: Path) -> None:
    (tmp_path / ".a.bin.part").write_bytes(b"half")
    (tmp_path / ".b.bin.part").write_bytes(b"of another file")
    write_files({tmp_path / "a.bin": b"whole"}, overwrite=False)
    assert tree(tmp_path) == {"a.bin": b"whole", ".b.bin.part": b"of another file"}


def test_what_a_living_process_writes_is_left_to_it(tmp_path: Path) -> None:
    part = temporary_name(tmp_path / "a.bin")
    with claimed(part, new_file):
        part.write_bytes(b"theirs")
        with pytest.raises(OutputError, match="being written by another program"):
            write_files(
                {tmp_path / "new" / "b.bin": b"1", tmp_path / "a.bin": b"2"}, overwrite=True
            )
        assert tree(tmp_path) == {".a.bin.part": b"theirs"}
    assert tree(tmp_path) == {}


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="links of POSIX")
def test_a_link_or_a_pipe_under_the_temporary_name_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / ".a.bin.part").symlink_to(tmp_path / "victim")
    with pytest.raises(OutputError, match="cannot be written"):
        write_files({tmp_path / "a.bin": b"1"}, overwrite=True)
    assert (tmp_path / "victim").read_bytes() == b"precious"
    os.mkfifo(tmp_path / ".b.bin.part")
    write_files({tmp_path / "b.bin": b"1"}, overwrite=True)
    assert (tmp_path / "b.bin").read_bytes() == b"1"


def test_many_writers_of_one_file_leave_one_of_them_whole(tmp_path: Path) -> None:
    """Each either writes all of its bytes, or says that another one is writing."""

    def write(number: int) -> int | None:
        try:
            write_files({tmp_path / "a.bin": bytes([number]) * 20_000}, overwrite=True)
        except OutputError as error:
            assert "being written by another program" in str(error)
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        done = [number for number in pool.map(write, range(40)) if number is not None]
    assert done
    (found,) = tree(tmp_path).values()
    assert found in [bytes([number]) * 20_000 for number in done]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that takes no files")
def test_a_folder_that_takes_no_files_is_refused_at_once() -> None:
    """It answers that the new file does not exist, as a folder does that is gone."""
    with pytest.raises(OutputError, match="cannot be written"):
        write_files({Path("/proc/a.bin"): b"1"}, overwrite=False)


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX's")
def test_the_disk_has_a_file_before_its_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a kill cannot show: it does not lose what the system still holds."""
    done: list[tuple[str, str]] = []
    fsync, replace, rename = os.fsync, Path.replace, files.rename_new

    def synced(handle: int) -> None:
        done.append(("synced", os.path.realpath(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def replaced(self: Path, target: Path) -> Path:
        done.append(("named", str(self)))
        return replace(self, target)

    def renamed(old: Path, new: Path) -> None:
        done.append(("named", str(old)))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    monkeypatch.setattr(files, "rename_new", renamed)
    for overwrite in (False, True):
        done.clear()
        names = ("a", "b")
        write_files({tmp_path / name: b"x" for name in names}, overwrite=overwrite)
        parts = [str(tmp_path / f".{name}.part") for name in names]
        expected = [("synced", part) for part in parts] + [("named", part) for part in parts]
        assert done == [*expected, ("synced", str(tmp_path))]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_what_is_replaced_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    path.chmod(mode)
    write_files({path: b"new"}, overwrite=True)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", mode)


@pytest.mark.parametrize("overwrite", [False, True])
def test_without_locks_what_another_program_took_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    """Where every lock seems free, a second writer takes the first one's file for a leftover."""
    path, other = tmp_path / "l.bin", tmp_path / "m.bin"
    monkeypatch.setattr("rare_trt.storage.files._lock", lambda handle, wait: True)

    def taken(handle: int, data: bytes) -> None:
        put(handle, data)
        if data == b"first":
            with claimed(temporary_name(path), new_file) as half:
                put(half, b"se")
                # As if killed here: its half stays, under the name that the first one had.
                temporary_name(path).rename(tmp_path / "kept")
            (tmp_path / "kept").rename(temporary_name(path))

    monkeypatch.setattr("rare_trt.storage.files.put", taken)
    with pytest.raises(OutputError, match="being written by another program"):
        write_files({path: b"first", other: b"more"}, overwrite=overwrite)
    assert not path.exists()
    assert not other.exists()


def test_an_interrupt_while_waiting_for_the_lock_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(handle: int, *, wait: bool) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr("rare_trt.storage.files._lock", interrupted)
    handles = Path("/proc/self/fd")
    before = len(list(handles.iterdir())) if handles.is_dir() else None
    with pytest.raises(KeyboardInterrupt):
        write_files({tmp_path / "new" / "a.bin": b"1"}, overwrite=False)
    if before is not None:
        assert len(list(handles.iterdir())) == before
    assert tree(tmp_path) == {}
