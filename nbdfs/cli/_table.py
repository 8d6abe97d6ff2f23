"""Tables for people: columns as wide as they need to be, and what does not fit cut off."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

_UNITS = "BkMGTPE"


def amount(value: float | None) -> str:
    """Bytes, or bytes a second, in at most six characters; `-` if not known."""
    if value is None:
        return "-"
    unit = 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    digits = 0 if value >= 100 or not unit or value == int(value) else 1
    return f"{value:.{digits}f}{_UNITS[unit]}"


def table(head: Sequence[str], lines: Iterable[Sequence[str]], numbers: Sequence[int], width: int) -> list[str]:
    """The lines of a table whose last column takes what is left of `width`; a width of 0 cuts nothing off.

    `numbers` are the columns that are set to the right.
    """
    cells = [head, *lines]
    widths = [max(columns(line[column]) for line in cells) for column in range(len(head) - 1)]
    shown = []
    for line in cells:
        before = ""
        for column, (text, wide) in enumerate(zip(line, widths, strict=False)):
            space = " " * (wide - columns(text))
            before += f"{space}{text}  " if column in numbers else f"{text}{space}  "
        shown.append((before + clipped(line[-1], max(width - columns(before), 1) if width else 0)).rstrip())
    return shown


def columns(text: str) -> int:
    """How many columns of a terminal a text takes: letters of the far east take two, accents of their own none."""
    if text.isascii():
        return len(text)
    return sum(map(_columns, text))


def _columns(letter: str) -> int:
    if unicodedata.category(letter) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in ("W", "F") else 1


def clipped(text: str, width: int) -> str:
    """Text that takes at most `width` columns: of what is longer the end, which tells more of a path."""
    if not width or columns(text) <= width:
        return text
    if width <= 3:
        return beginning(text, width)
    rest = beginning(text[::-1], width - 3)
    return "..." + text[len(text) - len(rest) :]


def beginning(text: str, width: int) -> str:
    """As much of a text as takes at most `width` columns."""
    for at, letter in enumerate(text):
        width -= _columns(letter)
        if width < 0:
            return text[:at]
    return text
