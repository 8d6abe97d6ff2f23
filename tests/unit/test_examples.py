"""The examples of the README and the manual are command lines that nbdfs understands, with specs that it knows."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbdfs.cli.main import parser_of
from nbdfs.names import named_plans
from nbdfs.stack import plan
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
_COMMAND = re.compile(r"^(?: {4}|\$ )?(nbdfs (?:[^\n`\\]|\\\n)+)$", re.MULTILINE)
_END = re.compile(r"\s{3,}|\s+#\s|\s\||\s&|;\s|\s>")  # of the command: a comment, or something of the shell's
_SYNOPSIS = re.compile(r"\[-|\[[A-Z]|\b[A-Z]{4,}\b|\|(?! )| X\b|\.\.\.")  # words that stand for others


def examples(page: Path) -> Iterator[list[str]]:
    """The words of each command line on a page."""
    for found in _COMMAND.findall(page.read_text()):
        line = re.sub(r"\\\n\s*", " ", found)
        command = re.sub(r"^nbdfs --config \S+ ", "nbdfs ", _END.split(line)[0])
        if not _SYNOPSIS.search(line) and command.count("'") % 2 == 0:
            yield shlex.split(command)[1:]


EXAMPLES = [(page.name, words) for page in PAGES for words in examples(page)]


def test_there_are_examples() -> None:
    assert len(EXAMPLES) > 100
    assert {"commit", "copy", "dump", "info", "mount", "run", "serve"} <= {words[0] for _, words in EXAMPLES}


@pytest.mark.parametrize(
    "words", [words for _, words in EXAMPLES], ids=[f"{name}-{words[0]}" for name, words in EXAMPLES]
)
def test_example(words: list[str]) -> None:
    name, *rest = words
    parser = parser_of(name)
    arguments = vars(parser.parse_args(parser.prepare(rest)))
    if name == "mount" and len(arguments["words"]) > 1:
        assert named_plans(arguments["words"][:-1])
    elif name == "serve" and not re.fullmatch(r"\w+", arguments["specs"][0]):
        assert named_plans(arguments["specs"])
    for spec in (arguments.get(key) for key in ("spec", "source", "destination")):
        assert spec in (None, "-", "null:") or plan(spec)
