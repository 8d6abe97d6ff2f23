"""The `resize` layer: a device of another size than what is below, cut off or with zeroes behind it."""

from __future__ import annotations

import errno

from nbdfs.around import PASSED
from nbdfs.buffers import fill_zero, is_zero
from nbdfs.errors import SourceError, UsageError
from nbdfs.ranges import normalise
from nbdfs.records import Record, replace
from nbdfs.registry import SIZE, LayerDriver, OpenContext, option
from nbdfs.source import ALLOCATION, HOLE, MAX_SIZE, ZERO, Extent, Layer, Source
from nbdfs.window import Window


class ResizeOptions(Record):
    size: int | None = option(None, SIZE, "the new size")
    round_up: int | None = option(None, SIZE, "the next multiple of this")
    round_down: int | None = option(None, SIZE, "the last multiple of this")


class Grown(Layer):
    """`below` with zeroes behind it up to `size`; there, only zeroes can be written."""

    def __init__(self, below: Source, size: int) -> None:
        super().__init__(below)
        self._end = below.info.size
        self.info = replace(below.info, size=size, caps=below.info.caps & PASSED)

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        inside = self._inside(offset, len(buffer))
        if inside:
            await self.below.pread_into(buffer[:inside], offset)
        fill_zero(buffer[inside:])

    async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        inside = self._inside(offset, len(data))
        if not is_zero(data[inside:]):
            raise SourceError(errno.ENOSPC, f"nothing can be kept behind {self._end}", where=self.info.description)
        if inside:
            await self.below.pwrite(data[:inside], offset, fua=fua)

    async def flush(self) -> None:
        await self.below.flush()

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        if inside := self._inside(offset, length):
            await self.below.trim(offset, inside, fua=fua)

    async def zero(
        self, offset: int, length: int, *, may_trim: bool = True, fast: bool = False, fua: bool = False
    ) -> None:
        if inside := self._inside(offset, length):
            await self.below.zero(offset, inside, may_trim=may_trim, fast=fast, fua=fua)

    async def extents(self, offset: int, length: int, *, context: str = ALLOCATION, one: bool = False) -> list[Extent]:
        found = []
        if inside := self._inside(offset, length):
            found = normalise(await self.below.extents(offset, inside, context=context, one=one), offset, inside)
            end = found[-1].offset + found[-1].length
            if one or end < self._end:
                return found
        start = offset + inside
        if start < offset + length:
            flags = HOLE | ZERO if context == ALLOCATION else 0
            found.append(Extent(start, offset + length - start, flags))
        return found

    async def cache(self, offset: int, length: int) -> None:
        if inside := self._inside(offset, length):
            await self.below.cache(offset, inside)

    def view(self, offset: int, length: int, *, writable: bool = False) -> memoryview | None:
        if offset + length > self._end:
            return None
        return self.below.view(offset, length, writable=writable)

    def _inside(self, offset: int, length: int) -> int:
        """How many bytes of the range lie below."""
        return max(0, min(length, self._end - offset))


def _open(below: Source, options: ResizeOptions, context: OpenContext) -> Source:
    up, down = options.round_up, options.round_down
    if options.size is None and up is None and down is None:
        raise UsageError("resize needs size=, round-up= or round-down=")
    if 0 in (up, down):
        raise UsageError("resize: only 0 is a multiple of 0")
    old = below.info.size
    size = old if options.size is None else options.size
    size = -(-size // up) * up if up else size
    size = size // down * down if down else size
    if size > MAX_SIZE:
        raise UsageError("resize: larger than a file can be: the most is 2^63 - 1 bytes")
    if size > old:
        return Grown(below, size)
    return Window(below, 0, size, f"the first {size} bytes", to_the_end=options.size is None)


DRIVER = LayerDriver("resize", "cut off, or append zeroes", ResizeOptions, open=_open)
