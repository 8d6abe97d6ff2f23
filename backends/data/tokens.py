"""The tokens of data strings: where one begins and ends, and what numbers, strings and base64 mean."""

from __future__ import annotations

import base64
import binascii
import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

from nbdfs.backends.data.nodes import DataError, Place, Text
from nbdfs.errors import UsageError
from nbdfs.units import parse_size

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
_LETTERS = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_SPOILT = {
    '"': 'the string does not end: a closing " is missing',
    "<": "a file name or a ( must follow <",
    "@": "a number must follow @",
    "\\": "a name must follow \\",
    "$": "the name of a variable must follow $",
}


class Token(NamedTuple):
    kind: str
    value: str
    at: Place


def scan(whole: Text) -> Iterator[Token]:
    """The tokens of a text, the last of them `end`.  Raises DataError."""
    text, at = whole.text, 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        place = Place(whole, at)
        if not match or not match.lastgroup:
            message = _SPOILT.get(text[at]) or f"{text[at]!r} has no meaning here"
            raise DataError(place, message)
        at = match.end()
        kind, value = match.lastgroup, match[match.lastgroup]
        if kind == "script":
            at = _end_of_script(place, at)
            value = text[match.end() : at - 1]
        if kind != "blank":
            yield Token(value if kind == "symbol" else kind, value, place)
    yield Token("end", "", Place(whole, len(text)))


def _end_of_script(place: Place, start: int) -> int:
    depth = 1
    for match in re.finditer("[()]", place.text.text[start:]):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return start + match.end()
    raise DataError(place, "the script does not end: a ) is missing (parentheses in it must pair)")


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


def decoded(at: Place, text: str) -> bytes:
    """The bytes of a base64 token.  Raises DataError."""
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise DataError(at, f"this is not base64: {error}") from error


def unescaped(at: Place, text: str) -> bytes:
    """The bytes of a string token: UTF-8, with the escapes of C.  Raises DataError."""
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
