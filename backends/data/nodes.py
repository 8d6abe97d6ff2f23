"""What a data string is once it is read: a tree whose nodes know where they stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal as OneOf
from typing import NamedTuple

from nbdfs.errors import UserError, printable
from nbdfs.records import Record

_SHOWN = 76  # columns of the line that an error shows


@dataclass(frozen=True, eq=False)
class Text:
    """A text in the language; `name` is what errors call it, `folder` what its file names are relative to."""

    name: str
    text: str
    folder: str = ""


class Place(NamedTuple):
    """A position in a text."""

    text: Text
    offset: int


class DataError(UserError):
    """A data string that makes no sense, with its line and a caret under the place."""

    def __init__(self, place: Place, message: str) -> None:
        text, offset = place
        start = text.text.rfind("\n", 0, offset) + 1
        line = text.text[start:].partition("\n")[0].expandtabs(1)
        column = offset - start
        first = max(0, min(column - _SHOWN // 2, len(line) - _SHOWN))
        before, after = printable(line[first:column]), printable(line[column : first + _SHOWN])
        number = text.text.count("\n", 0, offset) + 1
        super().__init__(
            f"{text.name}, line {number}, column {column + 1}: {message}\n  {before}{after}\n  {' ' * _width(before)}^"
        )


def _width(text: str) -> int:
    """Columns that a terminal takes for it."""
    import unicodedata  # for who has made a mistake

    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.combining(letter) > 0 for letter in text)


class Variable(Record):
    """`$name`, as an expression or as a number."""

    at: Place
    name: str


Number = int | Variable


class Literal(Record):
    at: Place
    data: bytes


class Word(Record):
    """A number of `width` bytes; `order` is as in int.to_bytes."""

    at: Place
    width: int
    order: OneOf["little", "big"]
    value: Number


class File(Record):
    at: Place
    path: str


class Include(Record):
    at: Place
    path: str


class Script(Record):
    at: Place
    command: str


class Group(Record):
    at: Place
    items: tuple[Item, ...]


class Name(Record):
    at: Place
    name: str


class Repeat(Record):
    at: Place
    count: Number


class Slice(Record):
    """`[start:stop]`, None where left out."""

    at: Place
    start: Number | None
    stop: Number | None


class Changed(Record):
    """A primary with what is done to it, in order."""

    at: Place
    operand: Primary
    changes: tuple[Repeat | Slice, ...]


class Define(Record):
    """`operand -> \\name`: gives the name a meaning, and no bytes."""

    at: Place
    name: str
    operand: Expression


class Seek(Record):
    """`how` is one of `@`, `@+`, `@-`, `@^`."""

    at: Place
    how: str
    amount: Number


Primary = Literal | Word | File | Include | Script | Group | Name | Variable
Expression = Primary | Changed
Item = Expression | Define | Seek
