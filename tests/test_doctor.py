"""Reports on a machine: `rare-trt doctor`, and the engines in `rare-trt info`."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rare_trt.cli import main
from rare_trt.commands.doctor import (
    report_advisories,
    report_backends,
    report_machine,
    report_package,
)
from rare_trt.commands.info import describe_engines
from rare_trt.package.manifest import BuilderOptions
from rare_trt.package.reading import Package, open_package
from rare_trt.sessions.advisories import ADVISORIES, Advisory, State, advisories
from rare_trt.sessions.device import Gpu
from rare_trt.sessions.environment import Environment
from rare_trt.sessions.machine import Machine
from rare_trt.sessions.openvino import OpenVinoFacts

GIB = 1 << 30

ADA = Gpu("NVIDIA L4", "8.9", 24 * GIB, False, "580.65.06 CUDA 13.0")
ORIN = Gpu("Orin", "8.7", 16 * GIB, True, "CUDA 12.6")

# A machine on which nothing is amiss, to be broken in one place at a time.
WHOLE = Environment(
    python="3.12.3 (CPython)",
    driver="580.65.06",
    bindings="cuda-bindings 13.0.0",
    openvino=OpenVinoFacts("2026.4.1", "AMD EPYC", ("FP32", "INT8")),
    absent={},
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The small package with engines of TensorRT for RTX, built here without a GPU."""
    pytest.importorskip("tensorrt_rtx")
    from rare_trt.engines.engines_from_package import build_engines
    from rare_trt.sessions.machine import this_machine

    source = Path(__file__).parent / "data" / "tiny_v1.rare"
    package, _ = build_engines(
        open_package(source),
        "tensorrt-rtx",
        "fp32",
        BuilderOptions(optimization_level=1),
        this_machine(),
        out=tmp_path_factory.mktemp("built") / "tiny.rare",
    )
    return package


@pytest.fixture
def rtx_machine(built: Package) -> Machine:
    """A machine that runs the engines of `built`."""
    engine = built.manifest.engines[0]
    return Machine(engine.platform, ADA, "", {"tensorrt-rtx": engine.library})


@pytest.fixture
def damaged(built: Package, tmp_path: Path) -> Iterator[Path]:
    """A copy of the package with one byte of an engine changed."""
    folder = Path(shutil.copytree(built.folder, tmp_path / "damaged.rare"))
    file = folder / built.manifest.engines[0].file
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    yield folder


