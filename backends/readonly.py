"""The `readonly` layer: nothing below can be changed."""

from __future__ import annotations

from nbdfs.records import replace
from nbdfs.registry import LayerDriver, NoOptions, OpenContext
from nbdfs.source import ALLOCATION, Backing, Caps, Extent, Layer, Source

_PASSED = Caps.EXTENTS | Caps.CACHE | Caps.MULTI_CONN | Caps.ROTATIONAL | Caps.IMMEDIATE


class ReadOnly(Layer):
    """`below` without any way to change it."""

    def __init__(self, below: Source) -> None:
        super().__init__(below)
        self.info = replace(below.info, caps=below.info.caps & _PASSED)

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        await self.below.pread_into(buffer, offset)

    async def extents(self, offset: int, length: int, *, context: str = ALLOCATION, one: bool = False) -> list[Extent]:
        return await self.below.extents(offset, length, context=context, one=one)

    async def cache(self, offset: int, length: int) -> None:
        await self.below.cache(offset, length)

    def view(self, offset: int, length: int, *, writable: bool = False) -> memoryview | None:
        return None if writable else self.below.view(offset, length)

    def backing(self) -> Backing | None:
        return self.below.backing()  # which front ends write to only where WRITE is declared


def _open(below: Source, options: NoOptions, context: OpenContext) -> Source:
    return ReadOnly(below)


DRIVER = LayerDriver("readonly", "let nothing below be changed", open=_open, reads_only=True)
