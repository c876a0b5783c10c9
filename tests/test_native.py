"""Builds the C++ library and runs its tests, where its dependencies are installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from rare_trt import Segmenter

REPOSITORY = Path(__file__).parents[1]
WARNINGS_ARE_ERRORS = ("-D", "CMAKE_C_FLAGS=-Werror", "-D", "CMAKE_CXX_FLAGS=-Werror")


@pytest.mark.slow
def test_the_library_builds_and_passes_its_own_tests(tmp_path: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("the C++ library is for Linux")
    tools = ("cmake", "ctest", "make", "cc", "c++")
    absent = [tool for tool in tools if shutil.which(tool) is None]
    if absent:
        pytest.skip(f"not installed: {', '.join(absent)}")
    build = tmp_path / "build"
    python = ("-D", f"Python3_EXECUTABLE={sys.executable}")
    configured = _run("cmake", "-B", build, "-S", REPOSITORY, *python, *WARNINGS_ARE_ERRORS)
    _, _, missing = configured.stderr.partition("these are missing:")
    if missing:
        pytest.skip(f"missing: {' '.join(missing.partition('Call Stack')[0].split())}")
    assert configured.returncode == 0, configured.stderr
    for command in (("cmake", "--build", build, "-j2"), ("ctest", "--test-dir", build)):
        done = _run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "0 tests failed" in done.stdout
    # The example program is built where nifticlib is installed.
    if (build / "native" / "segment").exists():
        check_the_command_of_get_started(build, tmp_path)


def check_the_command_of_get_started(build: Path, folder: Path) -> None:
    """The last line of the block for C, with this build: labels as Python's."""
    text = (REPOSITORY / "docs" / "get-started.md").read_text()
    found = re.search(r"^build/native/segment (\S+) (\S+) labels_c\.nii\.gz$", text, re.MULTILINE)
    assert found
    package, scan = (REPOSITORY / name for name in found.groups())
    done = _run(build / "native" / "segment", package, scan, folder / "labels_c.nii.gz")
    assert done.returncode == 0, done.stderr
    labels = np.asarray(nib.load(folder / "labels_c.nii.gz").dataobj)
    with Segmenter.load(package) as segmenter:
        assert (labels == segmenter.segment(scan).labels).all()


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs CMake")
def test_the_python_with_openvino_may_be_named_relative_to_the_repository(tmp_path: Path) -> None:
    python = os.path.relpath(sys.executable, REPOSITORY)
    named = ("-D", f"Python3_EXECUTABLE={python}", "-D", "BUILD_TESTING=OFF")
    configured = _run("cmake", "-B", tmp_path / "build", "-S", REPOSITORY, *named)
    assert "OpenVINO 2025.0 or later" not in configured.stderr


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    # Python scripts in the C++ tests set PYTHONPATH themselves, to import this tree.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["CTEST_OUTPUT_ON_FAILURE"] = "1"
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=environment
    )
