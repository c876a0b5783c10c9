"""Tables of the commands' output."""

from __future__ import annotations

import pytest

from rare_trt.commands.tables import markdown_table, text_table

ROWS = [("route", "Dice"), ("0", "0.876"), ("10", "")]


def test_columns_of_a_text_table_are_aligned_without_trailing_blanks() -> None:
    assert text_table(ROWS).splitlines() == ["route  Dice", "0      0.876", "10"]
    assert text_table([]) == ""


def test_the_first_row_of_a_markdown_table_is_its_head() -> None:
    assert markdown_table(ROWS).splitlines() == [
        "| route | Dice |",
        "|---|---|",
        "| 0 | 0.876 |",
        "| 10 |  |",
    ]


def test_rows_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError):
        text_table([("a", "b"), ("c",)])
