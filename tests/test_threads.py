"""Threads that OpenVINO computes with, quotas of containers, and processes forked beside them."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rare_trt import Segmenter
from rare_trt.cli import main
from rare_trt.errors import BackendError
from rare_trt.sessions import openvino
from rare_trt.sessions.openvino import THREADS, cpu_quota, thread_count, usable_cpus

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# Children of one process that segments all the time in another thread; each has 8 seconds.
FORK_WHILE_ANOTHER_THREAD_SEGMENTS = """
import multiprocessing, sys, threading, time
from rare_trt import Segmenter
from rare_trt.errors import BackendError
package, scan = sys.argv[1:]
segmenter = Segmenter.load(package)
segmenter.segment(scan)
stop = threading.Event()
def segment_on():
    while not stop.is_set():
        segmenter.segment(scan)
def work():
    try:
        segmenter.segment(scan)
    except BackendError as error:
        segmenter.close()
        print(f"CHILD {error}", flush=True)
thread = threading.Thread(target=segment_on)
thread.start()
time.sleep(0.2)
context = multiprocessing.get_context("fork")
codes = []
for _ in range(6):
    child = context.Process(target=work)
    child.start()
    child.join(8)
    codes.append(child.exitcode)
    child.kill()
stop.set()
thread.join()
print("CODES", codes)
"""

# A forked process that ends as every program does, instead of os._exit.
FORK_AND_END = """
import os, sys
from rare_trt import Segmenter
from rare_trt.errors import BackendError
package, scan, use = sys.argv[1:]
segmenter = Segmenter.load(package)
segmenter.segment(scan)
child = os.fork()
if child == 0:
    if use == "own":
        try:
            Segmenter.load(package).segment(scan)
        except BackendError as error:
            print(f"CHILD {error}", flush=True)
    sys.exit(7)
