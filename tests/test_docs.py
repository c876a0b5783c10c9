"""The documents: the site builds, every command and snippet that can run here is run.

A block that cannot run here has a comment `<!-- not run: reason -->` on the line above it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from test_imports import FLOORS

import rare_trt
from rare_trt.cli import COMMANDS
from rare_trt.package.reading import open_package
from rare_trt.package.writing import write_package

REPOSITORY = Path(__file__).parents[1]
TOP = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md")
DOCUMENTS = [
    *(REPOSITORY / name for name in TOP),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]
NAMES = [path.relative_to(REPOSITORY).as_posix() for path in DOCUMENTS]

# What a block of code can be; diagrams have no language.
LANGUAGES = {"", "c", "cmake", "dockerfile", "ini", "python", "sh", "text"}
RUN = ("python", "sh")

# These train, build and calibrate, the second with the package that the first has made.
LONG = ("docs/how-to/train.md", "docs/how-to/int8.md")

SOURCES = (".cpp", ".h", ".json", ".py")

NOT_RUN = re.compile(r"^<!-- not run: (.+) -->$", re.MULTILINE)
SECONDS = 1800


@dataclass(frozen=True)
class Block:
    """A block of code in a document; `reason` is why it is not run here, where it is not."""

    language: str
    text: str
    reason: str | None


def blocks(document: Path) -> list[Block]:
    """Every fenced block of `document`."""
    found = []
    lines = document.read_text().splitlines()
    start: int | None = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
            continue
        reason = NOT_RUN.fullmatch(lines[start - 1])
        text = "\n".join(lines[start + 1 : number])
        found.append(Block(lines[start][3:], text, reason[1] if reason else None))
        start = None
    assert start is None, f"{document}: a block without an end"
    return found


def runs(document: Path) -> list[tuple[str, str]]:
    """The language and text of the blocks to run; neighbours of one language are one script."""
    here = [one for one in blocks(document) if one.language in RUN and one.reason is None]
    joined = groupby(here, key=lambda one: one.language)
    return [(language, "\n".join(one.text for one in group)) for language, group in joined]


def without_code(document: Path) -> str:
    """The text of `document` outside blocks and spans of code, and outside links' targets."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`]*`|\]\([^)]*\)", "", text)


RUNNABLE = [name for name, path in zip(NAMES, DOCUMENTS, strict=True) if runs(path)]


