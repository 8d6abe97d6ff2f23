"""Devices for tests of layers: memory that keeps a log, can be slow, and fails on request."""

from __future__ import annotations

import errno
from collections.abc import Callable

import trio

from nbdfs.source import ALLOCATION, HOLE, ZERO, BlockSize, Caps, Extent, Source, SourceInfo

EVERYTHING = Caps.WRITE | Caps.FLUSH | Caps.FUA | Caps.TRIM | Caps.ZERO | Caps.EXTENTS | Caps.CACHE


class Ram(Source):
    """`content` as a device that notes every operation in `log` as (name, offset, length)."""

    def __init__(self, content: bytes, *, caps: Caps = EVERYTHING, identity: str = "", delay: float = 0) -> None:
        self.content = bytearray(content)
        self.log: list[tuple[str, int, int]] = []
        self.delay = delay
        self.fail: Callable[[str, int, int], int] = lambda name, offset, length: 0  # an errno for an operation
        self.info = SourceInfo(len(content), caps, BlockSize(), description="ram", identity=identity)

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        await self._enter("read", offset, len(buffer))
        buffer[:] = self.content[offset : offset + len(buffer)]

    async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        await self._enter("fua" if fua else "write", offset, len(data))
        self.content[offset : offset + len(data)] = data

    async def flush(self) -> None:
        await self._enter("flush", 0, 0)

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        await self._enter("trim", offset, length)
        self.content[offset : offset + length] = b"\xee" * length

    async def zero(
        self, offset: int, length: int, *, may_trim: bool = True, fast: bool = False, fua: bool = False
    ) -> None:
        await self._enter("zero", offset, length)
        self.content[offset : offset + length] = bytes(length)

    async def extents(self, offset: int, length: int, *, context: str = ALLOCATION, one: bool = False) -> list[Extent]:
        await self._enter("extents", offset, length)
        empty = not any(self.content[offset : offset + length])
        return [Extent(offset, length, HOLE | ZERO if empty else 0)]

    async def cache(self, offset: int, length: int) -> None:
        await self._enter("cache", offset, length)

    def names(self, name: str) -> list[tuple[int, int]]:
        """The (offset, length) of the operations of that name."""
        return [(offset, length) for called, offset, length in self.log if called == name]

    async def _enter(self, name: str, offset: int, length: int) -> None:
        self.log.append((name, offset, length))
        if self.delay:
            await trio.sleep(self.delay)
        if number := self.fail(name, offset, length):
            raise OSError(number, f"{name} fails as asked", errno.errorcode[number])