print("STATUS", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def run(code: str, *arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# The number of threads


def configured(segmenter: Segmenter, scan: Path) -> int:
    """The number of threads that OpenVINO reports for a session of `segmenter`."""
    segmenter.segment(scan)
    (session,) = segmenter._pool._sessions.values()
    *_, count, word = session.identity.split()
    assert word == "threads"
    return int(count)


@pytest.mark.parametrize("count", [1, np.int64(1), 2])
def test_a_segmenter_computes_with_the_threads_that_were_requested(
    tiny_package_folder: Path, tiny_scan: Path, count: int
) -> None:
    with Segmenter.load(tiny_package_folder, threads=count) as segmenter:
        assert configured(segmenter, tiny_scan) == min(count, len(os.sched_getaffinity(0)))


def test_the_environment_variable_counts_where_no_option_is_given(
    tiny_package_folder: Path, tiny_scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(THREADS, "1")
    with Segmenter.load(tiny_package_folder) as segmenter:
        assert configured(segmenter, tiny_scan) == 1
    assert thread_count(3) == 3
    assert usable_cpus() == 1
    monkeypatch.setenv(THREADS, "")
    assert thread_count() == thread_count(None)


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "99999999999"])
def test_an_invalid_number_of_threads_is_one_sentence(
    tiny_package_folder: Path,
    tiny_scan: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    value: str,
) -> None:
    labels = tmp_path / "labels.nii.gz"
    monkeypatch.setenv(THREADS, value)
    command = ["infer", str(tiny_scan), "-o", str(labels), "--package", str(tiny_package_folder)]
    assert main(command) == 1
    assert capsys.readouterr().err == (
        f"rare-trt: RARE_TRT_THREADS is '{value}'; expected a whole number of CPU threads from 1 "
        "up: correct it or leave it out\n"
    )
    assert not labels.exists()
    with pytest.raises(SystemExit):
        main([*command, "--threads", value])
    assert f"'{value}' is not a number of threads; expected 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize("value", [0, 1.5, "2", 1 << 40])
def test_python_takes_whole_numbers_of_threads_only(tiny_package_folder: Path, value: Any) -> None:
    with pytest.raises(BackendError, match=r"threads is .* expected a whole number of CPU"):
        Segmenter.load(tiny_package_folder, threads=value)


@pytest.mark.parametrize("command", ["infer", "serve", "bench", "evaluate"])
def test_every_command_that_segments_has_the_option(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "--threads N" in capsys.readouterr().out


def test_a_servers_threads_are_its_own(tiny_scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["infer", str(tiny_scan), "--server", "nowhere", "--threads", "1"]) == 1
    assert "--threads goes with `rare-trt serve`" in capsys.readouterr().err


def test_labels_hardly_depend_on_the_number_of_threads_and_the_precision_not_at_all(
    examples: Path,
) -> None:
    """OpenVINO adds up the normalisation's sums per thread. With one number of threads labels are
    the same in every run; with another, single voxels on boundaries may change."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two CPUs")
    for name in ("hippocampus_1mm", "hippocampus_2mm"):
        found = []
        for threads in (1, 2, 1):
            with Segmenter.load("hippocampus", threads=threads) as segmenter:
                found.append(segmenter.segment(examples / f"{name}.nii.gz"))
        one, two, again = found
        assert np.array_equal(one.labels, again.labels)
        assert (one.precision, one.route) == (two.precision, two.route)
        assert (one.labels != two.labels).mean() <= 0.001
        assert one.volumes_mm3 == pytest.approx(two.volumes_mm3, rel=0.01)


def test_golden_vectors_are_checked_for_every_number_of_threads(
    tiny_package_folder: Path, tiny_scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two CPUs")
    checked = []
    monkeypatch.setenv("RARE_TRT_CACHE", str(tmp_path / "fresh"))
    monkeypatch.setattr(
        "rare_trt.sessions.golden.check_golden_vectors", lambda *given: checked.append(given)
    )
    for threads in (1, 2, 1, 2):
        with Segmenter.load(tiny_package_folder, threads=threads) as segmenter:
            segmenter.segment(tiny_scan)
    assert len(checked) == 2
    # One compiled model serves both.
    models = [path for path in (tmp_path / "fresh").iterdir() if path.stat().st_size > 10_000]
    assert len(models) == 1


# Quotas


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        (None, {}, inf),
        ("0::/\n", {}, inf),
        ("0::/\n", {"cpu.max": "max 100000\n"}, inf),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n"}, 2.0),
        ("0::/a\n", {"cpu.max": "200000 100000\n", "a/cpu.max": "50000 100000\n"}, 0.5),
        # As from inside a namespace of groups.
        ("0::/../other\n", {"cpu.max": "300000 100000\n"}, 3.0),
        (
            "4:memory:/x\n2:cpu,cpuacct:/docker/x\n",
            {
                "cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
                "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
                "memory/cpu.max": "1 100000\n",
            },
            0.5,
        ),
        ("2:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, inf),
        ("0::/\n", {"cpu.max": "nonsense\n"}, inf),
        ("nonsense\n", {"cpu.max": "1 1\n"}, inf),
    ],
)
def test_quotas_of_control_groups_are_read(
    tmp_path: Path, groups: str | None, files: dict[str, str], quota: float
) -> None:
    texts = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    if groups is not None:
        texts["proc/self/cgroup"] = groups
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == quota


@pytest.mark.parametrize(
    ("quota", "cpus", "count", "used"),
    [(inf, 4, None, 4), (4.0, 4, None, 4), (1.5, 4, 2, 2), (0.3, 4, 1, 1), (3.0, 2, None, 2)],
)
def test_a_quota_below_the_cpus_limits_the_threads(
    monkeypatch: pytest.MonkeyPatch, quota: float, cpus: int, count: int | None, used: int
) -> None:
    monkeypatch.delenv(THREADS, raising=False)
    monkeypatch.setattr(openvino, "cpu_quota", lambda: quota)
    monkeypatch.setattr(openvino, "_cpus", lambda: cpus)
    assert thread_count() == count
    assert usable_cpus() == used
    # What a user requests counts all the same.
    assert thread_count(8) == 8


# Forks


@forks
def test_forks_beside_a_thread_that_segments_get_a_sentence(
    tiny_package_folder: Path, tiny_scan: Path
) -> None:
    found = run(FORK_WHILE_ANOTHER_THREAD_SEGMENTS, tiny_package_folder, tiny_scan)
    assert "CODES [0, 0, 0, 0, 0, 0]" in found
    sentences = [line for line in found.splitlines() if line.startswith("CHILD")]
    assert len(sentences) == 6
    assert all("was forked from process" in line and "spawn" in line for line in sentences)


@forks
@pytest.mark.parametrize("use", ["none", "own"])
def test_a_fork_after_a_scan_ends_without_waiting(
    tiny_package_folder: Path, tiny_scan: Path, use: str
) -> None:
    """Also where it loads a segmenter of its own: OpenVINO's threads are still the parent's."""
    found = run(FORK_AND_END, tiny_package_folder, tiny_scan, use)
    assert "STATUS 7" in found
    assert ("was forked from process" in found) == (use == "own")


FORK_FIRST = """
import multiprocessing, sys
from rare_trt import Segmenter
package, scan = sys.argv[1:]
segmenter = Segmenter.load(package)
def work(_):
    return segmenter.segment(scan).volumes_mm3
with multiprocessing.get_context("fork").Pool(2) as pool:
    found = pool.map(work, range(4))
assert found == [segmenter.segment(scan).volumes_mm3] * 4
print("EQUAL")
"""

SPAWN = """
import multiprocessing, sys
from rare_trt import Segmenter
def work(arguments):
    with Segmenter.load(arguments[0]) as segmenter:
        return segmenter.segment(arguments[1]).volumes_mm3
if __name__ == "__main__":
    with Segmenter.load(sys.argv[1]) as segmenter:
        own = segmenter.segment(sys.argv[2]).volumes_mm3
        for method in ("spawn", "forkserver"):
            with multiprocessing.get_context(method).Pool(1) as pool:
                assert pool.map(work, [sys.argv[1:]]) == [own]
    print("EQUAL")
"""


@forks
def test_a_fork_before_the_first_scan_segments(tiny_package_folder: Path, tiny_scan: Path) -> None:
    assert "EQUAL" in run(FORK_FIRST, tiny_package_folder, tiny_scan)


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="POSIX")
def test_other_start_methods_segment_after_a_scan(
    tiny_package_folder: Path, tiny_scan: Path, tmp_path: Path
) -> None:
    script = tmp_path / "spawned.py"
    script.write_text(SPAWN)
    done = subprocess.run(
        [sys.executable, script, tiny_package_folder, tiny_scan],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "EQUAL" in done.stdout, done.stderr
