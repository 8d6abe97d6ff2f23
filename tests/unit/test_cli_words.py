"""Options may stand anywhere, and those whose value may be left out do not swallow the spec that follows them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

from nbdfs.cli._commands import COMMANDS
from nbdfs.cli.main import parser_of
from nbdfs.errors import UsageError


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
    assert parser_of("copy").prepare(words) == prepared


@pytest.mark.parametrize("command", ["dump", "info", "mount", "serve"])
def test_a_captive_server_may_stand_behind_the_end_of_the_options(command: str) -> None:
    assert parser_of(command).prepare(["-v", "--", "[", "a", "-b", "]", "c"]) == ["-v", "--", "[\0a\0-b\0]", "c"]


def test_brackets_of_the_command_to_run_are_its_own() -> None:
    command = ["--", "[", "-e", "{}", "]"]
    assert parser_of("run").prepare(["[", "a", "]", *command]) == ["[\0a\0]", *command]


def actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All that a command takes, in each of its actions."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from actions(below)
        else:
            yield action


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_tells_each_default(command: str) -> None:
    chosen = [action for action in actions(parser_of(command)) if action.default not in (argparse.SUPPRESS, None)]
    valued = [action for action in chosen if action.nargs != 0 and action.default]
    assert [action.option_strings for action in valued if "default" not in str(action.help)] == []


@pytest.mark.parametrize(("command", "option", "meant"), [
    ("copy", "--progress", "bar"), ("copy", "-p", "bar"), ("copy", "--blkhash", "sha256"),
    ("info", "--map", ["base:allocation"]),
])  # fmt: skip
def test_the_help_shows_that_a_value_may_be_left_out(command: str, option: str, meant: object) -> None:
    parser = parser_of(command)
    assert f" {option}[=" in parser.format_help()
    words = ["a", "b"][: 1 + (command == "copy")]
    assert meant in vars(parser.parse_args(parser.prepare([option, *words]))).values()


def test_the_usage_says_nothing_twice() -> None:
    assert " ".join(parser_of("mount").format_usage().split()).endswith("[-v] SPEC... FILE")
    assert " ".join(parser_of("run").format_usage().split()).endswith("[-v] SPEC -- CMD...")


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
