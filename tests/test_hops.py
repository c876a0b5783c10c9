"""The way of one scan through the package stays short enough to be read in one sitting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

MAX_FRAMES = 8
MAX_MODULES = 25

# Runs in a fresh interpreter, where the command imports what it needs. A module is entered when one
# of its functions runs; functions that run while a module is imported do not count.
PROBE = """
import json, sys
from rare_trt.cli import main
START, END = ("rare_trt.commands.infer", "run"), ("rare_trt.sessions.openvino", "run")
modules, paths = set(), []
def profile(frame, event, argument):
    if event != "call" or not frame.f_globals.get("__name__", "").startswith("rare_trt"):
        return
    path = []
    while frame is not None and START not in path:
        name = frame.f_globals.get("__name__", "")
        if name.startswith("rare_trt"):
            path.append((name, frame.f_code.co_name))
        frame = frame.f_back
    if START in path and "<module>" not in [function for _, function in path]:
        modules.add(path[0][0])
        if path[0] == END:
            paths.append(path)
sys.setprofile(profile)
status = main(sys.argv[1:])
sys.setprofile(None)
print("PROBE" + json.dumps({"modules": sorted(modules), "paths": paths}))
sys.exit(status)
"""


def test_a_scan_takes_few_frames_and_modules(tmp_path: Path, examples: Path) -> None:
    out = tmp_path / "labels.nii.gz"
    command = [sys.executable, "-c", PROBE, "infer", str(examples / "hippocampus_2mm.nii.gz")]
    environment = {**os.environ, "RARE_TRT_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [*command, "-o", str(out), "--backend", "openvino"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert out.exists()
    found = json.loads(done.stdout.split("PROBE")[1])
    # The runs before the last one are those of the golden vectors, which this cache does not know.
    frames = found["paths"][-1]
    assert len(found["paths"]) > 1
    assert "rare_trt.sessions.golden" not in [module for module, _ in frames]
    assert len(frames) <= MAX_FRAMES, frames
    assert len(found["modules"]) <= MAX_MODULES, found["modules"]
