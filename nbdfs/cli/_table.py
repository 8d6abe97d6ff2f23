"""Tables for people: columns as wide as they need to be, and what does not fit cut off."""

from __future__ import annotations

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
    widths = [max(len(line[column]) for line in cells) for column in range(len(head) - 1)]
    shown = []
    for line in cells:
        columns = [
            text.rjust(wide) if column in numbers else text.ljust(wide)
            for column, (text, wide) in enumerate(zip(line, widths, strict=False))
        ]
        before = "  ".join(columns) + "  "
        shown.append((before + clipped(line[-1], max(width - len(before), 1) if width else 0)).rstrip())
    return shown


def clipped(text: str, width: int) -> str:
    """Text that takes at most `width` characters: of what is longer the end, which tells more of a path."""
    if not width or len(text) <= width:
        return text
    return "..." + text[len(text) - width + 3 :] if width > 3 else text[:width]
