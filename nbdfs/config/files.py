"""Which files there are, and what they say together.

Without `--config` the system's file is read and then the user's, whose names come before those of the system.  A file
with a mistake is not used at all.
"""

from __future__ import annotations

import functools
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from nbdfs.config.commands import KINDS, Command, read_command
from nbdfs.config.reader import Document, Fault, Path, read
from nbdfs.config.stacks import check_keys, references, stack_text
from nbdfs.errors import UsageError, UserError
from nbdfs.registry import nearest

SYSTEM = "/etc/nbdfs.toml"
_LARGEST = 16 << 20  # bytes
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
Named = TypeVar("Named")


class ConfigError(UsageError):
    """A file that is wrong: the first fault in words, all of them in `faults`."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        more = f" (and {len(faults) - 1} more: see nbdfs check)" if len(faults) > 1 else ""
        super().__init__(f"{faults[0]}{more}")
        self.faults = faults


@dataclass
class Config:
    """What the files say: specs of stacks, mounts and servers, by name; what is wrong and what unwise."""

    files: tuple[str, ...] = ()
    stacks: dict[str, str] = field(default_factory=dict)
    commands: dict[str, Command] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    warnings: list[Fault] = field(default_factory=list)

    def stack(self, name: str) -> str:
        """The spec of a stack.  Raises UsageError if there is none of that name."""
        return self._find(self.stacks, name, "stack")

    def command(self, name: str) -> Command:
        """A mount or server.  Raises UsageError if there is none of that name."""
        return self._find(self.commands, name, "mount or server")

    def resolved(self, text: str) -> tuple[str, ...]:
        """A spec with those of all stacks it rests on: what must be equal for nothing to have changed."""
        return (text, *(self.stacks[name] for name in _reached(self, text)))

    def contents(self, command: Command) -> dict[str, tuple[str, ...]]:
        """The files of a mount or server, each with all that its source rests on."""
        return {name: self.resolved(text) for name, text in command.files.items()}

    def _find(self, table: Mapping[str, Named], name: str, what: str) -> Named:
        if name in table:
            return table[name]
        if not self.files:
            raise UsageError(f"there is no {what} '{name}', as there is neither {' nor '.join(_standard_files())}")
        raise UsageError(f"{' and '.join(self.files)}: there is no {what} '{name}'{nearest(name, table)}")


_chosen: list[str] = []  # the file of --config


def use_file(path: str) -> None:
    """Take stacks and mounts from this file alone, in this process; from the usual files if `path` is empty.

    Raises UserError if it cannot be used.
    """
    _chosen[:] = [os.path.abspath(path)] if path else []
    for file in _chosen:
        _stamp(file)


def chosen_file() -> str:
    """The file of `use_file`, else empty."""
    return _chosen[0] if _chosen else ""


def current() -> Config:
    """What the files say now.  Raises ConfigError if one of them is wrong, UserError if it cannot be read."""
    files = _files()
    config = _known(files, tuple(_stamp(file) for file in files))
    if config.faults:
        raise ConfigError(config.faults)
    return config


def examine(files: Sequence[str] = ()) -> Config:
    """What some files say, or else the usual ones, with all that is wrong.  Raises UserError if one cannot be read."""
    chosen = tuple(files) or _files()
    for file in chosen:
        _stamp(file)
    return _examined(chosen)


def _files() -> tuple[str, ...]:
    """The files that are read.  The system's may be for root alone: others do without."""
    there = [file for file in _standard_files() if os.path.exists(file)]
    return tuple(_chosen) or tuple(file for file in there if file != SYSTEM or os.access(file, os.R_OK))


def _standard_files() -> list[str]:
    folder = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return [SYSTEM, *([os.path.join(folder, "nbdfs.toml")] if os.path.isabs(folder) else [])]


def _stamp(file: str) -> tuple[int, ...]:
    """What changes when a file does.  Raises UserError for a file that cannot be used."""
    try:
        status = os.stat(file)
    except OSError as error:
        raise UserError(f"cannot read the configuration {file}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
        raise UserError(f"the configuration {file} is no file of at most {_LARGEST >> 20} MiB")
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & stat.S_IWOTH:
        raise UserError(f"the configuration {file} could be changed by other users, and names commands to run: "
                        "it must belong to you or root, and chmod o-w")  # fmt: skip
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=4)
def _known(files: tuple[str, ...], stamps: tuple[tuple[int, ...], ...]) -> Config:
    """What files say that have these stamps, read once."""
    return _examined(files)


def _examined(files: tuple[str, ...]) -> Config:
    config = Config(files)
    documents = [_document(file) for file in files]
    places = [place for document in documents for place in _take_over(config, document)]
    _check_references(config, places)
    config.faults = sorted(fault for document in documents for fault in document.faults)
    config.warnings = sorted(fault for document in documents for fault in document.warnings)
    return config


def _document(file: str) -> Document:
    try:
        with open(file, "rb") as opened:
            return read(opened.read(_LARGEST), file)
    except OSError as error:
        raise UserError(f"cannot read the configuration {file}: {error.strerror}") from error


def _take_over(config: Config, document: Document) -> list[tuple[Document, Path, str]]:
    """Put what a document says over what is there; gives the specs it holds, each with its place."""
    places: list[tuple[Document, Path, str]] = []
    tables = check_keys(document, (), document.tables, {"stack": "a table", **dict.fromkeys(KINDS, "a table")})
    seen: dict[str, str] = {}
    for kind, named in tables.items():
        for name, table in named.items():
            path = (kind, name)
            if not _NAME.fullmatch(name):
                document.blame(path, f"the name {name!r} must be of letters, digits, - and _")
            elif not isinstance(table, dict):
                document.blame(path, f"'{kind}.{name}' must be a table: [{kind}.{name}]")
            elif kind == "stack":
                config.stacks[name] = text = stack_text(document, path, table)
                places.append((document, path, text))
            elif name in seen:
                document.blame(path, f"'{name}' is the name of [{seen[name]}.{name}] on line "
                                     f"{document.line((seen[name], name))} already")  # fmt: skip
            else:
                config.commands[name] = command = read_command(document, kind, name, table)
                for file, text in command.files.items():
                    places.append((document, (*path, "files", file) if file else (*path, "source"), text))
            seen |= {} if kind == "stack" else {name: kind}
    return places


def _check_references(config: Config, places: list[tuple[Document, Path, str]]) -> None:
    for document, path, text in places:
        for name in references(text) if text else ():
            if name not in config.stacks:
                document.blame(path, f"conf:{name}: there is no stack '{name}'{nearest(name, config.stacks)}")
    for document, path, text in places:
        if path[0] == "stack" and path[1] in (found := _reached(config, text)):
            trail = [path[1], found[path[1]]]
            while trail[-1]:
                trail.append(found[trail[-1]])
            names = [path[1], *reversed(trail[:-1])]
            document.blame(path, f"the stack rests on itself: {' -> '.join(f'conf:{name}' for name in names)}")


def _reached(config: Config, text: str) -> dict[str, str]:
    """The stacks that a spec rests on, each with the one that names it, which for those in the spec itself is none."""
    found: dict[str, str] = {}
    waiting = [("", text)]
    for at, spec in waiting:
        for name in references(spec) if spec else ():
            if name in config.stacks and name not in found:
                found[name] = at
                waiting.append((name, config.stacks[name]))
    return found
