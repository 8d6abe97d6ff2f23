"""The `zero` source: zeroes, and nothing else can be written to it."""

from __future__ import annotations

from nbdfs.backends.checkwrite import mismatch
from nbdfs.buffers import fill_zero, is_zero
from nbdfs.registry import NoOptions, OpenContext, SourceDriver
from nbdfs.source import ALLOCATION, HOLE, ZERO, Caps, Extent, Source, SourceInfo
from nbdfs.units import parse_size

_CAPS = (Caps.WRITE | Caps.FUA | Caps.TRIM | Caps.ZERO | Caps.FAST_ZERO | Caps.EXTENTS | Caps.MULTI_CONN
         | Caps.IMMEDIATE)  # fmt: skip


class Zero(Source):
    """`size` bytes of zero, one hole; a write of anything else fails, so what copies to it proves what it copied."""

    def __init__(self, size: int) -> None:
        self.info = SourceInfo(size, _CAPS, description="zero", identity="zero")

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        fill_zero(buffer)

    async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        if not is_zero(data):
            raise mismatch(offset, len(data), self.info.description)

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        return

    async def zero(
        self, offset: int, length: int, *, may_trim: bool = True, fast: bool = False, fua: bool = False
    ) -> None:
        return

    async def extents(self, offset: int, length: int, *, context: str = ALLOCATION, one: bool = False) -> list[Extent]:
        return [Extent(offset, length, HOLE | ZERO)]


def _open(argument: str, options: NoOptions, context: OpenContext) -> Source:
    return Zero(parse_size(argument or "0"))


DRIVER = SourceDriver("zero", "zeroes; nothing else can be written", open=_open, argument="[SIZE]")
