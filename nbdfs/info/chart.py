"""Pictures of a map: characters for a terminal, or a PNG file."""

from __future__ import annotations

import functools
import struct
import zlib
from array import array
from collections.abc import Iterator

from nbdfs.progress import human_size

_LEVELS = {True: "░▒▓█", False: "-+*#"}  # for a cell that is full in part: up to a quarter, half, less than all, all
_EMPTY = {True: ("·", "○"), False: (".", "0")}  # nothing there; allocated, but zero
_GREEN, _YELLOW, _GREY, _RESET = "\033[32m", "\033[33m", "\033[90m", "\033[0m"

# Colours of a PNG, red, green, blue: what a cell is blended from.
_HOLE_COLOUR, _ZERO_COLOUR, _FULL_COLOUR = (28, 30, 36), (190, 150, 40), (60, 190, 110)


class Cells:
    """A range cut into `count` cells of equal size; for each the share that is full, and that is allocated but zero."""

    def __init__(self, offset: int, length: int, count: int) -> None:
        self.length = length
        self.count = max(min(count, length), 1)
        self.full = array("d", bytes(8 * self.count))
        self.zero = array("d", bytes(8 * self.count))
        self._offset = offset

    def add(self, shares: array[float], offset: int, length: int) -> None:
        """Add a range to `shares`, which is `full` or `zero`."""
        if not self.length:
            return
        first = (offset - self._offset) * self.count / self.length
        last = (offset - self._offset + length) * self.count / self.length
        left, right = int(first), min(int(last), self.count - 1)
        if left >= right:
            shares[min(left, self.count - 1)] += last - first
            return
        shares[left] += left + 1 - first
        shares[left + 1 : right] = array("d", [1.0]) * (right - left - 1)
        shares[right] += last - right


def text(cells: Cells, columns: int, *, colour: bool, fancy: bool) -> Iterator[str]:
    """Lines of one character a cell, and a legend."""
    for start in range(0, cells.count, columns):
        line, shade = "", ""
        for index in range(start, min(start + columns, cells.count)):
            character, wanted = _cell(cells.full[index], cells.zero[index], fancy)
            if colour and wanted != shade:
                line += wanted
                shade = wanted
            line += character
        yield line + (_RESET if colour else "")
    empty, zero = _EMPTY[fancy]
    yield f"{_LEVELS[fancy][-1]} full  {zero} zero  {empty} hole  one cell is {human_size(cells.length / cells.count)}"


def _cell(full: float, zero: float, fancy: bool) -> tuple[str, str]:
    if full > 0:
        level = 3 if full > 0.999 else 2 if full > 0.5 else 1 if full > 0.25 else 0
        return _LEVELS[fancy][level], _GREEN
    return (_EMPTY[fancy][1], _YELLOW) if zero > 0.5 else (_EMPTY[fancy][0], _GREY)


def png(cells: Cells, columns: int) -> bytes:
    """A PNG file of one pixel a cell, `columns` wide (PNG specification, third edition: colour type 2, depth 8)."""
    height = -(-cells.count // columns)
    image = bytearray()
    for line in range(height):
        image.append(0)  # filter type: none
        for index in range(line * columns, (line + 1) * columns):
            image += _pixel(cells.full[index], cells.zero[index]) if index < cells.count else bytes(3)
    header = struct.pack(">IIBBBBB", columns, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(kind, data) for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(image)), (b"IEND", b""))
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@functools.lru_cache(maxsize=4096)
def _pixel(full: float, zero: float) -> bytes:
    full, zero = min(full, 1.0), min(zero, 1.0 - min(full, 1.0))
    parts = zip(_FULL_COLOUR, _ZERO_COLOUR, _HOLE_COLOUR, strict=True)
    return bytes(int(full * one + zero * two + (1 - full - zero) * three) for one, two, three in parts)
