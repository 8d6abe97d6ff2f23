"""The grammar of data strings: text into a tree whose nodes know where they stand.

    items      = { seek | expression { "->" NAME } }
    seek       = "@" number | "@+" number | "@-" number | "@^" number
    expression = primary { "*" number | "[" [number] ":" [number] "]" }
    primary    = BYTE | ("le" | "be") ("16" | "32" | "64") ":" number | "base64:" TEXT | STRING
               | "<" FILE | "<(" SCRIPT ")" | "(" items ")" | NAME | VARIABLE | "include" FILE
    number     = decimal, octal or hexadecimal, a decimal one also with a size suffix; or VARIABLE

Blanks separate; `#` begins a comment that ends with its line.  A NAME is `\\name`, a VARIABLE `$name`.
"""

from __future__ import annotations

import base64
import binascii
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal as OneOf
from typing import NamedTuple

from nbdfs.errors import UsageError, UserError
from nbdfs.units import parse_size

_MOST_NESTED = 100  # parentheses inside each other
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
        shown = line[first : first + _SHOWN]
        number = text.text.count("\n", 0, offset) + 1
        super().__init__(
            f"{text.name}, line {number}, column {column + 1}: {message}\n  {shown}\n  {' ' * (column - first)}^"
        )


@dataclass(frozen=True)
class Variable:
    """`$name`, as an expression or as a number."""

    at: Place
    name: str


Number = int | Variable


@dataclass(frozen=True)
class Literal:
    at: Place
    data: bytes


@dataclass(frozen=True)
class Word:
    """A number of `width` bytes; `order` is as in int.to_bytes."""

    at: Place
    width: int
    order: OneOf["little", "big"]
    value: Number


@dataclass(frozen=True)
class File:
    at: Place
    path: str


@dataclass(frozen=True)
class Include:
    at: Place
    path: str


@dataclass(frozen=True)
class Script:
    at: Place
    command: str


@dataclass(frozen=True)
class Group:
    at: Place
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Name:
    at: Place
    name: str


@dataclass(frozen=True)
class Repeat:
    at: Place
    count: Number


@dataclass(frozen=True)
class Slice:
    """`[start:stop]`, None where left out."""

    at: Place
    start: Number | None
    stop: Number | None


@dataclass(frozen=True)
class Changed:
    """A primary with what is done to it, in order."""

    at: Place
    operand: Primary
    changes: tuple[Repeat | Slice, ...]


@dataclass(frozen=True)
class Define:
    """`operand -> \\name`: gives the name a meaning, and no bytes."""

    at: Place
    name: str
    operand: Expression


@dataclass(frozen=True)
class Seek:
    """`how` is one of `@`, `@+`, `@-`, `@^`."""

    at: Place
    how: str
    amount: Number


Primary = Literal | Word | File | Include | Script | Group | Name | Variable
Expression = Primary | Changed
Item = Expression | Define | Seek


def parse(text: Text) -> tuple[Item, ...]:
    """The items of a text.  Raises DataError."""
    return _Parser(text).parse()


@functools.lru_cache(maxsize=4096)
def parse_number(text: str) -> int:
    """The value of a number.  Raises UsageError."""
    if len(text) > _MOST_DIGITS:
        raise UsageError(f"a number of {len(text)} digits is beyond every use")
    return _value(text)


def _value(text: str) -> int:
    if re.fullmatch("0[0-9]+", text):
        try:
            return int(text, 8)
        except ValueError:
            raise UsageError(f"'{text}' begins with 0, so it is octal, but has a digit that is not") from None
    if re.fullmatch("0[xX][0-9a-fA-F]+", text):
        return int(text, 16)
    if text.isascii() and text.isdigit():
        return int(text)
    return parse_size(text)


