"""Puts the published type stubs of TensorRT 10.13 where mypy finds them: `.stubs/`.

As published they do not parse: some parameters are named `in`, which is a keyword, and one without
a default follows others with one. And `bool` in them means TensorRT's data type of that name.
"""

from __future__ import annotations

import re
from importlib.metadata import distribution
from pathlib import Path

TARGET = Path(__file__).parents[1] / ".stubs"


def main() -> None:
    for file in distribution("tensorrt-stubs").files or ():
        if file.suffix == ".pyi":
            target = TARGET / str(file)
            target.parent.mkdir(parents=True, exist_ok=True)
            text = Path(str(file.locate())).read_text(encoding="utf-8")
            text = re.sub(r"\bin: (?=list\[)", "in_: ", text)
            text = re.sub(r"(= None, channel_axis: int)(?=\))", r"\1 = ...", text)
            text = re.sub(r"(?<=-> )bool(?=:)|(?<=: )bool(?=[,) ])", "builtins.bool", text)
            text = text.replace("import typing\n", "import builtins\nimport typing\n", 1)
            target.write_text(text, encoding="utf-8")
    print(TARGET)


if __name__ == "__main__":
    main()
