"""The command line as data, for manual pages and completions: what argparse and the registry know of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from nbdfs import registry
from nbdfs.cli import compat, main
from nbdfs.cli._commands import COMMANDS
from nbdfs.registry import Driver, SourceDriver

# What a word on the command line stands for, by its metavar; what is not here is for people to think of.
KINDS = {
    **dict.fromkeys(("FILE", "PATH", "SOCKET", "DIR", "STATEFILE"), "file"),
    **dict.fromkeys(("MOUNT", "FILE|DIR"), "mount"),
    **dict.fromkeys(("SPEC", "SPEC... FILE", "NAME=SPEC", "SRC", "DST"), "spec"),
}

# Words that argparse is not told, since an error names the nearest right one instead of all.
WORDS = {("compat", "PROGRAM"): compat.programs, ("sources", "NAME"): registry.names}


@dataclass(frozen=True)
class Option:
    """An option: `flags` are its names, `value` the word for its value (empty if it takes none)."""

    flags: tuple[str, ...]
    value: str
    optional: bool  # whether the value may be left out
    repeatable: bool
    choices: tuple[str, ...]
    help: str

    @property
    def kind(self) -> str:
        """What to complete its value with: `file`, `spec`, `mount`, or nothing."""
        return KINDS.get(self.value, "")


@dataclass(frozen=True)
class Argument:
    """A positional argument; `word` is how it is written, `more` what says how often: ``...`` or nothing."""

    word: str
    more: str
    optional: bool
    choices: tuple[str, ...]
    help: str

    @property
    def kind(self) -> str:
        return KINDS.get(self.word, "")


@dataclass(frozen=True)
class Group:
    """Options under one head."""

    title: str
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Command:
    """A command, or an action of one (`luks format`); `name` is all its words."""

    name: str
    summary: str
    description: str
    arguments: tuple[Argument, ...]
    groups: tuple[Group, ...]
    actions: tuple[Command, ...]

    @property
    def options(self) -> tuple[Option, ...]:
        return tuple(option for group in self.groups for option in group.options)


def commands() -> list[Command]:
    """Every command, in order."""
    return [_command(name, main.parser_of(name), summary) for name, summary in COMMANDS.items()]


def drivers() -> list[Driver]:
    """Every source and layer, in order."""
    return [registry.find(name) for name in registry.names()]


def prefixes(driver: Driver) -> list[str]:
    """The words with which a spec may select the driver, up to where its argument or the next part begins."""
    if not isinstance(driver, SourceDriver):
        return [f"{driver.name}::"]
    schemes = [f"{scheme}:" for scheme in driver.schemes]
    return list(dict.fromkeys([f"{driver.name}:", *schemes]))


def takes_file(driver: Driver) -> bool:
    """Whether what follows the colon of a source is the name of a file."""
    return isinstance(driver, SourceDriver) and driver.argument.startswith(("FILE", "PATH"))


def _command(name: str, parser: argparse.ArgumentParser, summary: str) -> Command:
    arguments: list[Argument] = []
    groups: list[Group] = []
    actions: list[Command] = []
    for group in parser._action_groups:  # argparse has no public way to its own tables
        options = []
        for action in group._group_actions:
            if isinstance(action, argparse._SubParsersAction):
                helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
                actions = [_command(f"{name} {word}", sub, helps[word]) for word, sub in action.choices.items()]
            elif action.help == argparse.SUPPRESS:
                continue
            elif action.option_strings:
                options.append(_option(parser, action))
            else:
                arguments.append(_argument(name, parser, action))
        if options:
            groups.append(Group("" if group.title == "options" else group.title or "", tuple(options)))
    return Command(name, summary, parser.description or "", tuple(arguments), tuple(groups), tuple(actions))


def _option(parser: argparse.ArgumentParser, action: argparse.Action) -> Option:
    takes = action.nargs != 0
    return Option(
        tuple(action.option_strings),
        _metavar(action) if takes else "",
        action.nargs == "?",
        isinstance(action, argparse._AppendAction | argparse._CountAction),
        _choices(action),
        _help(parser, action),
    )


def _argument(command: str, parser: argparse.ArgumentParser, action: argparse.Action) -> Argument:
    word = _metavar(action)
    many = action.nargs in ("+", "*", argparse.REMAINDER) and "..." not in word
    optional = action.nargs in ("?", "*", argparse.REMAINDER)
    choices = WORDS.get((command, word), lambda: _choices(action))
    return Argument(word, "..." if many else "", optional, tuple(choices()), _help(parser, action))


def _metavar(action: argparse.Action) -> str:
    if isinstance(action.metavar, str):
        return action.metavar
    if action.choices is not None:
        return "|".join(_choices(action))
    return action.dest.upper().replace("_", "-")


def _choices(action: argparse.Action) -> tuple[str, ...]:
    choices: Sequence[object] = list(action.choices or ())
    return tuple(map(str, choices))


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    text: str = parser._get_formatter()._expand_help(action) if action.help else ""
    return text
