"""The `pattern` source: each 8 bytes hold their own offset, big-endian, so that misplaced data shows itself."""

from __future__ import annotations

import errno

from nbdfs.errors import SourceError
from nbdfs.ranges import pieces
from nbdfs.registry import NoOptions, OpenContext, SourceDriver
from nbdfs.source import Caps, Source, SourceInfo
from nbdfs.units import parse_size

_CAPS = Caps.WRITE | Caps.FUA | Caps.MULTI_CONN | Caps.IMMEDIATE
_BLOCK = 1 << 16  # bytes; inside an aligned block only the last two bytes of each eight differ


class Pattern(Source):
    """`size` bytes of the pattern; a write must say what is there already, else it is EIO."""

    def __init__(self, size: int) -> None:
        self.info = SourceInfo(size, _CAPS, description="pattern")
        self._block = bytearray(b"".join(offset.to_bytes(8, "big") for offset in range(0, _BLOCK, 8)))
        self._high = bytes(6)  # the first six bytes of each eight in `_block`

    def _block_at(self, offset: int) -> bytearray:
        """The aligned block that holds `offset`, until the next call."""
        high = (offset // _BLOCK).to_bytes(6, "big")
        for column in range(6):
            if high[column] != self._high[column]:
                self._block[column::8] = high[column : column + 1] * (_BLOCK // 8)
        self._high = high
        return self._block

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        for at, size in pieces(offset, len(buffer), _BLOCK):
            start = at % _BLOCK
            with memoryview(self._block_at(at)) as block:
                buffer[at - offset : at - offset + size] = block[start : start + size]

    async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        for at, size in pieces(offset, len(data), _BLOCK):
            start = at % _BLOCK
            expected = self._block_at(at)[start : start + size]
            given = data[at - offset : at - offset + size]
            if expected != given:
                wrong = at + next(index for index in range(size) if expected[index] != given[index])
                raise SourceError(errno.EIO, f"what is written at {wrong} is not the pattern", where="pattern")


def _open(argument: str, options: NoOptions, context: OpenContext) -> Source:
    return Pattern(parse_size(argument))


DRIVER = SourceDriver("pattern", "each 8 bytes hold their own offset; writes are checked", open=_open, argument="SIZE")
