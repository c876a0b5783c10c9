"""Failures on purpose, each with its required outcome.

| failure | required outcome |
|---|---|
| a file of a package cut short, at any length | refused |
| one byte of any file of a package changed | refused |
| the output folder cannot be written | one sentence, exit 1, nothing left |
| no space for labels or for a package | the same, and what was there before stays |
| no space for the cache | labels all the same |
| files may not grow (a limit of the process) | one sentence, exit 1, nothing left |
| memory runs out | one sentence, exit 1, nothing left |
| the clock stands still, jumps on or back | nothing: it only orders cached files by age |
| SIGKILL while scans are segmented or packages written | old output or new, never half of one |
"""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from rare_trt.cli import main
from rare_trt.errors import OutputError, PackageError
from rare_trt.package.reading import Package, open_package
from rare_trt.package.writing import write_package

REPOSITORY = Path(__file__).parents[1]

posix = pytest.mark.skipif(os.name != "posix", reason="limits and mounts of POSIX")


def script(name: str) -> ModuleType:
    """A script of the repository as a module."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def package(tmp_path: Path, tiny_package_folder: Path) -> Package:
    """A private copy of the small package, in today's format."""
    return copied(open_package(tiny_package_folder), tmp_path / "tiny.rare")


def copied(package: Package, folder: Path, *, overwrite: bool = False) -> Package:
    contents = {name: package.read(name) for name in package.manifest.files}
    return write_package(folder, package.manifest, contents, overwrite=overwrite)


