"""Read TOML, remember the line of every table and key, and find all mistakes at once.

tomllib knows no lines and stops at the first mistake.  So the text is cut into its statements (a table's header, or
KEY = VALUE), tomllib reads each of them by itself, and they are put together here.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nbdfs.errors import printable

Path = tuple[str, ...]

MOST_FAULTS = 100  # after so many the rest of a file is not looked at
_DEEPEST = 32  # tables and brackets in each other

_TOKEN = re.compile(
    r''' """ (?: \\. | [^\\] )*? "{3,5}  |  \'{3} .*? \'{3,5}     # strings of several lines
      | " (?: \\[^\n] | [^"\\\n] )* "  |  ' [^'\n]* '  |  \# [^\n]*
      | [^"'\#\[\]{}\n]+  |  . ''',
    re.DOTALL | re.VERBOSE,
)
_BRACKETS = {"[": 1, "{": 1, "]": -1, "}": -1}
_PLACE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


@dataclass(frozen=True, order=True)
class Fault:
    """What is wrong on a line (counted from 1) of a file."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


@dataclass
class Document:
    """What a file says, and where it says so; with faults it says only as much as could be read."""

    file: str
    tables: dict[str, Any] = field(default_factory=dict)
    lines: dict[Path, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    warnings: list[Fault] = field(default_factory=list)

    def line(self, path: Path) -> int:
        """The line of a table or key; that of what holds it if it has none of its own."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def blame(self, path: Path, message: str) -> None:
        """Note what is wrong with a table or key."""
        self.fault(self.line(path), message)

    def warn(self, path: Path, message: str) -> None:
        """Note what is unwise about a table or key."""
        self.warnings.append(Fault(self.file, self.line(path), printable(message)))

    def fault(self, line: int, message: str) -> None:
        self.faults.append(Fault(self.file, line, printable(message)))


def read(content: bytes, file: str) -> Document:
    """Read the content of a file.  Never raises: what is wrong is in the `faults`."""
    document = Document(file)
    try:
        text = content.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        document.fault(content.count(b"\n", 0, error.start) + 1, "this is not UTF-8")
        return document
    _read_statements(document, text)
    if not document.faults:
        _read_whole(document, text)
    return document


def _read_statements(document: Document, text: str) -> None:
    headers: dict[Path, int] = {}
    table: Path | None = ()  # None below a header that makes no sense
    line, at = 1, 0
    while at < len(text) and len(document.faults) < MOST_FAULTS:
        end = _end_of_statement(text, at)
        is_header = text[at:end].lstrip().startswith("[")
        try:
            found = tomllib.loads(text[at:end])
        except (ValueError, RecursionError) as error:  # also a number of too many digits
            _note_syntax(document, error, line)
            end = (text.find("\n", at) + 1 or len(text) + 1) - 1  # what follows may be right
            table = None if is_header else table
        else:
            if is_header:
                table = _enter(document, headers, found, line)
            elif table is not None:
                _merge(document, table, found, line)
        line += text.count("\n", at, end + 1)
        at = end + 1


def _end_of_statement(text: str, start: int) -> int:
    """The end of the line on which all brackets and strings that were opened are closed."""
    depth = 0
    for token in _TOKEN.finditer(text, start):
        depth += _BRACKETS.get(token[0], 0)
        if (token[0] == "\n" and depth <= 0) or depth > _DEEPEST:
            return token.start()
    return len(text)


def _note_syntax(document: Document, error: Exception, line: int) -> None:
    message = str(error)
    place = _PLACE.search(message)
    if place:
        line += int(place[1] or 1) - 1
        message = message[: place.start()]
    document.fault(line, f"not TOML: {message[:1].lower()}{message[1:]}")


def _enter(document: Document, headers: dict[Path, int], found: dict[str, Any], line: int) -> Path:
    """Begin the table of a header; `headers` are those so far."""
    path: Path = ()
    inner: Any = found
    while isinstance(inner, dict) and inner:
        ((name, inner),) = inner.items()
        path = (*path, name)
    name = ".".join(path)
    if isinstance(inner, list):
        document.fault(line, f"[[{name}]] is an array of tables: write [{name}]")
    elif path in headers:
        document.fault(line, f"'{name}' is there twice, first on line {headers[path]}")
    headers.setdefault(path, line)
    _merge(document, (), found, line)
    return path


def _merge(document: Document, path: Path, found: dict[str, Any], line: int) -> None:
    """Put what a statement says into the table at `path`."""
    at: Any = document.tables
    for name in path:
        at = at.get(name) if isinstance(at, dict) else None
    waiting = [(at, path, found)]
    for into, place, values in waiting:
        if len(place) > _DEEPEST:
            document.fault(line, f"more than {_DEEPEST} tables in each other")
        elif isinstance(into, dict):
            waiting.extend(_put(document, into, place, values, line))


def _put(
    document: Document, into: dict[str, Any], place: Path, values: dict[str, Any], line: int
) -> Iterator[tuple[Any, Path, dict[str, Any]]]:
    """Put values into a table; gives those that are tables themselves, with what they go into."""
    for name, value in values.items():
        here = (*place, name)
        if name not in into:
            into[name] = {} if isinstance(value, dict) else value
            document.lines[here] = line
        elif not (isinstance(value, dict) and isinstance(into[name], dict)):
            first = document.lines[here]
            document.fault(line, f"'{'.'.join(here)}' is there twice, first on line {first}")
            continue
        if isinstance(value, dict):
            yield into[name], here, value


def _read_whole(document: Document, text: str) -> None:
    """The last word on what is TOML: a few rules are about statements together."""
    try:
        tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        _note_syntax(document, error, 1)
