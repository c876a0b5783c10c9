"""The report for people with a GPU, run whole over the fakes: every variant a row, no fault."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import FakeGpu

from rare_trt.package.reading import Package
from rare_trt.sessions.machine import Machine, this_machine

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu_check.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_check", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "WARM_UP", 1)
    monkeypatch.setattr(module, "RUNS", 3)

    def with_tensorrt_alone() -> Machine:
        here = this_machine()
        libraries = {name: v for name, v in here.libraries.items() if name == "tensorrt"}
        return Machine(here.platform, here.gpu, here.no_gpu, libraries)

    monkeypatch.setattr(module, "this_machine", with_tensorrt_alone)
    return module


def rows_of(report: str) -> list[list[str]]:
    """The cells of the table of engines."""
    return [line.split("|")[1:-1] for line in report.splitlines() if line.startswith("| tensorrt")]


def passed(row: list[str]) -> bool:
    """Whether the row was measured, has the labels of the golden vector and no note."""
    return float(row[7]) > 0 and float(row[9]) < 1e-3 and not row[10].strip()


def test_what_cannot_be_built_is_a_row_and_all_else_is_verified_and_measured(
    gpu: FakeGpu, half: Package, script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """The small package is not calibrated."""
    assert script.main([str(half.folder)]) == 1
    said = capsys.readouterr().out
    rows = rows_of(said)
    (refused,) = (row for row in rows if row[1].strip() == "int8")
    assert "has no INT8 graphs" in refused[10]
    rows.remove(refused)
    assert len(rows) == 2 * (len(script.VARIANTS) - 1)
    assert all(passed(row) for row in rows)
    assert "rare-trt verify, engines of tensorrt: exit 0" in said
    assert len(gpu.trt.cleared) == 2


@pytest.mark.slow
def test_every_variant_is_built_verified_and_measured(
    gpu: FakeGpu, script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main([]) == 0
    said = capsys.readouterr().out
    rows = rows_of(said)
    assert len(rows) == 4 * len(script.VARIANTS)
    assert all(passed(row) for row in rows)
    assert "rare-trt verify, engines of tensorrt: exit 0" in said
    assert len(gpu.trt.cleared) == 4


def test_without_a_gpu_it_says_so(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main([]) == 1
    error = capsys.readouterr().err
    assert error.startswith("gpu_check: this check needs an NVIDIA GPU") and error.count("\n") == 1