@pytest.fixture(scope="module")
def supplies(
    tmp_path_factory: pytest.TempPathFactory, examples: Path, tiny_package_folder: Path
) -> Path:
    """What the documents' commands name: scans, labelled cases, a recipe, a small package."""
    folder = tmp_path_factory.mktemp("supplies")
    shutil.copy(examples / "hippocampus_2mm.nii.gz", folder / "scan.nii.gz")
    (folder / "scans").mkdir()
    for name in ("hippocampus_1mm.nii.gz", "hippocampus_2mm.nii.gz"):
        shutil.copy(examples / name, folder / "scans" / name)
    whole_head(examples / "hippocampus_1mm.nii.gz", folder / "head.nii.gz")
    for part, source in (("images", "hippocampus_1mm.nii.gz"), ("labels", "truth/1mm.nii.gz")):
        (folder / "cases" / part).mkdir(parents=True)
        image = nib.load(examples / source)
        for number in range(4):
            part_of_it = image.slicer[number % 2 :: 2, number // 2 :: 2, ::2]
            nib.save(part_of_it, folder / "cases" / part / f"case_{number + 1:03d}.nii.gz")
    (folder / "recipe.json").write_text(json.dumps(small_recipe()))
    old = open_package(tiny_package_folder)
    contents = {name: old.read(name) for name in old.manifest.files}
    write_package(folder / "mine.rare", old.manifest, contents, overwrite=False)
    return folder


def whole_head(crop: Path, path: Path) -> None:
    """A scan as large as a head: the crop, mirrored at its faces, its middle at -28, -20, -18."""
    voxels = np.asarray(nib.load(crop).dataobj)
    size = [(170 - n) // 2 for n in voxels.shape]
    head = np.pad(voxels, [(n, n) for n in size], mode="reflect")
    affine = np.eye(4)
    affine[:3, 3] = np.array([-28, -20, -18]) - (np.array(head.shape) - 1) // 2
    nib.save(nib.Nifti1Image(head, affine), path)


def small_recipe() -> dict[str, object]:
    """The shipped recipe with a network of two routes, for 2 and 4 mm, that trains in half a
    minute: in less its labels stay so nearly equal that a build refuses the package."""
    shipped = json.loads((REPOSITORY / "training/recipes/hippocampus.json").read_text())
    network = {**shipped["network"], "depth": 2, "filters": 4, "gate_blocks": 1, "routes": 2}
    small = {"network": network, "base_spacing_mm": 2.0, "cycles": [100], "batch": 2}
    return {**shipped, **small, "averaging": 0.5, "cases_per_subject": 1, "validation_share": 0.25}


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A search path on which `rare-trt` and `python` are this checkout's."""
    folder = tmp_path_factory.mktemp("bin")
    for name, arguments in (("rare-trt", " -m rare_trt.cli"), ("python", "")):
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}"{arguments} "$@"\n')
        script.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def run_page(name: str, folder: Path, path: str) -> None:
    """Runs the commands and snippets of a document in `folder`, `path` being the search path."""
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY)}
    values: dict[str, object] = {}
    for language, text in runs(REPOSITORY / name):
        if language == "python":
            exec(compile(text, name, "exec"), values)
            continue
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("name", [name for name in RUNNABLE if name not in LONG])
def test_every_command_and_snippet_runs(
    name: str, supplies: Path, commands: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "desk"
    shutil.copytree(supplies, folder)
    monkeypatch.chdir(folder)
    run_page(name, folder, commands)


@pytest.mark.slow
def test_training_building_and_calibrating_run_as_documented(
    supplies: Path, commands: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "desk"
    shutil.copytree(supplies, folder, ignore=shutil.ignore_patterns("mine.rare"))
    monkeypatch.chdir(folder)
    for name in LONG:
        assert runs(REPOSITORY / name), name
        run_page(name, folder, commands)


def test_commands_are_written_so_that_they_are_found() -> None:
    run = skipped = 0
    for document in DOCUMENTS:
        for block in blocks(document):
            assert block.language in LANGUAGES, f"{document}: {block.language}"
            run += block.language == "sh" and block.reason is None
            skipped += block.reason is not None
            assert block.reason is None or block.language in RUN, f"{document}: {block.reason}"
            for test in re.findall(r"tests/\w+\.py", block.reason or ""):
                assert (REPOSITORY / test).is_file(), f"{document}: {block.reason}"
        # Comments that belong to no block, and commands that are indented instead of fenced.
        known = sum(block.reason is not None for block in blocks(document))
        assert len(NOT_RUN.findall(document.read_text())) == known, document
        indented = re.findall(
            r"^    (?:rare-trt|python|pip|cmake) .*", without_code(document), re.M
        )
        assert not indented, f"{document}: {indented}"
    assert run >= 15
    assert skipped <= 30


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as continuous integration does, with no way to the network."""
    out = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    environment = {**os.environ, **nowhere, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_a_reader_of_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 80
    for page in pages:
        text = page.read_text()
        loaded = re.findall(r'<(?:script|img|iframe|source)[^>]* src="([^"]*)"', text)
        loaded += re.findall(r'<link[^>]* rel="(?:stylesheet|preconnect)"[^>]*>', text)
        assert not [one for one in loaded if "://" in one or one.startswith("//")], page


def test_the_reference_has_every_command_function_and_entry(site: Path) -> None:
    def identifiers(page: str) -> set[str]:
        return set(re.findall(r'\bid="([^"]+)"', (site / "reference" / page).read_text()))

    assert set(COMMANDS) <= identifiers("command-line.html")
    text = (site / "reference/command-line.html").read_text()
    assert all(option in text for option in ("--spacing-out", "--dice-budget", "--socket"))
    header = (REPOSITORY / "native/include/rare_trt.h").read_text()
    functions = set(re.findall(r"^RARE_TRT_API .*?\b(rare_trt_\w+)\(", header, re.M))
    assert len(functions) == 10
    page = (site / "reference/c.html").read_text()
    assert all(function in page for function in functions)
    python = identifiers("python.html")
    assert {one.rpartition(".")[2] for one in python} >= set(rare_trt.__all__)
    schema = json.loads((REPOSITORY / "rare_trt/package/manifest.schema.json").read_text())
    page = (site / "reference/manifest.html").read_text()
    assert all(definition in page for definition in schema["definitions"])


def test_nothing_that_is_generated_is_left_open(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert "<!-- generated:" not in page.read_text(), page


def test_numbers_have_their_leading_zero() -> None:
    for document in DOCUMENTS:
        found = re.findall(r"(?:^|[\s(+\-/|*×])(\.\d[\d.]*)", without_code(document))
        assert not found, f"{document}: {found}"


def test_every_decision_is_in_the_index() -> None:
    folder = REPOSITORY / "docs/decisions"
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", (folder / "index.md").read_text()))
    assert linked == {path.name for path in folder.glob("*.md")} - {"index.md"}


def test_the_architecture_draws_the_floors_of_the_import_test() -> None:
    text = (REPOSITORY / "ARCHITECTURE.md").read_text()
    section = text.split("## Wings and floors\n", 1)[1]
    drawn = section.split("```text\n", 1)[1].split("\n```", 1)[0].splitlines()
    floors = [set(re.split(r"\s{3,}", line)[0].split()) for line in drawn]
    assert floors[::-1] == [set(wings) for wings in FLOORS]


def test_the_page_on_flags_has_the_sentences_that_the_runtime_writes() -> None:
    text = (REPOSITORY / "docs/concepts/flags.md").read_text()
    flags = re.findall(r"^\| ([^|]+) \|", text.split("|---|---|---|\n", 1)[1], re.MULTILINE)
    assert len(flags) >= 7
    code = "".join(path.read_text() for path in (REPOSITORY / "rare_trt").rglob("*.py"))
    for flag in flags:
        assert flag.strip().removesuffix("…").strip() in code, flag


def test_the_page_on_reports_names_every_entry(examples: Path) -> None:
    text = (REPOSITORY / "docs/reference/report.md").read_text()
    with rare_trt.Segmenter.load("hippocampus", "openvino") as segmenter:
        report = segmenter.segment(examples / "hippocampus_2mm.nii.gz").report()
    for name in report:
        assert f"`{name}`" in text or f"`{name}." in text, name
    for name in report["route"]:
        assert f"`route.{name}`" in text, name
    for name in report["timings_ms"]:
        assert f"`{name}`" in text, name


def modules_of(text: str) -> Iterator[str]:
    """Modules that a document names by wing or folder and file."""
    yield from re.findall(r"(?<![\w/])((?:rare_trt/)?[a-z_]+/[a-z_0-9]+\.py)\b", text)


def test_modules_and_scripts_that_documents_name_are_there() -> None:
    for document in DOCUMENTS:
        text = document.read_text()
        # Scripts that were removed are named with the commit that has them.
        text = re.sub(r"at\s+commit\s+\w+\s+with\s+`[^`]*`", "", text)
        for module in modules_of(text):
            places = (REPOSITORY / module, REPOSITORY / "rare_trt" / module)
            assert any(place.is_file() for place in places), f"{document} names {module}"


def test_documents_that_the_code_names_are_there() -> None:
    roots = ("rare_trt", "training", "export", "calibration", "engines", "native", "tests")
    sources = [REPOSITORY / "CMakeLists.txt"]
    for root in roots:
        sources += [p for p in (REPOSITORY / root).rglob("*") if p.suffix in SOURCES]
    for source in sources:
        for document in re.findall(r"\bdocs/[\w/-]+\.md\b", source.read_text()):
            assert (REPOSITORY / document).is_file(), f"{source} names {document}"
