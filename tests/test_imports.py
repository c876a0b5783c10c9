"""Imports go one way, the base install stays thin, and starting is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from rare_trt.cli import COMMANDS

REPOSITORY = Path(__file__).parents[1]

# Each stage may import itself and what stands after it; the runtime imports none of them.
ORDER = ("engines", "calibration", "export", "training")
HEAVY = (
    "torch",
    "onnx",
    "onnxsim",
    "onnxscript",
    "safetensors",
    "matplotlib",
    "tensorrt_rtx",
    "scipy",
    "yaml",
    "uvicorn",
    "prometheus_client",
)


def imported(path: Path) -> set[str]:
    """Every module that the file names in an import, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


def stage(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "rare_trt" and len(parts) > 1 and parts[1] in ORDER else None


@pytest.mark.parametrize("folder", ORDER)
def test_stages_import_only_what_stands_after_them(folder: str) -> None:
    allowed = ORDER[ORDER.index(folder) :]
    files = list((REPOSITORY / folder).rglob("*.py"))
    assert files
    for path in files:
        used = {stage(module) for module in imported(path)} - {None}
        assert used <= set(allowed), f"{path} imports {used}"


def test_the_runtime_imports_no_stage_but_inside_the_command_that_needs_it() -> None:
    for path in (REPOSITORY / "rare_trt").rglob("*.py"):
        inside = path.relative_to(REPOSITORY / "rare_trt").parts[0]
        if inside in ORDER:
            continue
        tree = ast.parse(path.read_text())
        top = ast.Module([n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))], [])
        everywhere = {stage(module) for module in imported(path)} - {None}
        at_import = {
            stage(name)
            for node in top.body
            for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [])
        } - {None}
        assert not at_import, f"{path} imports {at_import} when loaded"
        assert not everywhere or inside == "commands", f"{path} imports {everywhere}"


def without(modules: tuple[str, ...], code: str) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a fresh interpreter in which `modules` cannot be imported."""
    block = f"import sys; sys.modules.update({dict.fromkeys(modules)!r}); "
    command = [sys.executable, "-W", "error", "-c", block + code]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_importing_rare_trt_loads_nothing_heavy() -> None:
    # nibabel itself looks whether there is a scipy, and loads no part of it.
    heavy = [name for name in HEAVY if name != "scipy"]
    code = f"import rare_trt; found = {(*heavy, 'scipy.ndimage', 'openvino', 'PIL')!r}; "
    code += "print([name for name in found if sys.modules.get(name)])"
    done = without((), code)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)],
)
def test_every_help_works_with_no_extra_installed(arguments: list[str]) -> None:
    done = without(HEAVY, f"from rare_trt.cli import main; main({arguments!r})")
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("absent", ["matplotlib", "scipy"])
def test_training_asks_for_its_whole_extra_before_the_first_epoch(absent: str) -> None:
    command = ["train", "--data", "x", "--out", "y"]
    done = without((absent,), f"from rare_trt.cli import main; sys.exit(main({command!r}))")
    assert done.returncode == 1
    assert f"needs the package {absent}" in done.stderr
    assert "rare-trt[train]" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["train", "--data", "x", "--out", "y"], "rare-trt[train]"),
        (["evaluate", "--data", "x", "-o", "y"], "rare-trt[evaluate]"),
        (["convert", "x", "--data", "y", "--out", "z"], "rare-trt[train]"),
        (["serve", "--port", "0"], "rare-trt[serve]"),
        (["build", "x", "--data", "y", "-o", "z.rare"], "rare-trt[calibrate]"),
    ],
)
def test_a_command_without_its_extra_names_it(arguments: list[str], extra: str) -> None:
    done = without(HEAVY, f"from rare_trt.cli import main; sys.exit(main({arguments!r}))")
    assert done.returncode == 1
    assert extra in done.stderr
    assert "Traceback" not in done.stderr
