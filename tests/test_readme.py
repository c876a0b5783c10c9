"""README's first two commands, in a copy of the project alone; the names that documents use."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()


def command(heading: str) -> str:
    """The first shell block under `heading`."""
    section = README.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    found = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert found, heading
    return found.group(1).strip()


@pytest.mark.slow
def test_the_first_command_installs_and_segments_an_example(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns(
        ".git", ".venv*", "build", "*.egg-info", "__pycache__", ".*_cache"
    )
    project = tmp_path / "project"
    shutil.copytree(REPOSITORY, project, symlinks=True, ignore=ignored)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["RARE_TRT_CACHE"] = str(tmp_path / "cache")
    done = subprocess.run(
        ["bash", "-ec", command("Segment a scan")],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    labels = nib.load(project / "labels.nii.gz")
    assert labels.shape == nib.load(project / "examples/hippocampus_2mm.nii.gz").shape
    assert set(np.unique(np.asarray(labels.dataobj))) == {0, 1, 2}
    assert (project / "labels.png").stat().st_size > 10_000
    listed = subprocess.run(
        [project / ".venv/bin/python", "-m", "pip", "list"], capture_output=True, text=True
    ).stdout.lower()
    assert "rare-trt" in listed
    for heavy in ("torch", "onnx", "scipy", "matplotlib"):
        assert f"\n{heavy} " not in listed
    if shutil.which("cmake"):
        # The compilation takes minutes: tests/test_native.py does it.
        found = re.search(r"C and C\+\+: `(cmake .*?) && cmake --build build`", README)
        assert found
        configured = subprocess.run(
            ["bash", "-ec", found[1]], cwd=project, env=environment, capture_output=True, text=True
        )
        assert "OpenVINO 2025.0 or later" not in configured.stderr


def test_the_second_command_is_what_continuous_integration_runs() -> None:
    script = (REPOSITORY / ".ci" / "run").read_text()
    assert "README.md" in script
    assert "pytest" in command("Test it")


def test_readme_stays_short() -> None:
    assert len(README.splitlines()) <= 130


def test_every_file_that_the_documents_name_is_there() -> None:
    top = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
    documents = [REPOSITORY / name for name in top]
    for document in [*documents, *(REPOSITORY / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
            if not target.startswith(("http:", "https:")):
                assert (document.parent / target).exists(), f"{document.name} names {target}"


def test_the_tests_that_the_safety_page_names_are_there() -> None:
    text = (REPOSITORY / "docs" / "safety.md").read_text()
    tests = "\n".join(path.read_text() for path in (REPOSITORY / "tests").glob("test_*.py"))
    named = set(re.findall(r"\btest_\w+(?!\w|\.py)", text))
    assert len(named) > 15
    assert [name for name in sorted(named) if f"def {name}(" not in tests] == []
    files = set(re.findall(r"\btest_\w+\.py", text))
    assert [name for name in files if not (REPOSITORY / "tests" / name).is_file()] == []
