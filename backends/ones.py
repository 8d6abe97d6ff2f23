"""The `ones` source: one byte all over; a write is accepted if it is that byte."""

from __future__ import annotations

from nbdfs.backends.checkwrite import mismatch
from nbdfs.errors import UsageError
from nbdfs.records import Record
from nbdfs.registry import INTEGER, OpenContext, SourceDriver, option
from nbdfs.source import Caps, Source, SourceInfo
from nbdfs.units import parse_size

_PIECE = 1 << 18  # bytes


class Ones(Source):
    """`size` times the same byte, all of it data."""

    def __init__(self, size: int, byte: int) -> None:
        caps = Caps.WRITE | Caps.FUA | Caps.MULTI_CONN | Caps.IMMEDIATE
        self.info = SourceInfo(size, caps, description=f"ones, {byte:#04x}", identity=f"ones-{byte}")
        self._piece = bytearray([byte]) * _PIECE

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        for at in range(0, len(buffer), _PIECE):
            piece = buffer[at : at + _PIECE]
            piece[:] = memoryview(self._piece)[: len(piece)]

    async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        for at in range(0, len(data), _PIECE):
            piece = data[at : at + _PIECE]
            if self._piece[: len(piece)] != piece:
                raise mismatch(offset + at, len(piece), self.info.description)


class OnesOptions(Record):
    byte: int = option(0xFF, INTEGER, "the byte, 0 to 255")


def _open(argument: str, options: OnesOptions, context: OpenContext) -> Source:
    if not 0 <= options.byte <= 255:
        raise UsageError(f"ones: {options.byte} is no byte: write 0 to 255")
    return Ones(parse_size(argument), options.byte)


DRIVER = SourceDriver(
    "ones", "the same byte all over, none of it a hole; writes must equal it", OnesOptions, open=_open, argument="SIZE"
)
