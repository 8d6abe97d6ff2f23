"""[mount.NAME] and [serve.NAME]: each table is a command line of `nbdfs mount` or `nbdfs serve`.

The keys are the long options of the command, as its parser has them, besides `source`, `files` and `target`.
"""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from nbdfs.config.reader import Document, Path
from nbdfs.config.stacks import check_keys, spec_text
from nbdfs.errors import UsageError
from nbdfs.names import check_free, specs_by_name
from nbdfs.records import Record

if TYPE_CHECKING:
    from nbdfs.cli.main import Parser

# What there is, and its keys beside options and sources.
_OWN: Mapping[str, Mapping[str, str]] = {"mount": {"target": "text"}, "serve": {}}
KINDS = tuple(_OWN)
# Options that are about a terminal or a process of its own.
_NOT_HERE = {"help", "background", "config", "run", "stdio", "fd"}


class Command(Record):
    """A mount or a server of a file: `files` are specs by name (one of the empty name is the only one)."""

    kind: str
    name: str
    files: Mapping[str, str]
    options: tuple[str, ...]
    target: str = ""

    @property
    def words(self) -> list[str]:
        """The command line, without `nbdfs`."""
        return [self.kind, *self.options, "--", *self.specs, *([self.target] if self.target else [])]

    @property
    def frame(self) -> tuple[object, ...]:
        """All but the files: what a process cannot change while it runs."""
        return self.kind, self.target, self.options

    @property
    def specs(self) -> list[str]:
        """SPEC, or NAME=SPEC for each file."""
        return [f"{name}={text}" if name else text for name, text in self.files.items()]


def read_command(document: Document, kind: str, name: str, table: Mapping[str, Any]) -> Command:
    """The command that a table stands for, as far as it is right; what is wrong is noted."""
    path = (kind, name)
    parser = _parser(kind)
    actions = {key: action for key, action in parser.long_options().items() if key not in _NOT_HERE}
    known = {"source": "", "files": "a table", **_OWN[kind], **dict.fromkeys(actions, "")}
    given = check_keys(document, path, table, known)
    if ("source" in table) == ("files" in table):
        document.blame(path, f'[{kind}.{name}] needs either source = "SPEC" or files = {{NAME = "SPEC", ...}}')
    if "target" in _OWN[kind] and "target" not in table:
        document.blame(path, f'[{kind}.{name}] needs target = "/FILE/TO/COVER"')
    files = _files(document, path, given)
    target = _target(document, path, given)
    options: list[str] = []
    for key, value in given.items():
        if key in actions:
            options += _option(document, (*path, key), parser, actions[key], value)
    return Command(kind, name, files, tuple(options), target)


@functools.cache
def _parser(kind: str) -> Parser:
    from nbdfs.cli.main import parser_of  # the commands know the configuration, too

    return parser_of(kind)


def _files(document: Document, path: Path, given: Mapping[str, Any]) -> dict[str, str]:
    if "source" in given:
        return {"": spec_text(document, (*path, "source"), given["source"])}
    files: dict[str, str] = {}
    for name, value in given.get("files", {}).items():
        here = (*path, "files", name)
        try:
            _check_file_name(name)
            check_free(name, files)
        except UsageError as error:
            document.blame(here, str(error))
        files[name] = spec_text(document, here, value)
    if not files and "files" in given:
        document.blame((*path, "files"), "'files' is empty: write NAME = \"SPEC\"")
    return files


def _check_file_name(name: str) -> None:
    """Raise UsageError for a name that cannot stand before the `=` of NAME=SPEC."""
    if list(specs_by_name([f"{name}=SPEC"])) != [name] or name.startswith("."):
        raise UsageError(f"the name {name!r} has a = or begins with a dot")


def _target(document: Document, path: Path, given: Mapping[str, Any]) -> str:
    target = os.path.expanduser(str(given.get("target", "")))
    if target and (not os.path.isabs(target) or "\0" in target):
        document.blame((*path, "target"), f"the target '{target}' must be an absolute path")
    return target


def _option(document: Document, path: Path, parser: Parser, action: argparse.Action, value: object) -> list[str]:
    try:
        words = list(_words(path[-1], action, value))
        arguments = parser.parse_args([*words, "SPEC", "FILE"])
        _check_deeper(path[-1], getattr(arguments, action.dest))
    except UsageError as error:
        message = str(error).removeprefix(f"argument --{path[-1]}: ").partition(" (see nbdfs")[0]
        document.blame(path, f"{path[-1]}: {message}")
        return []
    return words


def _words(key: str, action: argparse.Action, value: object) -> Iterator[str]:
    """An option with its value, once for each item of a list if it can be repeated."""
    if isinstance(action, argparse._CountAction):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 9:
            raise UsageError("must be a small number")
        yield from [f"--{key}"] * value
    elif action.nargs == 0:
        if not isinstance(value, bool):
            raise UsageError("must be true or false")
        yield from [f"--{key}"] if value else []
    elif isinstance(value, list) and isinstance(action, argparse._AppendAction):
        for item in value:
            yield f"--{key}={_text(item)}"
    else:
        yield f"--{key}={_text(value)}"


def _text(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UsageError("must be text or a number")
    text = str(value)
    if "\0" in text:
        raise UsageError("must not hold a NUL")
    return text


def _check_deeper(key: str, value: Any) -> None:
    """What the command itself looks at only when it starts."""
    check = _CHECKS.get(key)
    if check:
        check(value)


def _check_listen(uris: list[str]) -> None:
    from nbdfs.nbd.uri import parse_uri

    for uri in uris:
        parse_uri(uri)


def _check_options(texts: list[str]) -> None:
    from nbdfs.fuse.options import parse_options

    parse_options(texts)


_CHECKS: Mapping[str, Callable[[Any], None]] = {"listen": _check_listen, "options": _check_options}
