"""A hex dump of a source, repeated rows left out, holes not read."""

from __future__ import annotations

from collections.abc import Callable

from nbdfs.checked import Checked
from nbdfs.ranges import pieces
from nbdfs.source import ZERO, read
from nbdfs.stride import Stride

_ROW = 16  # bytes
_CHUNK = 256 << 10  # bytes read at once
_WINDOW = 1 << 30  # bytes whose extents are asked for at once, at first
_ZERO_ROW = bytes(_ROW)

_GREEN, _GREY, _BLUE, _RED, _PURPLE, _RESET = "\033[32m", "\033[90m", "\033[1;34m", "\033[1;31m", "\033[35m", "\033[0m"


class Dumper:
    """Writes rows of 16 bytes, one line each, to `write`.  Rows like the one before become `*`, but the last is shown.

    `colour` marks bytes by kind: zero, letters and digits, other printable ones, the rest; a fancy dump also draws with
    characters beyond ASCII.
    """

    def __init__(self, write: Callable[[str], object], *, colour: bool = False, fancy: bool = False) -> None:
        self._write = write
        self._colour = colour
        self._bar, self._dot, self._star = ("│", "·", "☆") if fancy else ("|", ".", "*")
        self._last = b""  # the row shown last
        self._held: tuple[int, bytes] | None = None  # the newest row that was like it, if any
        self._starred = False

    def data(self, offset: int, data: bytes) -> None:
        """The next bytes; all but the last piece are whole rows."""
        if not data:
            return
        if self._last and len(data) % _ROW == 0 and data == self._last * (len(data) // _ROW):
            self.repeat(offset, len(data))
            return
        for at in range(0, len(data), _ROW):
            row = data[at : at + _ROW]
            if row == self._last:
                self.repeat(offset + at, _ROW)
            else:
                self._show(offset + at, row)

    def zero(self, offset: int, length: int) -> None:
        """The next rows, all zero."""
        if self._last != _ZERO_ROW:
            self._show(offset, _ZERO_ROW)
            offset, length = offset + _ROW, length - _ROW
        if length:
            self.repeat(offset, length)

    def repeat(self, offset: int, length: int) -> None:
        """Whole rows like the one before."""
        if self._held or length > _ROW:
            self._show_star()
        self._held = offset + length - _ROW, self._last

    def finish(self) -> None:
        """Show the last row, if it was left out."""
        if self._held:
            self._line(*self._held)

    def _show(self, offset: int, row: bytes) -> None:
        if self._held:
            self._show_star()
        self._held, self._starred, self._last = None, False, row
        self._line(offset, row)

    def _show_star(self) -> None:
        if not self._starred:
            self._write(f"{self._star}\n")
            self._starred = True

    def _line(self, offset: int, row: bytes) -> None:
        digits = [self._paint(byte, f"{byte:02x}", _BLUE) for byte in row] + ["  "] * (_ROW - len(row))
        text = "".join(self._paint(byte, chr(byte) if 32 <= byte < 127 else self._dot, _RED) for byte in row)
        place = f"{_GREEN}{offset:010x}{_RESET}" if self._colour else f"{offset:010x}"
        left, right = " ".join(digits[: _ROW // 2]), " ".join(digits[_ROW // 2 :])
        self._write(f"{place}: {left}  {right} {self._bar}{text}{' ' * (_ROW - len(row))}{self._bar}\n")

    def _paint(self, byte: int, text: str, letters: str) -> str:
        if not self._colour:
            return text
        if not 32 <= byte < 127:
            colour = _GREY if byte == 0 else _PURPLE
        else:
            colour = letters if chr(byte).isalnum() else _GREEN
        return f"{colour}{text}{_RESET}"


async def dump(source: Checked, offset: int, length: int, dumper: Dumper) -> None:
    """Dump a range that lies inside the source.  What the source says is zero is not read."""
    end = offset + length
    rest = b""  # bytes of a row that an extent's edge cuts
    at, stride = offset, Stride(_WINDOW)
    while at < end:
        length = min(stride.length, end - at)
        found = await source.extents(at, length)
        stride.heard(found, at + length)
        for extent in found:
            stop = extent.offset + extent.length
            if extent.flags & ZERO:
                rest = _dump_zero(dumper, at - len(rest), rest, stop - at)
            else:
                for place, size in pieces(at, stop - at, _CHUNK):
                    data = rest + await read(source, place, size)
                    rest = _dump_rows(dumper, place - len(rest), data)
            at = stop
    if rest:
        dumper.data(end - len(rest), rest)
    dumper.finish()


def _dump_rows(dumper: Dumper, offset: int, data: bytes) -> bytes:
    """Dump the whole rows of `data`; give what is left."""
    whole = len(data) // _ROW * _ROW
    dumper.data(offset, data[:whole])
    return data[whole:]


def _dump_zero(dumper: Dumper, offset: int, rest: bytes, length: int) -> bytes:
    """Dump `rest`, which begins at `offset`, and `length` zeroes after it, in whole rows; give what is left."""
    if rest:
        fill = min(_ROW - len(rest), length)
        rest += bytes(fill)
        length -= fill
        if len(rest) < _ROW:
            return rest
        dumper.data(offset, rest)
        offset += _ROW
    whole = length // _ROW * _ROW
    if whole:
        dumper.zero(offset, whole)
    return bytes(length - whole)
