"""Python and C++ read their common constants from one file, and both use every one of them."""

from __future__ import annotations

import json
import re
import typing
from pathlib import Path
from typing import Any

from rare_trt import constants

REPOSITORY = Path(__file__).parents[1]
ENTRIES: dict[str, dict[str, Any]] = json.loads(
    (REPOSITORY / "rare_trt" / "constants.json").read_text()
)


def test_python_has_the_values_of_the_file_in_the_types_it_declares() -> None:
    declared = typing.get_type_hints(constants)
    declared.pop("_VALUES")
    assert declared.keys() == ENTRIES.keys()
    for name, entry in ENTRIES.items():
        value = getattr(constants, name)
        assert value == entry["value"]
        assert declared[name] == typing.Final[type(value)], name


def test_every_entry_states_its_unit_and_meaning() -> None:
    for name, entry in ENTRIES.items():
        assert entry.keys() == {"value", "unit", "meaning"}, name
        assert entry["meaning"].endswith("."), name


def test_both_languages_use_every_entry() -> None:
    folders = ("rare_trt", "training", "export", "calibration", "engines")
    modules = [
        path.read_text() for folder in folders for path in (REPOSITORY / folder).rglob("*.py")
    ]
    python = "\n".join(text for text in modules if "from rare_trt.constants import" in text)
    cpp = "\n".join(path.read_text() for path in (REPOSITORY / "native" / "src").rglob("*.cpp"))
    for name in ENTRIES:
        constant = "k" + "".join(word.capitalize() for word in name.split("_"))
        # Twice: where it is imported, and where it is used.
        assert len(re.findall(rf"\b{name}\b", python)) >= 2, f"no Python module uses {name}"
        assert re.search(rf"\b{constant}\b", cpp), f"no C++ file uses {constant}"
