"""A layer that does something around every request and changes none: the base of delay, error, log and stats."""

from __future__ import annotations

import abc
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from nbdfs.records import Record, replace
from nbdfs.source import ALLOCATION, Caps, Extent, Layer, Source

OPERATIONS = ("read", "write", "flush", "trim", "zero", "extents", "cache")

# What a layer that changes nothing knows how to pass on; a capability that is not here stops at it.
PASSED = (Caps.WRITE | Caps.FLUSH | Caps.FUA | Caps.TRIM | Caps.ZERO | Caps.FAST_ZERO | Caps.EXTENTS | Caps.CACHE
           | Caps.MULTI_CONN | Caps.ROTATIONAL | Caps.IMMEDIATE)  # fmt: skip

T = TypeVar("T")


class Request(Record):
    """One of OPERATIONS; `words` are the flags that were set. Offset and length are 0 for a flush."""

    operation: str
    offset: int = 0
    length: int = 0
    words: tuple[str, ...] = ()


class AroundLayer(Layer):
    """`below`, with `around` called for each request.  It has no fast paths, since they would go past it."""

    def __init__(self, below: Source, *, without: Caps = Caps.NONE) -> None:
        super().__init__(below)
        self.info = replace(below.info, caps=below.info.caps & PASSED & ~without)

    @abc.abstractmethod
    async def around(self, request: Request, call: Callable[[], Awaitable[T]]) -> T:
        """Answer a request; `call` has it answered by the source below."""

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        await self.around(Request("read", offset, len(buffer)), partial(self.below.pread_into, buffer, offset))

    async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        request = Request("write", offset, len(data), _words(fua=fua))
        await self.around(request, partial(self.below.pwrite, data, offset, fua=fua))

    async def flush(self) -> None:
        await self.around(Request("flush"), self.below.flush)

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        request = Request("trim", offset, length, _words(fua=fua))
        await self.around(request, partial(self.below.trim, offset, length, fua=fua))

    async def zero(
        self, offset: int, length: int, *, may_trim: bool = True, fast: bool = False, fua: bool = False
    ) -> None:
        request = Request("zero", offset, length, _words(may_trim=may_trim, fast=fast, fua=fua))
        call = partial(self.below.zero, offset, length, may_trim=may_trim, fast=fast, fua=fua)
        await self.around(request, call)

    async def extents(self, offset: int, length: int, *, context: str = ALLOCATION, one: bool = False) -> list[Extent]:
        request = Request("extents", offset, length, _words(one=one))
        return await self.around(request, partial(self.below.extents, offset, length, context=context, one=one))

    async def cache(self, offset: int, length: int) -> None:
        await self.around(Request("cache", offset, length), partial(self.below.cache, offset, length))


def _words(**flags: bool) -> tuple[str, ...]:
    return tuple(name for name, given in flags.items() if given)
