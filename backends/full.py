"""The `full` source: a device that has run out of space."""

from __future__ import annotations

import errno

from nbdfs.buffers import fill_zero
from nbdfs.errors import SourceError
from nbdfs.registry import NoOptions, OpenContext, SourceDriver
from nbdfs.source import ALLOCATION, HOLE, ZERO, Caps, Extent, Source, SourceInfo
from nbdfs.units import parse_size

_CAPS = Caps.WRITE | Caps.FUA | Caps.TRIM | Caps.ZERO | Caps.EXTENTS | Caps.MULTI_CONN | Caps.IMMEDIATE


class Full(Source):
    """`size` bytes of zero; whatever would change them is ENOSPC."""

    def __init__(self, size: int) -> None:
        self.info = SourceInfo(size, _CAPS, description="full")

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        fill_zero(buffer)

    async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        raise self._no_space()

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        raise self._no_space()

    async def zero(
        self, offset: int, length: int, *, may_trim: bool = True, fast: bool = False, fua: bool = False
    ) -> None:
        raise self._no_space()

    async def extents(self, offset: int, length: int, *, context: str = ALLOCATION, one: bool = False) -> list[Extent]:
        return [Extent(offset, length, HOLE | ZERO)]

    def _no_space(self) -> SourceError:
        return SourceError(errno.ENOSPC, where=self.info.description)


def _open(argument: str, options: NoOptions, context: OpenContext) -> Source:
    return Full(parse_size(argument))


DRIVER = SourceDriver("full", "zeroes; every write fails with no space left", open=_open, argument="SIZE")
