"""The `null` source: reads as zero, forgets what is written."""

from __future__ import annotations

from nbdfs.buffers import fill_zero
from nbdfs.registry import NoOptions, OpenContext, SourceDriver
from nbdfs.source import ALLOCATION, HOLE, ZERO, Caps, Extent, Source, SourceInfo
from nbdfs.units import parse_size

_CAPS = (Caps.WRITE | Caps.FUA | Caps.TRIM | Caps.ZERO | Caps.FAST_ZERO | Caps.EXTENTS | Caps.MULTI_CONN
         | Caps.IMMEDIATE)  # fmt: skip


class Null(Source):
    """`size` bytes of zero; a write succeeds and changes nothing."""

    def __init__(self, size: int) -> None:
        self.info = SourceInfo(size, _CAPS, description="null")

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        fill_zero(buffer)

    async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        return

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        return

    async def zero(
        self, offset: int, length: int, *, may_trim: bool = True, fast: bool = False, fua: bool = False
    ) -> None:
        return

    async def extents(self, offset: int, length: int, *, context: str = ALLOCATION, one: bool = False) -> list[Extent]:
        return [Extent(offset, length, HOLE | ZERO)]


def _open(argument: str, options: NoOptions, context: OpenContext) -> Source:
    return Null(parse_size(argument))


DRIVER = SourceDriver("null", "zeroes; what is written is forgotten", open=_open, argument="SIZE")
