"""Every public name has a docstring: the reference is made of them."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import rare_trt

REPOSITORY = Path(__file__).parents[1]
STAGES = ("training", "export", "calibration", "engines")
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> Iterator[Path]:
    """Every module of the package and of the stages, each once."""
    for root in ("rare_trt", *STAGES):
        for path in sorted((REPOSITORY / root).rglob("*.py")):
            inside = path.relative_to(REPOSITORY).parts
            if root != "rare_trt" or inside[1] not in STAGES:
                yield path


def public(node: ast.Module | ast.ClassDef, name: str) -> Iterator[tuple[str, Documented]]:
    """`node` and its public classes, functions and methods, with their names."""
    yield name, node
    for child in node.body:
        if isinstance(child, Documented) and not child.name.startswith("_"):
            if isinstance(child, ast.ClassDef):
                yield from public(child, f"{name}.{child.name}")
            else:
                yield f"{name}.{child.name}", child


def undocumented() -> list[str]:
    """What has no docstring, by file and name; a module without statements needs none."""
    found = []
    for path in sources():
        tree = ast.parse(path.read_text())
        name = path.relative_to(REPOSITORY).with_suffix("").as_posix()
        if tree.body:
            found += [one for one, node in public(tree, name) if not ast.get_docstring(node)]
    return found


def test_every_public_name_has_a_docstring() -> None:
    assert undocumented() == []


def test_every_stable_name_describes_itself() -> None:
    """A dataclass without a docstring gets its signature as one."""
    for name in rare_trt.__all__:
        thing = getattr(rare_trt, name)
        text = inspect.getdoc(thing) or ""
        assert text, name
        assert not text.startswith(f"{name}("), name
        assert text.rstrip()[-1] in ".!:", f"{name}: {text!r} is no sentence"
