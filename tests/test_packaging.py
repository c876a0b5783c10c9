"""What is installed: the wheel's exact contents, from a checkout without symbolic links too."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
STAGES = ("training", "export", "calibration", "engines")
WINGS = (
    *("batch", "bench", "building", "commands", "evaluation", "package", "plan", "scan"),
    *("serving", "sessions", "storage"),
)


@pytest.fixture(scope="module")
def plain_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as some archives leave it: links have become small text files."""
    folder = tmp_path_factory.mktemp("plain") / "project"
    unwanted = (".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(REPOSITORY, folder, symlinks=True, ignore=shutil.ignore_patterns(*unwanted))
    for stage in STAGES:
        link = folder / "rare_trt" / stage
        link.unlink()
        link.write_text(f"../{stage}")
    return folder


@pytest.fixture(scope="module")
def wheel(plain_copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    done = subprocess.run([*command, str(plain_copy)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    return path


def test_the_links_are_relative_and_lead_to_the_stages() -> None:
    for stage in STAGES:
        link = REPOSITORY / "rare_trt" / stage
        if link.is_file():
            pytest.skip("this checkout has no symbolic links")
        assert link.readlink() == Path("..") / stage


def test_the_wheel_holds_exactly_the_packages_and_their_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if ".dist-info/" not in n}
    expected = set()
    for folder in ("rare_trt", *STAGES):
        prefix = "rare_trt/" if folder in STAGES else ""
        for path in (REPOSITORY / folder).rglob("*"):
            relative = path.relative_to(REPOSITORY).as_posix()
            inside = relative.startswith(tuple(f"rare_trt/{stage}" for stage in STAGES))
            if path.is_file() and "__pycache__" not in relative and not inside:
                expected.add(prefix + relative)
    assert names == expected
    packages = {name.rpartition("/")[0] for name in names if name.endswith("/__init__.py")}
    assert packages == {
        "rare_trt",
        *(f"rare_trt/{wing}" for wing in WINGS),
        *(f"rare_trt/{stage}" for stage in STAGES),
    }
    assert wheel.stat().st_size < 45e6


def test_the_base_install_needs_neither_torch_nor_onnx(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    needed = [entry for entry in metadata.get_all("Requires-Dist", []) if "extra ==" not in entry]
    found = {entry.split(">")[0].split("=")[0].split(";")[0].strip() for entry in needed}
    assert found == {
        "numpy",
        "nibabel",
        "openvino",
        "fastjsonschema",
        "platformdirs",
        "pillow",
        "isal",
        "msgspec",
        "tqdm",
    }


def test_a_source_archive_builds_the_same_wheel(
    plain_copy: Path, wheel: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "build",
        "--sdist",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
    ]
    subprocess.run([*command, str(plain_copy)], capture_output=True, text=True, check=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
    ]
    subprocess.run([*command, str(source)], capture_output=True, text=True, check=True)
    (again,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(again) as one, zipfile.ZipFile(wheel) as other:
        assert set(one.namelist()) == set(other.namelist())
