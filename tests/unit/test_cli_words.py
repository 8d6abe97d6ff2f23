"""Options whose value may be left out must not swallow the spec that follows them."""

from __future__ import annotations

import pytest

from nbdfs.cli._words import preparation
from nbdfs.cli.main import Parser

PREPARE = preparation({"-p": "--progress=bar", "--progress": "--progress=bar"})


@pytest.mark.parametrize(
    ("words", "prepared"),
    [
        (["--progress", "a", "b"], ["--progress=bar", "a", "b"]),
        (["-p", "a"], ["--progress=bar", "a"]),
        (["--progress=3", "a"], ["--progress=3", "a"]),
        (["a", "--", "-p"], ["a", "--", "-p"]),
        (["[", "cmd", "-p", "]", "-p"], ["[\0cmd\0-p\0]", "--progress=bar"]),
        (["-p", "--", "[", "cmd", "-v", "]", "b"], ["--progress=bar", "--", "[\0cmd\0-v\0]", "b"]),
        (["x"], ["x"]),
    ],
)
def test_words_are_prepared(words: list[str], prepared: list[str]) -> None:
    assert PREPARE(words) == prepared


def test_a_parser_folds_captive_servers_unless_told_otherwise() -> None:
    assert Parser().prepare(["[", "a", "-b", "]", "c"]) == ["[\0a\0-b\0]", "c"]
