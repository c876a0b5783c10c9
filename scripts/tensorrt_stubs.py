"""Fetches the published type stubs of TensorRT 10.13 for mypy, into `.stubs/`.

They are not installed: their package asks for TensorRT itself. As published they do not parse:
some parameters are named `in`, which is a keyword, and one without a default follows others with
one. And `bool` in them means TensorRT's data type of that name.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from zipfile import ZipFile

STUBS = "tensorrt-stubs==10.13.0.35.1"
TARGET = Path(__file__).parents[1] / ".stubs"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", STUBS]
        subprocess.run([*command, "--dest", folder], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(".pyi"):
                    target = TARGET / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_text(fix_stubs(archive.read(name).decode()), encoding="utf-8")
    print(TARGET)


def fix_stubs(text: str) -> str:
    """The stubs in `text` without the faults named above."""
    text = re.sub(r"\bin: (?=list\[)", "in_: ", text)
    text = re.sub(r"(= None, channel_axis: int)(?=\))", r"\1 = ...", text)
    text = re.sub(r"(?<=-> )bool(?=:)|(?<=: )bool(?=[,) ])", "builtins.bool", text)
    return text.replace("import typing\n", "import builtins\nimport typing\n", 1)


if __name__ == "__main__":
    main()
