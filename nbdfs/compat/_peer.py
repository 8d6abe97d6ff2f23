"""What the command lines of libnbd's tools have in common."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nbdfs import logs
from nbdfs.cli.main import Parser
from nbdfs.errors import UsageError
from nbdfs.plans import plan
from nbdfs.spec import Spec, parse

VERSION = "1.24.4"  # of libnbd: the one whose command lines these are


def parser(name: str) -> Parser:
    """A parser for the tool `name`, with the options that all tools have."""
    made = Parser(
        prog=name,
        description=f"{name} as libnbd {VERSION} has it, done by nbdfs.",
    )
    made.add_argument("-V", "--version", action="version", version=f"{name} {VERSION}\nlibnbd {VERSION}")
    add_option_lists(made)
    made.add_argument("-v", "--verbose", action="count", default=0, help="say more; -vv also shows tracebacks")
    return made


def add_option_lists(made: Parser) -> None:
    """Let a parser list its own options."""
    made.add_argument("--long-options", action=_ListOptions, nargs=0, help="list the long options")
    made.add_argument("--short-options", action=_ListOptions, nargs=0, help="list the short options")


def parse_words(made: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments, with logging set up as they ask for."""
    arguments = made.parse_args(made.prepare(argv))
    logs.set_up(arguments.verbose)
    return arguments


def server(word: str) -> Spec:
    """An NBD URI or a folded `[ CMD ]`: what these tools call NBD."""
    if "://" not in word and not word.startswith("["):
        raise UsageError(f"'{plan(word)}' is neither an NBD URI nor [ CMD ]")
    return parse(word)


class _ListOptions(argparse.Action):
    """Print the options, one a line, for a shell's completion."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        long = self.option_strings == ["--long-options"]
        print("\n".join(sorted(word for word in parser._option_string_actions if word.startswith("--") is long)))
        parser.exit()
