"""The report for people with a GPU, run whole over the fakes: every variant a row, no fault."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import FakeGpu

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
    return module


def test_every_variant_is_built_verified_and_measured(
    gpu: FakeGpu,
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def with_tensorrt_alone() -> Machine:
        here = this_machine()
        return Machine(
            here.platform, here.gpu, here.no_gpu, {"tensorrt": here.libraries["tensorrt"]}
        )

    monkeypatch.setattr(script, "this_machine", with_tensorrt_alone)
    assert script.main([]) == 0
    said = capsys.readouterr().out
    rows = [line.split("|")[1:-1] for line in said.splitlines() if line.startswith("| tensorrt")]
    assert len(rows) == 4 * len(script.VARIANTS)
    for row in rows:
        assert float(row[7]) > 0 and float(row[9]) < 1e-3 and not row[10].strip()
    assert "rare-trt verify, engines of tensorrt: exit 0" in said
    assert len(gpu.trt.cleared) == 4


def test_without_a_gpu_it_says_so(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main([]) == 1
    error = capsys.readouterr().err
    assert error.startswith("gpu_check: this check needs an NVIDIA GPU") and error.count("\n") == 1