def mounted(folder: Path, options: str) -> None:
    """A file system in memory at `folder`; skips the test where none can be mounted."""
    tool = shutil.which("mount")
    if tool is None or not sys.platform.startswith("linux"):
        pytest.skip("no `mount` for a file system in memory")
    command = [tool, "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here, which root may: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that holds the small package once, and not twice."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted(folder, "size=1400k,mode=700")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def full_disk(disk: Path) -> Path:
    """The disk, filled."""
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return disk


def infer(scan: Path, package: Package, out: Path, *more: str) -> list[str]:
    return ["infer", str(scan), "--package", str(package.folder), "-o", str(out), *more]


def one_sentence(text: str) -> str:
    """The text, which must be one line without a traceback."""
    (line,) = text.strip().splitlines()
    assert line.startswith("rare-trt: ")
    return line


def test_a_file_of_a_package_cut_short_is_refused(package: Package) -> None:
    names = dict.fromkeys(package.manifest.files, 4) | {"manifest.json": 100}
    for name, steps in names.items():
        path = package.folder / name
        whole = path.read_bytes()
        for length in {len(whole) * step // steps for step in range(steps)} | {len(whole) - 1}:
            path.write_bytes(whole[:length])
            with pytest.raises(PackageError):
                open_package(package.folder).check()
        path.write_bytes(whole)
    open_package(package.folder).check()


def test_one_changed_byte_in_any_file_is_refused(package: Package) -> None:
    damage = script("damage_package")
    changes = list(damage.changes(package, 200, random.Random(1)))
    assert {name for name, _, _ in changes} == {"manifest.json", *package.manifest.files}
    assert [one for one in changes if not damage.is_refused(package, *one)] == []
    open_package(package.folder).check()


def test_an_output_folder_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, package: Package, tiny_scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "read_only"
    folder.mkdir(mode=0o555)
    is_root = os.geteuid() == 0 if os.name == "posix" else False
    if is_root:
        # Root may write to any folder, but not to a file system that is mounted to be read.
        mounted(folder, "size=64k,ro")
    try:
        for out in (folder / "labels.nii.gz", folder / "new" / "labels.nii.gz"):
            assert main(infer(tiny_scan, package, out, "--report", str(tmp_path / "r.json"))) == 1
            assert "labels.nii.gz: cannot be written" in one_sentence(capsys.readouterr().err)
        assert not (tmp_path / "r.json").exists()
        assert list(folder.iterdir()) == []
        with pytest.raises(OutputError, match="cannot be written"):
            copied(package, folder / "new.rare")
        assert list(folder.iterdir()) == []
    finally:
        if is_root:
            subprocess.run(["umount", str(folder)], check=True)


def test_no_space_for_labels_is_one_sentence_and_leaves_nothing(
    full_disk: Path, package: Package, tiny_scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ([], ["--picture", str(full_disk / "deep" / "picture.png")]):
        assert main(infer(tiny_scan, package, full_disk / "labels.nii.gz", *more)) == 1
        assert "No space left on device" in one_sentence(capsys.readouterr().err)
        assert [path.name for path in full_disk.iterdir()] == ["filler"]


def test_no_space_for_new_labels_keeps_the_old_ones(
    full_disk: Path, package: Package, tiny_scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filler = (full_disk / "filler").stat().st_size
    os.truncate(full_disk / "filler", filler - 4096)
    old = full_disk / "labels.nii.gz"
    old.write_bytes(b"old labels")
    assert main(infer(tiny_scan, package, old, "--overwrite")) == 1
    assert "No space left on device" in one_sentence(capsys.readouterr().err)
    assert old.read_bytes() == b"old labels"
    assert sorted(path.name for path in full_disk.iterdir()) == ["filler", "labels.nii.gz"]


def test_no_space_for_a_package_keeps_the_old_one(disk: Path, package: Package) -> None:
    old = copied(package, disk / "tiny.rare")
    with pytest.raises(OutputError, match="No space left on device"):
        copied(package, disk / "tiny.rare", overwrite=True)
    assert open_package(disk / "tiny.rare") == old
    old.check()
    assert [path.name for path in disk.iterdir()] == ["tiny.rare"]
    with pytest.raises(OutputError, match="No space left on device"):
        copied(package, disk / "deep" / "other.rare")
    assert [path.name for path in disk.iterdir()] == ["tiny.rare"]


@pytest.mark.filterwarnings("default::rare_trt.errors.CacheWarning")
def test_no_space_for_the_cache_costs_only_time(
    full_disk: Path,
    package: Package,
    tiny_scan: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RARE_TRT_CACHE", str(full_disk))
    assert main(infer(tiny_scan, package, tmp_path / "labels.nii.gz")) == 0
    assert (
        "the cache's folder cannot be written (No space left on device)" in capsys.readouterr().err
    )
    assert [path.name for path in full_disk.iterdir()] == ["filler"]


# One scan is segmented first, so that everything is loaded and the limit falls into the second.
LIMITED = """
import resource, sys
from rare_trt.cli import main
kind, value, out, *arguments = sys.argv[1:]
assert main([*arguments, "-o", out + "/first.nii.gz"]) == 0
if kind == "memory":
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + int(value),) * 2)
else:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(value),) * 2)
sys.exit(main([*arguments, "-o", out + "/second.nii.gz"]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        # With nothing left at all the stack cannot grow, and the system ends the process.
        ("memory", 1 << 20, ("memory",)),
        ("memory", 4 << 20, ("memory",)),
        ("memory", 8 << 20, ("memory",)),
        ("size of a file", 500, ("cannot be written", "File too large")),
    ],
)
def test_a_limit_of_the_process_is_one_sentence(
    tmp_path: Path,
    package: Package,
    tiny_scan: Path,
    kind: str,
    value: int,
    words: tuple[str, ...],
) -> None:
    arguments = ["infer", str(tiny_scan), "--package", str(package.folder)]
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, kind, str(value), str(out), *arguments],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, (done.returncode, done.stderr)
    sentence = one_sentence(done.stderr)
    assert all(word in sentence for word in words)
    assert sorted(path.name for path in out.iterdir()) == ["first.nii.gz", "first_dseg.tsv"]


@pytest.mark.parametrize("year", [1971, 2099])
def test_the_clock_decides_nothing(
    tmp_path: Path,
    package: Package,
    tiny_scan: Path,
    monkeypatch: pytest.MonkeyPatch,
    year: int,
) -> None:
    """Cache, package and scan from another time: as if the clock had jumped since."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("RARE_TRT_CACHE", str(cache))
    scan = tmp_path / "scan.nii.gz"
    shutil.copyfile(tiny_scan, scan)
    assert main(infer(scan, package, tmp_path / "before.nii.gz")) == 0
    kept = {path: path.read_bytes() for path in cache.iterdir()}
    stamp = (year - 1970) * 31_556_952
    for path in (scan, *cache.iterdir(), *package.folder.rglob("*")):
        os.utime(path, (stamp, stamp))
    assert main(infer(scan, package, tmp_path / "after.nii.gz")) == 0
    assert (tmp_path / "before.nii.gz").read_bytes() == (tmp_path / "after.nii.gz").read_bytes()
    assert {path: path.read_bytes() for path in cache.iterdir()} == kept


@posix
@pytest.mark.slow
@pytest.mark.parametrize("subject", ["InferKills", "PackageKills"])
def test_a_killed_program_leaves_the_old_or_the_new(tmp_path: Path, subject: str) -> None:
    """A few kills; `scripts/kills.py` does hundreds."""
    kills = script("kills")
    outcomes, in_time, _ = kills.repeat_kills(
        subject, getattr(kills, subject)(tmp_path, random.Random(1)), 6
    )
    assert in_time >= 2
    assert sum(outcomes.values()) >= 6