def test_doctor_reports_this_machine(built: Package, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(built.folder)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for heading in ("This machine", f"Package {built.folder}", "Backends", "Known vulnerabilities"):
        assert heading in out.splitlines()
    assert "route 0, 1  openvino fp32      runs" in out
    assert f"TensorRT for RTX  {built.manifest.engines[0].library}" in out
    assert "route 0, 1  tensorrt-rtx fp32  " in out


def test_doctor_needs_no_extra(tiny_package_folder: Path) -> None:
    absent = ("torch", "onnx", "cuda", "pycuda", "tensorrt", "tensorrt_rtx")
    code = f"import sys; sys.modules.update({dict.fromkeys(absent)!r}); "
    code += (
        f"from rare_trt.cli import main; sys.exit(main(['doctor', {str(tiny_package_folder)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "CUDA bindings     none\n" in done.stdout
    assert "pip install 'rare-trt[rtx]'" in done.stdout
    assert "route 0, 1  openvino fp32  runs" in done.stdout


@pytest.mark.parametrize("module", ["tensorrt", "openvino", "cuda.bindings", "pycuda"])
def test_a_library_that_breaks_at_import_is_a_line(
    tmp_path: Path, tiny_package_folder: Path, module: str
) -> None:
    path = tmp_path.joinpath(*module.split("."), "__init__.py")
    path.parent.mkdir(parents=True)
    path.write_text("raise RuntimeError('this copy is broken')\n")
    # The bindings that come first would answer in place of the second.
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
    code += "sys.modules.update({'cuda': None}); " if module == "pycuda" else ""
    code += (
        f"from rare_trt.cli import main; sys.exit(main(['doctor', {str(tiny_package_folder)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "this copy is broken" in done.stdout
    assert "Known vulnerabilities" in done.stdout


@pytest.mark.parametrize(
    ("module", "name"), [("cuda.bindings", "cuda-bindings"), ("pycuda", "PyCUDA")]
)
def test_bindings_that_need_a_driver_are_not_to_be_installed(
    tmp_path: Path, tiny_package_folder: Path, module: str, name: str
) -> None:
    """They are there, and what is missing is the driver that they load."""
    path = tmp_path.joinpath(*module.split("."), "driver.py")
    path.parent.mkdir(parents=True)
    for folder in (path.parent, tmp_path / module.split(".")[0]):
        (folder / "__init__.py").touch()
    path.write_text("raise ImportError('libcuda.so.1: cannot open shared object file')\n")
    other = "cuda" if module == "pycuda" else "pycuda"
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.modules[{other!r}] = None; "
    code += (
        f"from rare_trt.cli import main; sys.exit(main(['doctor', {str(tiny_package_folder)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    (gpu,) = (line for line in done.stdout.splitlines() if line.startswith("  GPU "))
    assert f"{name} cannot be loaded (libcuda.so.1: cannot open" in gpu
    assert "install NVIDIA's driver" in gpu and "pip install" not in gpu


def test_a_package_that_cannot_be_opened_is_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "no-such"]) == 0
    assert "no-such: no such package" in capsys.readouterr().out
    (tmp_path / "manifest.json").write_text("{")
    assert main(["doctor", str(tmp_path)]) == 0
    assert "manifest.json is not JSON" in capsys.readouterr().out


def test_a_damaged_engine_does_not_run(built: Package, damaged: Path, rtx_machine: Machine) -> None:
    whole = report_package(built, rtx_machine, WHOLE).lines()
    assert "route 0, 1  tensorrt-rtx fp32  runs" in whole
    broken = report_package(open_package(damaged), rtx_machine, WHOLE).lines()
    assert any(line.startswith("route 0     tensorrt-rtx fp32") for line in broken)
    assert any("damaged or tampered with" in line for line in broken)
    assert "route 1     tensorrt-rtx fp32  runs" in broken


def test_the_machine_is_described() -> None:
    machine = Machine("linux-aarch64", ORIN, "", {"tensorrt": "10.3.0"})
    text = "\n".join(report_machine(machine, WHOLE).lines())
    assert "Orin, compute capability 8.7, 16.0 GiB, shared with the CPU" in text
    assert "driver            CUDA 12.6" in text
    assert "TensorRT          10.3.0" in text
    assert "TensorRT for RTX  not installed" in text
    assert "AMD EPYC (bf16: no, int8: yes)" in text


@pytest.mark.parametrize(
    ("change", "around", "expected"),
    [
        ({}, {}, "usable"),
        ({"platform": "linux-aarch64"}, {}, "built for linux-x86_64; this is linux-aarch64"),
        ({"libraries": {}}, {}, "pip install 'rare-trt[rtx]'"),
        ({"libraries": {}}, {"absent": {"tensorrt-rtx": "libX is gone"}}, "libX is gone"),
        ({"libraries": {"tensorrt-rtx": "1.2.0.54"}}, {}, "this machine has 1.2.0.54: build it"),
        ({"gpu": None, "no_gpu": "no CUDA bindings"}, {}, "no CUDA bindings"),
        ({"gpu": None, "no_gpu": "no CUDA bindings"}, {"driver": ""}, "no NVIDIA driver was found"),
        ({"gpu": replace(ADA, compute_capability="9.0")}, {}, "has 9.0: use tensorrt"),
    ],
)
def test_a_backend_that_cannot_be_used_has_a_remedy(
    built: Package,
    rtx_machine: Machine,
    change: dict[str, object],
    around: dict[str, object],
    expected: str,
) -> None:
    machine, environment = replace(rtx_machine, **change), replace(WHOLE, **around)
    openvino, tensorrt, rtx = report_backends("tiny.rare", built, machine, environment).lines()
    assert openvino.split() == ["openvino", "usable"]
    assert not tensorrt.endswith("usable")
    assert rtx.startswith("tensorrt-rtx  ")
    assert expected in rtx


def test_a_backend_without_engines_names_the_command(built: Package) -> None:
    machine = Machine("linux-x86_64", ADA, "", {"tensorrt": "10.13.3.9"})
    lines = report_backends("tiny.rare", built, machine, WHOLE).lines()
    assert lines[1].endswith("`rare-trt build --package tiny.rare --backend tensorrt`")


def test_openvino_that_cannot_be_loaded(built: Package, rtx_machine: Machine) -> None:
    around = replace(WHOLE, openvino="OpenVINO cannot be loaded")
    assert report_backends("x", built, rtx_machine, around).lines()[0].endswith("cannot be loaded")
    lines = report_package(built, rtx_machine, around).lines()
    assert "route 0, 1  openvino fp32      OpenVINO cannot be loaded" in lines
    assert "route 0, 1  tensorrt-rtx fp32  runs" in lines


def test_a_version_that_cannot_be_read_is_a_line(built: Package, rtx_machine: Machine) -> None:
    machine = replace(rtx_machine, libraries={"tensorrt-rtx": "nightly", "tensorrt": "nightly"})
    assert len(report_package(built, machine, WHOLE).lines()) == 3
    assert len(report_backends("x", built, machine, WHOLE).lines()) == 3
    assert (
        sum("unknown" in line for line in report_advisories(machine).lines()) == len(ADVISORIES) + 2
    )


FIRST, *LATER = ADVISORIES


@pytest.mark.parametrize(
    ("version", "first", "later"),
    [
        ("8.6.2", "affected", "affected"),
        ("10.3.0", "affected", "affected"),
        ("10.9", "affected", "affected"),
        ("10.13.3.9", "affected", "affected"),
        ("10.16.0.72", "affected", "affected"),
        ("10.16.1", "fixed", "affected"),
        ("10.16.1.11", "fixed", "affected"),
        ("10.16.2.10", "fixed", "unknown"),
        ("10.17.0", "fixed", "unknown"),
        ("11.0", "fixed", "fixed"),
        ("11.0.0.114", "fixed", "fixed"),
        ("11.4.0.106", "fixed", "fixed"),
        ("100.0.0", "fixed", "fixed"),
        ("11.0.0rc1", "unknown", "unknown"),
        ("", "unknown", "unknown"),
    ],
)
def test_advisories_at_their_boundaries(version: str, first: State, later: State) -> None:
    assert FIRST.cve == "CVE-2026-24188"
    assert FIRST.state(version) == first
    assert {advisory.state(version) for advisory in LATER} == {later}
    expected: list[tuple[Advisory, State]] = [(a, a.state(version)) for a in ADVISORIES]
    assert advisories(version) == [pair for pair in expected if pair[1] != "fixed"]


def test_the_document_names_the_same_vulnerabilities() -> None:
    text = (Path(__file__).parents[1] / "docs" / "measurements" / "tensorrt.md").read_text()
    rows = re.findall(r"^\| (CVE-\S+) .* \| ([\d-]+) \|$", text, re.MULTILINE)
    assert rows == [(advisory.cve, advisory.published) for advisory in ADVISORIES]


def test_advisories_are_reported() -> None:
    def lines(version: str) -> list[str]:
        machine = Machine("linux-x86_64", ADA, "", {"tensorrt": version})
        return report_advisories(machine).lines()

    old = "\n".join(lines("10.3.0"))
    assert all(advisory.cve in old for advisory in ADVISORIES)
    assert old.count("affected  ") == 5
    assert "use TensorRT 11.0.0 or later" in old
    between = "\n".join(lines("10.16.2.10"))
    assert "CVE-2026-24188" not in between
    assert between.count("unknown") == 5
    assert "the bulletins do not cover this release" in between
    assert "unknown" not in old
    assert "TensorRT 11.4.0: none known" in lines("11.4.0")
    nothing = report_advisories(Machine("linux-x86_64", None, "", {})).lines()
    assert "TensorRT: none could be loaded" in nothing


def test_info_lists_engines(built: Package, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(built.folder)]) == 0
    out = capsys.readouterr().out
    assert "platform      made for" in out
    rows = [line for line in out.splitlines() if "tensorrt-rtx fp32" in line]
    assert [row[0] for row in rows] == ["0", "1"]
    for row, engine in zip(rows, built.manifest.engines, strict=True):
        assert f"  {engine.library}  {engine.platform}  8.0, 8.6, 8.9, 12.0, 12.1  " in row
        assert "  optimization_level=1  " in row


def test_info_says_which_engines_run(built: Package, rtx_machine: Machine) -> None:
    _, *rows = describe_engines(built.manifest, rtx_machine)
    assert [row[-1] for row in rows] == ["runs here", "runs here"]
    _, *rows = describe_engines(built.manifest, replace(rtx_machine, platform="linux-aarch64"))
    assert all("built for linux-x86_64; this is linux-aarch64" in row[-1] for row in rows)
    bound = replace(
        built.manifest.engines[0],
        backend="tensorrt",
        gpu=ADA.name,
        compute_capabilities=("8.9",),
        options=BuilderOptions(version_compatible=True, workspace_mib=512),
    )
    _, row = describe_engines(replace(built.manifest, engines=(bound,)), rtx_machine)
    assert row[5:7] == ("NVIDIA L4 (8.9)", "workspace_mib=512 version_compatible")
    assert row[7].startswith("tensorrt is not")


def test_info_without_engines_is_as_it_was(
    tiny_package_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(tiny_package_folder)]) == 0
    assert "made for" not in capsys.readouterr().out
