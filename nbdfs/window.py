"""A part of a source as a source: what the offset, partition and resize layers show."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nbdfs.around import PASSED
from nbdfs.records import replace
from nbdfs.source import ALLOCATION, Backing, Extent, Layer, Source


class Window(Layer):
    """The bytes [start, start + size) of `below`, which must have them; `name` tells them from other parts.

    With `to_the_end` they are meant to be all that follow.
    """

    def __init__(self, below: Source, start: int, size: int, name: str, *, to_the_end: bool = False) -> None:
        super().__init__(below)
        self._start = start
        self.eager = below.eager
        self.batches = below.batches
        info = below.info
        self.info = replace(
            info,
            size=size,
            caps=info.caps & PASSED,
            description=f"{name} of {info.description}",
            identity=f"{name} of {info.identity}" if info.identity else "",
            missing=info.missing if to_the_end else "",
        )

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        await self.below.pread_into(buffer, offset + self._start)

    async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        await self.below.pwrite(data, offset + self._start, fua=fua)

    async def flush(self) -> None:
        await self.below.flush()

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        await self.below.trim(offset + self._start, length, fua=fua)

    async def zero(
        self, offset: int, length: int, *, may_trim: bool = True, fast: bool = False, fua: bool = False
    ) -> None:
        await self.below.zero(offset + self._start, length, may_trim=may_trim, fast=fast, fua=fua)

    async def extents(self, offset: int, length: int, *, context: str = ALLOCATION, one: bool = False) -> list[Extent]:
        found = await self.below.extents(offset + self._start, length, context=context, one=one)
        return [Extent(extent.offset - self._start, extent.length, extent.flags) for extent in found]

    async def cache(self, offset: int, length: int) -> None:
        await self.below.cache(offset + self._start, length)

    def view(self, offset: int, length: int, *, writable: bool = False) -> memoryview | None:
        return self.below.view(offset + self._start, length, writable=writable)

    def read_now(self, buffer: memoryview, length: int, offsets: Sequence[int]) -> int:
        return self.below.read_now(buffer, length, [offset + self._start for offset in offsets])

    def write_now(self, data: memoryview, length: int, offsets: Sequence[int]) -> int:
        return self.below.write_now(data, length, [offset + self._start for offset in offsets])

    def poller(self) -> Callable[[], bool] | None:
        return self.below.poller()

    def backing(self) -> Backing | None:
        backing = self.below.backing()
        if backing is None:
            return None
        whole = self._start == 0 and self.info.size == self.below.info.size
        # A file that goes on behind the window is, seen from here, one that a write can make grow.
        return Backing(backing.fd, backing.offset + self._start, backing.fixed_size and whole)
