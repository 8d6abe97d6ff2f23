"""Options may stand anywhere, and those whose value may be left out do not swallow the spec that follows them."""

from __future__ import annotations

import pytest

from nbdfs.cli._words import preparation
from nbdfs.cli.main import Parser, parser_of
from nbdfs.errors import UsageError

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


@pytest.mark.parametrize(
    ("words", "positional"),
    [
        (["-r", "memory:1M", "disk"], ["memory:1M", "disk"]),
        (["memory:1M", "-r", "disk"], ["memory:1M", "disk"]),
        (["a=memory:1M", "-r", "-o", "noatime", "b=memory:1M", "-v", "disks"], ["a=memory:1M", "b=memory:1M", "disks"]),
        (["memory:1M", "disk", "-r"], ["memory:1M", "disk"]),
        (["-r", "--", "memory:1M", "-v"], ["memory:1M", "-v"]),
    ],
)
def test_options_stand_anywhere(words: list[str], positional: list[str]) -> None:
    parsed = parser_of("mount").parse_args(words)
    assert (parsed.words, parsed.readonly) == (positional, True)


@pytest.mark.parametrize("words", [["disks", "--shrink", "a", "4k"], ["disks", "a", "--shrink", "4k"]])
def test_options_stand_before_an_argument_that_may_be_left_out(words: list[str]) -> None:
    parsed = parser_of("resize").parse_args(words)
    assert (parsed.mount, parsed.name, parsed.size, parsed.shrink) == ("disks", "a", 4096, True)


@pytest.mark.parametrize("words", [["a", "--nosuch", "b"], ["--nosuch", "--", "a", "b"], ["a", "b", "--nosuch"]])
def test_unknown_options_are_told(words: list[str]) -> None:
    with pytest.raises(UsageError, match=r"unrecognized arguments: .*--nosuch"):
        parser_of("mount").parse_args(words)
