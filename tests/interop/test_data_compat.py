"""`nbdfs compat nbdkit` beside nbdkit: the same command line gives the same bytes, or the same failure."""

from __future__ import annotations

import subprocess

import pytest

from tests.tools import command

SERVE = ["-U", "-"]
TO_PIPE = ["--run", 'nbdcopy "$uri" -']
TO_ITSELF = ["--run", 'nbdcopy "$uri" "$uri"']


def outcome(program: list[str], words: list[str]) -> tuple[bool, bytes]:
    """Whether it went well, and what it wrote."""
    done = subprocess.run([*program, *SERVE, *words], capture_output=True, timeout=60)
    return done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["data", "1 2 3 @^512", *TO_PIPE],
        ["data", "size=600", "allocator=malloc", "$a*2 $b", "a=( 1 2 )", 'b="text"', *TO_PIPE],
        ["data", "raw=123", "size=512", *TO_PIPE],
        ["data", "base64=MTIz", "size=512", *TO_PIPE],
        ["data", "1 ( 2", *TO_PIPE],
        ["data", "$nowhere", *TO_PIPE],
        ["full", "64k", *TO_PIPE],
        ["zero", *TO_PIPE],
        ["--filter=error", "data", "1*100000", "error-rate=100%", *TO_PIPE],
        ["--filter=error", "data", "1*100000", "error-pwrite-rate=1", "error-trim-rate=1", *TO_PIPE],
        ["--filter=error", "data", "1*100000", "error=ENOSPC", "error-pwrite-rate=100%", *TO_ITSELF],
        ["--filter=delay", "data", "1*100000", "wdelay=10ms", "delay-zero=20ms", *TO_ITSELF],
        ["--filter=checkwrite", "data", "@40000 1 @100000", *TO_ITSELF],
        ["--filter=checkwrite", "data", "1*1000", "--run", 'printf x | nbdcopy - "$uri"'],
        ["sparse-random", "64M", "seed=1", "percent=30", *TO_ITSELF],
        ["sparse-random", "16M", "random-content=true", *TO_ITSELF],
        ["random", "1M", "seed=3", *TO_ITSELF],
    ],
    ids=lambda words: " ".join(words[:-2]),
)
def test_both_do_the_same(words: list[str]) -> None:
    assert outcome(command("compat", "nbdkit"), words) == outcome(["nbdkit"], words)


def test_the_tree_of_a_string() -> None:
    words = ["-U", "-", "-f", "-v", "-D", "data.AST=1", "data", "(((2 2 2) 2)) (1 1 1 (1 3))", "--run", "true"]
    for program in command("compat", "nbdkit"), ["nbdkit"]:
        said = subprocess.run([*program, *words], capture_output=True, text=True, timeout=60).stderr.splitlines()
        marks = [index for index, line in enumerate(said) if "BEGIN AST" in line or "END AST" in line]
        tree = " ".join(line.partition("debug: ")[2] for line in said[marks[0] + 1 : marks[1]])
        assert " ".join(tree.split()) == r'( fill(2*4) fill(1*3) "\x01\x03" )'
