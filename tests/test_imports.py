"""Imports go one way, the base install stays thin, and starting is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from rare_trt.cli import COMMANDS

REPOSITORY = Path(__file__).parents[1]

# Every module belongs to one floor, by the longest name that fits, and imports only from its own
# floor and those before it. Stages stand in folders of their own at the top of the repository.
STAGES = ("training", "export", "calibration", "engines")
FLOORS = (
    ("_version", "errors", "backends", "constants", "stopwatch"),
    ("storage",),
    ("scan",),
    ("plan",),
    ("package",),
    ("sessions",),
    ("overlay", "options", "points"),
    ("result",),
    ("segmenter",),
    ("evaluation",),
    ("training",),
    ("export",),
    ("calibration",),
    ("engines",),
    ("building",),
    ("serving",),
    ("jobs", "bench"),
    ("batch",),
    ("commands",),
    ("cli",),
)
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


def modules() -> dict[str, Path]:
    """Every module of the package but the package itself, by its name inside rare_trt."""
    found = {}
    roots = [REPOSITORY / "rare_trt", *(REPOSITORY / stage for stage in STAGES)]
    for root in roots:
        for path in root.rglob("*.py"):
            relative = path.relative_to(REPOSITORY).with_suffix("")
            parts = [part for part in relative.parts if part != "rare_trt"]
            if parts[-1] == "__init__":
                parts.pop()
            if parts and not (root.name == "rare_trt" and parts[0] in STAGES):
                found[".".join(parts)] = path
    return found


def inside(names: set[str]) -> set[str]:
    return {name.removeprefix("rare_trt.") for name in names if name.startswith("rare_trt.")}


def floor(module: str) -> int:
    (found,) = (n for n, wings in enumerate(FLOORS) if module.split(".")[0] in wings)
    return found


def test_imports_go_down_the_floors_only() -> None:
    for name, path in modules().items():
        for used in inside(imported(path)):
            assert floor(used) <= floor(name), f"{name} imports {used}"


def test_no_imports_go_in_a_circle_the_late_ones_included() -> None:
    known = modules()
    graph = {name: inside(imported(path)) & set(known) for name, path in known.items()}
    while graph:
        free = {name for name, used in graph.items() if not used & (set(graph) - {name})}
        assert free, f"these import one another: {sorted(graph)}"
        graph = {name: used for name, used in graph.items() if name not in free}


def test_the_top_floor_stays_small() -> None:
    assert len(list((REPOSITORY / "rare_trt").glob("*.py"))) <= 14


def test_the_runtime_imports_no_stage_when_it_is_loaded() -> None:
    allowed = {*STAGES, "building"}
    for name, path in modules().items():
        if name.split(".")[0] in allowed:
            continue
        tree = ast.parse(path.read_text())
        at_import = {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)}
        used = {used for used in inside(at_import) if used.split(".")[0] in allowed}
        assert not used, f"{name} imports {used} when loaded"


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
