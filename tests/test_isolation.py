"""Segmenting never uses the network, and writes no file but its outputs and its cache."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

# Runs in a fresh interpreter. An audit hook records the files that Python opens; those that
# compiled libraries write by themselves are found by listing every folder that they could write to.
PROBE = """
import json, os, sys
found = {"network": [], "written": []}
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.gethostbyname"):
        found["network"].append(str(arguments[1:]))
        raise OSError("the network is cut off")
    writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if writes and isinstance(arguments[0], (str, bytes)):
        found["written"].append(os.path.abspath(os.fsdecode(arguments[0])))
    if event == "subprocess.Popen":
        found["written"].append(f"process {arguments[0]}")
sys.addaudithook(watch)
from rare_trt.cli import main
status = main(sys.argv[1:])
found["telemetry"] = "openvino_telemetry" in sys.modules
print("PROBE" + json.dumps(found))
sys.exit(status)
"""


def without_network() -> list[str]:
    """A prefix that runs a command in a network namespace of its own, where the system allows it:
    it has no interface that is up, so that compiled libraries cannot connect either."""
    prefix = ["unshare", "--user", "--map-root-user", "--net"]
    if shutil.which("unshare") is None:
        return []
    allowed = subprocess.run([*prefix, "true"], capture_output=True).returncode == 0
    return prefix if allowed else []


def test_infer_writes_only_its_files(tmp_path: Path, examples: Path) -> None:
    home, cache, temp, out = (tmp_path / name for name in ("home", "cache", "temp", "out"))
    for folder in (home, temp, out):
        folder.mkdir()
    environment = {
        **os.environ,
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home),
        "RARE_TRT_CACHE": str(cache),
        "TMPDIR": str(temp),
        "PYTHONDONTWRITEBYTECODE": "1",
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    environment.pop("XDG_CACHE_HOME", None)
    scan = examples / "hippocampus_2mm.nii.gz"
    before = {path: path.stat().st_mtime_ns for path in examples.rglob("*")}
    for start in ("first", "second"):
        command = [*without_network(), sys.executable, "-c", PROBE, "infer", str(scan)]
        command += ["-o", str(out / f"{start}.nii.gz"), "--picture", str(out / f"{start}.png")]
        done = subprocess.run(
            command, env=environment, cwd=home, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.split("PROBE")[1])
        assert found["network"] == []
        assert found["telemetry"] is False
        allowed = (str(out), str(cache), str(temp), os.devnull)
        assert [name for name in found["written"] if not name.startswith(allowed)] == []
    names = {f"{s}{end}" for s in ("first", "second") for end in (".nii.gz", "_dseg.tsv", ".png")}
    assert {path.name for path in out.iterdir()} == names
    assert list(home.rglob("*")) == []
    assert list(temp.rglob("*")) == []
    assert list(cache.rglob("*")) != []
    assert {path: path.stat().st_mtime_ns for path in examples.rglob("*")} == before
