"""The conformance vectors of the C++ library are the present results of Python."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

NATIVE = Path(__file__).parents[1] / "native" / "tests"


def _maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_vectors", NATIVE / "make_vectors.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKER = _maker()
FILES = sorted(path.stem for path in MAKER.VECTORS.glob("*.json"))


@pytest.fixture(scope="module")
def made() -> Any:
    # Through JSON, as the files were written.
    return json.loads(json.dumps(MAKER.vectors()))


def test_there_is_a_file_for_every_kind_of_vector(made: Any) -> None:
    assert sorted(made) == FILES


@pytest.mark.parametrize("name", FILES)
def test_python_reproduces_the_file(name: str, made: Any) -> None:
    written = json.loads((MAKER.VECTORS / f"{name}.json").read_text())
    assert len(made[name]) == len(written)
    for found, known in zip(made[name], written, strict=True):
        assert _alike(found, known), f"run make_vectors.py, then adapt C++: {known}"


def _alike(found: Any, known: Any) -> bool:
    """Equal, but for the last bits of numbers, which differ between machines."""
    if isinstance(known, dict):
        return found.keys() == known.keys() and all(_alike(found[k], known[k]) for k in known)
    if isinstance(known, list):
        return len(found) == len(known) and all(map(_alike, found, known))
    if isinstance(known, float):
        return bool(found == pytest.approx(known, rel=1e-6, abs=1e-6))
    return bool(found == known)
