"""Tables for people: amounts, columns, what does not fit."""

from __future__ import annotations

import pytest

from nbdfs.cli._table import amount, beginning, clipped, columns, table


@pytest.mark.parametrize(
    "value, text",
    [(None, "-"), (0, "0B"), (0.4, "0B"), (999, "999B"), (1000, "1.0k"), (1024, "1k"), (1536, "1.5k"), (1 << 20, "1M"),
     (123.4, "123B"), (999 << 10, "999k"), (1000 << 10, "1.0M"), (20 << 30, "20G"), ((1 << 63) - 1, "8E")],
)  # fmt: skip
def test_amounts(value: float | None, text: str) -> None:
    assert amount(value) == text


def test_no_amount_takes_more_than_six_characters() -> None:
    for power in range(64):
        for value in (1 << power, (1 << power) - 1, (1 << power) * 1.37, 10.0 ** (power / 4)):
            assert len(amount(value)) <= 6


def test_columns_are_as_wide_as_they_must_be() -> None:
    lines = table(("N", "SIZE", "FILE"), [("a", "1k", "/x"), ("bcd", "100k", "/a/long/path")], [1], 20)
    assert lines == ["N    SIZE  FILE", "a      1k  /x", "bcd  100k  ...g/path"]
    narrow = table(("N", "SIZE", "FILE"), [("a", "1k", "/x")], [1], 5)
    assert narrow[1] == "a    1k  /", "of the last column there is something at any width"
    assert table(("N", "FILE"), [("a", "x" * 200)], [], 0)[1] == "a  " + "x" * 200


@pytest.mark.parametrize("width", range(12))
@pytest.mark.parametrize("text", ["/a/path", "/名前/名", "/e\u0301e\u0301"])
def test_what_is_cut_off_never_takes_more_than_there_is(text: str, width: int) -> None:
    assert columns(clipped(text, width)) <= (width or columns(text))
    assert columns(beginning(text, width)) <= width


def test_wide_letters_take_two_columns_and_accents_none() -> None:
    lines = table(("N", "SIZE", "FILE"), [("名前", "1k", "名前名前"), ("e\u0301", "1k", "/x")], [1], 17)
    assert lines == ["N     SIZE  FILE", "名前    1k  ...前", "e\u0301       1k  /x"]