_MOST_DIGITS = 100  # of a number, leading zeroes included
# What a file name may hold outside of quotes: neither blanks nor what could follow the expression.
_FILE = r'"[^"\n]*"|[^\s"*\[\])(][^\s*\[\])]*'
_TOKEN = re.compile(
    rf"""
    (?P<blank>\s+|\#[^\n]*)
  | (?P<word>[lb]e(?:16|32|64)):
  | base64:(?P<base64>[A-Za-z0-9+/=]*)
  | include\s+(?P<include>{_FILE})
  | (?P<number>[0-9][0-9A-Za-z]*)
  | "(?P<string>(?:[^"\\]|\\.)*)"
  | (?P<script><\()
  | <(?P<file>{_FILE})
  | \\(?P<name>(?:[A-Za-z0-9_]|-(?!>))+)
  | \$(?P<variable>[A-Za-z_][A-Za-z0-9_]*)
  | (?P<arrow>->)
  | (?P<seek>@[-+^]?)
  | (?P<symbol>[()*\[\]:])
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|([0-7]{1,3})|(.))", re.DOTALL)
_OPERATORS = ("*", "[", "arrow")
_LETTERS = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_SPOILT = {
    '"': 'the string does not end: a closing " is missing',
    "<": "a file name or a ( must follow <",
    "@": "a number must follow @",
    "\\": "a name must follow \\",
    "$": "the name of a variable must follow $",
}
_MISPLACED = {
    "*": "* must follow an expression",
    "[": "[ must follow an expression",
    "arrow": "-> must follow an expression that gives bytes: put an offset in parentheses",
}


class _Token(NamedTuple):
    kind: str
    value: str
    at: Place


class _Parser:
    def __init__(self, text: Text) -> None:
        self._text = text
        self._tokens = list(self._scan())
        self._index = 0
        self._nested = 0

    def parse(self) -> tuple[Item, ...]:
        items = self._items()
        if self._next.kind != "end":
            raise DataError(self._next.at, "this ) has no (")
        return items

    # Tokens

    def _scan(self) -> Iterator[_Token]:
        text, at = self._text.text, 0
        while at < len(text):
            match = _TOKEN.match(text, at)
            place = Place(self._text, at)
            if not match or not match.lastgroup:
                message = _SPOILT.get(text[at]) or f"{text[at]!r} has no meaning here"
                raise DataError(place, message)
            at = match.end()
            kind, value = match.lastgroup, match[match.lastgroup]
            if kind == "script":
                at = self._end_of_script(place, at)
                value = text[match.end() : at - 1]
            if kind != "blank":
                yield _Token(value if kind == "symbol" else kind, value, place)
        yield _Token("end", "", Place(self._text, len(text)))

    def _end_of_script(self, place: Place, start: int) -> int:
        depth = 1
        for match in re.finditer("[()]", self._text.text[start:]):
            depth += 1 if match[0] == "(" else -1
            if depth == 0:
                return start + match.end()
        raise DataError(place, "the script does not end: a ) is missing (parentheses in it must pair)")

    @property
    def _next(self) -> _Token:
        return self._tokens[self._index]

    def _take(self) -> _Token:
        token = self._tokens[self._index]
        if token.kind != "end":
            self._index += 1
        return token

    # The rules of the grammar

    def _items(self) -> tuple[Item, ...]:
        items: list[Item] = []
        while self._next.kind not in (")", "end"):
            if self._next.kind == "seek":
                token = self._take()
                items.append(Seek(token.at, token.value, self._number(f"a number must follow {token.value}")))
                continue
            expression = self._expression()
            names = []
            while self._next.kind == "arrow":
                arrow = self._take()
                if self._next.kind != "name":
                    raise DataError(self._next.at, "a name must follow ->, as in: 0x55 -> \\name")
                names.append(Define(arrow.at, self._take().value, expression))
            items += names or [expression]
        return tuple(items)

    def _expression(self) -> Expression:
        if self._next.kind == "number":
            literal, plain = self._bytes()
            if plain:
                return literal
            primary: Primary = literal
        else:
            primary = self._primary(self._take())
        changes: list[Repeat | Slice] = []
        while self._next.kind in ("*", "["):
            token = self._take()
            if token.kind == "*":
                changes.append(Repeat(token.at, self._number("a number must follow *")))
            else:
                changes.append(self._slice(token.at))
        return Changed(primary.at, primary, tuple(changes)) if changes else primary

    def _bytes(self) -> tuple[Literal, bool]:
        """A run of bytes, and whether it is no operand: one that an operator follows comes alone."""
        at, run = self._next.at, bytearray()
        while (token := self._next).kind == "number":
            value = self._value(token)
            if value > 255:
                raise DataError(token.at, f"{token.value} is no byte, 0 to 255: write le16:, be32: and so on for more")
            operand = self._tokens[self._index + 1].kind in _OPERATORS
            if operand and run:
                break
            self._take()
            run.append(value)
            if operand:
                return Literal(at, bytes(run)), False
        return Literal(at, bytes(run)), True

    def _primary(self, token: _Token) -> Primary:
        kind, value, at = token
        match kind:
            case "word":
                return Word(
                    at,
                    int(value[2:]) // 8,
                    "little" if value[0] == "l" else "big",
                    self._number(f"a number must follow {value}:"),
                )
            case "base64":
                return Literal(at, self._decoded(at, value))
            case "string":
                return Literal(at, self._unescaped(at, value))
            case "script":
                return Script(at, value)
            case "file":
                return File(at, value.strip('"'))
            case "include":
                return Include(at, value.strip('"'))
            case "name":
                return Name(at, value)
            case "variable":
                return Variable(at, value)
            case "(":
                return self._group(at)
            case _:
                raise DataError(at, _MISPLACED.get(kind) or f"'{value}' has no meaning here")

    def _group(self, at: Place) -> Group:
        self._nested += 1
        if self._nested > _MOST_NESTED:
            raise DataError(at, f"more than {_MOST_NESTED} parentheses inside each other")
        items = self._items()
        if self._take().kind != ")":
            raise DataError(at, "this ( has no )")
        self._nested -= 1
        return Group(at, items)

    def _slice(self, at: Place) -> Slice:
        bounds: list[Number | None] = []
        for end in (":", "]"):
            bounds.append(None if self._next.kind == end else self._number(f"a number or {end} must follow"))
            if (token := self._take()).kind != end:
                raise DataError(token.at, "this is no slice: write [FROM:TO], [FROM:] or [:TO]")
        return Slice(at, bounds[0], bounds[1])

    def _number(self, missing: str) -> Number:
        token = self._next
        if token.kind == "variable":
            self._take()
            return Variable(token.at, token.value)
        if token.kind != "number":
            raise DataError(token.at, missing)
        self._take()
        return self._value(token)

    def _value(self, token: _Token) -> int:
        try:
            return parse_number(token.value)
        except UsageError as error:
            raise DataError(token.at, str(error)) from error

    def _decoded(self, at: Place, text: str) -> bytes:
        try:
            return base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise DataError(at, f"this is not base64: {error}") from error

    def _unescaped(self, at: Place, text: str) -> bytes:
        """A string's bytes: UTF-8, with the escapes of C."""
        parts, last = [], 0
        for match in _ESCAPE.finditer(text):
            parts.append(_encoded(text[last : match.start()]))
            code, octal, letter = match.groups()
            if letter == "x" or (octal and int(octal, 8) > 255):
                place = Place(at.text, at.offset + 1 + match.start())
                raise DataError(place, "two hexadecimal digits must follow \\x" if letter else f"\\{octal} is no byte")
            parts.append(bytes([int(code, 16) if code else int(octal, 8)]) if letter is None
                         else _encoded(_LETTERS.get(letter, letter)))  # fmt: skip
            last = match.end()
        return b"".join([*parts, _encoded(text[last:])])


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
