"""The `checkwrite` layer: writes change nothing, they succeed if they are what is there already."""

from __future__ import annotations

import errno

from nbdfs.buffers import is_zero
from nbdfs.errors import SourceError
from nbdfs.ranges import normalise, pieces
from nbdfs.records import replace
from nbdfs.registry import LayerDriver, NoOptions, OpenContext
from nbdfs.source import ALLOCATION, ZERO, Caps, Extent, Layer, Source, read

_PIECE = 1 << 20  # bytes read at once
_CHECKING = Caps.WRITE | Caps.TRIM | Caps.ZERO | Caps.FAST_ZERO | Caps.FUA
_KEPT = Caps.EXTENTS | Caps.CACHE | Caps.MULTI_CONN | Caps.ROTATIONAL | Caps.IMMEDIATE


def mismatch(offset: int, length: int, where: str) -> SourceError:
    """The error of a write of other bytes than those that are there."""
    return SourceError(errno.EIO, f"the {length} bytes written at {offset} are not those expected", where=where)


class Checkwrite(Layer):
    """`below`, which is only ever read."""

    def __init__(self, below: Source) -> None:
        super().__init__(below)
        self.info = replace(below.info, caps=below.info.caps & _KEPT | _CHECKING)

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        await self.below.pread_into(buffer, offset)

    async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        for at, size in pieces(offset, len(data), _PIECE):
            if await read(self.below, at, size) != data[at - offset : at - offset + size]:
                raise mismatch(at, size, self.info.description)

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        await self._expect_zero(offset, length)

    async def zero(
        self, offset: int, length: int, *, may_trim: bool = True, fast: bool = False, fua: bool = False
    ) -> None:
        await self._expect_zero(offset, length)

    async def extents(self, offset: int, length: int, *, context: str = ALLOCATION, one: bool = False) -> list[Extent]:
        return await self.below.extents(offset, length, context=context, one=one)

    async def cache(self, offset: int, length: int) -> None:
        await self.below.cache(offset, length)

    async def _expect_zero(self, offset: int, length: int) -> None:
        end = offset + length
        while offset < end:
            for start, size, flags in await self._extents(offset, end - offset):
                if not flags & ZERO:
                    await self._read_zero(start, size)
                offset = start + size

    async def _extents(self, offset: int, length: int) -> list[Extent]:
        if Caps.EXTENTS not in self.below.info.caps:
            return [Extent(offset, length, 0)]
        return normalise(await self.below.extents(offset, length), offset, length)

    async def _read_zero(self, offset: int, length: int) -> None:
        for at, size in pieces(offset, length, _PIECE):
            if not is_zero(memoryview(await read(self.below, at, size))):
                raise mismatch(at, size, self.info.description)


def _open(below: Source, options: NoOptions, context: OpenContext) -> Source:
    return Checkwrite(below)


DRIVER = LayerDriver("checkwrite", "writes change nothing: they must equal what is there", open=_open)
