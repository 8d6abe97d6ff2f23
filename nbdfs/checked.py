"""The one door between a front end and a stack.

`Checked` enforces the contract of `nbdfs.source.Source` in both directions, counts what passes,
and offers the complete interface whatever the source can do: FUA by a flush, zeroing by writing
zeroes, extents by calling all of it data.  What it adds that way shows in its own `info.caps`, so a front end
reads its facts there and never tests what the source itself has.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

from nbdfs.errors import SourceError
from nbdfs.parts import Part, first_trouble
from nbdfs.ranges import normalise, pieces
from nbdfs.records import replace
from nbdfs.source import ALLOCATION, RESIDENT, Backing, Caps, Extent, Health, Layer, Source, count_views

_ZEROES = memoryview(bytes(1 << 20))
_WRITING = Caps.WRITE | Caps.TRIM | Caps.ZERO | Caps.FAST_ZERO | Caps.FUA
_MOST_EXTENTS = 1 << 20  # in one reply: what a source may make a front end hold


class Counter:
    """How often an operation was asked for, the bytes it did, and how often it failed."""

    __slots__ = ("bytes", "errors", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.bytes = 0
        self.errors = 0


class Checked(Layer):
    """The checked form of `below`, for reading only if `readonly`.

    `trace` is called with (operation, offset, length) before each operation.  `parts` are what the stack behind this
    door is made of, the outermost first.
    """

    def __init__(
        self,
        below: Source,
        *,
        readonly: bool = False,
        trace: Callable[[str, int, int], None] | None = None,
        parts: Sequence[Part] = (),
    ) -> None:
        super().__init__(below)
        self.trace = trace
        self.parts = parts
        self.counters = {name: Counter() for name in ("read", "write", "flush", "trim", "zero", "extents", "cache")}
        self._reads, self._writes = self.counters["read"], self.counters["write"]
        info = below.info
        caps = info.caps
        if readonly or Caps.WRITE not in caps:
            caps &= ~_WRITING
        else:
            caps |= Caps.ZERO | Caps.FUA
        self.writable = Caps.WRITE in caps
        self.info = replace(info, caps=caps)
        self.eager = below.eager
        self.batches = below.batches
        self._own = below.info.caps
        self._size = info.size
        self._mask = info.block.minimum - 1
        self._maximum = info.block.maximum

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        length = len(buffer)
        counter = self._enter("read", offset, length)
        if length > self._maximum:
            raise self._refusal(errno.EINVAL, f"read of {length} bytes, the maximum is {self._maximum}")
        try:
            await self.below.pread_into(buffer, offset)
        except OSError as error:
            raise self._failed(counter, error) from error
        counter.bytes += length

    async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        length = len(data)
        counter = self._enter("write", offset, length, writes=True)
        if length > self._maximum:
            raise self._refusal(errno.EINVAL, f"write of {length} bytes, the maximum is {self._maximum}")
        try:
            await self.below.pwrite(data, offset, fua=fua and Caps.FUA in self._own)
            if fua:
                await self._flush_instead()
        except OSError as error:
            raise self._failed(counter, error) from error
        counter.bytes += length

    async def flush(self) -> None:
        counter = self.counters["flush"]
        counter.requests += 1
        if self.trace:
            self.trace("flush", 0, 0)
        if Caps.FLUSH in self._own:
            try:
                await self.below.flush()
            except OSError as error:
                raise self._failed(counter, error) from error

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        counter = self._enter("trim", offset, length, writes=True)
        if Caps.TRIM not in self._own:
            return  # a hint that the source has no use for
        try:
            await self.below.trim(offset, length, fua=fua and Caps.FUA in self._own)
            if fua:
                await self._flush_instead()
        except OSError as error:
            raise self._failed(counter, error) from error
        counter.bytes += length

    async def zero(
        self, offset: int, length: int, *, may_trim: bool = True, fast: bool = False, fua: bool = False
    ) -> None:
        counter = self._enter("zero", offset, length, writes=True)
        if fast and Caps.FAST_ZERO not in self._own:
            raise self._refusal(errno.ENOTSUP, "no fast way to zero")
        try:
            await self._zero(offset, length, may_trim, fast, fua and Caps.FUA in self._own)
            if fua:
                await self._flush_instead()
        except OSError as error:
            raise self._failed(counter, error) from error
        counter.bytes += length

    async def _zero(self, offset: int, length: int, may_trim: bool, fast: bool, fua: bool) -> None:
        if Caps.ZERO in self._own:
            try:
                await self.below.zero(offset, length, may_trim=may_trim, fast=fast, fua=fua)
            except OSError as error:
                if fast or error.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP):
                    raise
            else:
                return
        for at, size in pieces(offset, length, min(len(_ZEROES), self._maximum)):
            await self.below.pwrite(_ZEROES[:size], at, fua=fua)

    async def extents(self, offset: int, length: int, *, context: str = ALLOCATION, one: bool = False) -> list[Extent]:
        counter = self._enter("extents", offset, length)
        if context == ALLOCATION and Caps.EXTENTS not in self._own:
            return [Extent(offset, length, 0)]
        if context == RESIDENT and RESIDENT not in self.info.contexts:
            return [Extent(offset, length, 0)]
        if context not in self.info.contexts:
            raise self._refusal(errno.EINVAL, f"there is no context '{context}'")
        try:
            found = await self.below.extents(offset, length, context=context, one=one)
        except OSError as error:
            raise self._failed(counter, error) from error
        return self._approved(found, offset, length, one)

    def _approved(self, found: list[Extent], offset: int, length: int, one: bool) -> list[Extent]:
        found = found[:_MOST_EXTENTS]
        at, before, tidy = offset, -1, True
        for extent in found:
            start, size, flags = extent
            if start != at or size <= 0:
                raise self._refusal(errno.EIO, f"extents out of order at {at}: {extent}")
            at += size
            tidy = tidy and flags != before
            before = flags
        clipped = found if tidy and at <= offset + length else normalise(found, offset, length)
        if not clipped:
            raise self._refusal(errno.EIO, f"no extent for {length} bytes at {offset}")
        return clipped[:1] if one else clipped

    async def cache(self, offset: int, length: int) -> None:
        counter = self._enter("cache", offset, length)
        if Caps.CACHE not in self._own:
            return
        try:
            await self.below.cache(offset, length)
        except OSError as error:
            raise self._failed(counter, error) from error
        counter.bytes += length

    async def resize(self, size: int) -> None:
        if not self.writable:
            raise self._refusal(errno.EROFS, "is read-only")
        if size <= 0 or size & self._mask:
            raise self._refusal(errno.EINVAL, f"its size is a multiple of {self._mask + 1} bytes, and not 0")
        try:
            await self.below.resize(size)
        except OSError as error:
            raise self._failed(Counter(), error) from error
        self._size = self.below.info.size
        self.info = replace(self.info, size=self._size)

    def view(self, offset: int, length: int, *, writable: bool = False) -> memoryview | None:
        if offset < 0 or length <= 0 or offset + length > self._size or (offset | length) & self._mask:
            return None
        if writable and not self.writable:
            return None
        view = self.below.view(offset, length, writable=writable)
        if view is not None:
            counter = self._writes if writable else self._reads
            counter.requests += 1
            counter.bytes += length
            if self.trace:
                self.trace("write" if writable else "read", offset, length)
        return view

    def views(self, length: int, offsets: Sequence[int], *, writable: bool = False) -> Sequence[memoryview | None]:
        if self.trace or (writable and not self.writable) or not self._lie_inside(length, offsets):
            return [self.view(offset, length, writable=writable) for offset in offsets]
        views = self.below.views(length, offsets, writable=writable)
        counter = self._writes if writable else self._reads
        count = count_views(views)
        counter.requests += count
        counter.bytes += count * length
        return views

    def read_now(self, buffer: memoryview, length: int, offsets: Sequence[int]) -> int:
        if self.trace or not self._lie_inside(length, offsets):
            return 0  # the ordinary way does what is left to do, or refuses it
        done = self.below.read_now(buffer, length, offsets)
        self._reads.requests += done
        self._reads.bytes += done * length
        return done

    def write_now(self, data: memoryview, length: int, offsets: Sequence[int]) -> int:
        if self.trace or not self.writable or not self._lie_inside(length, offsets):
            return 0
        done = self.below.write_now(data, length, offsets)
        self._writes.requests += done
        self._writes.bytes += done * length
        return done

    def _lie_inside(self, length: int, offsets: Sequence[int]) -> bool:
        """Whether requests of this length may be made at all of these offsets."""
        if not 0 < length <= self._maximum or min(offsets) < 0 or max(offsets) + length > self._size:
            return False
        return not any((offset | length) & self._mask for offset in offsets) if self._mask else True

    def backing(self) -> Backing | None:
        return self.below.backing()

    def poller(self) -> Callable[[], bool] | None:
        return self.below.poller()

    def health(self) -> Health:
        """That of the whole stack: of the outermost part which is not well."""
        return first_trouble(part.health() for part in self.parts)

    def written_back(self) -> int:
        """That of the whole stack."""
        return sum(source.written_back() for part in self.parts for source in part.sources)

    def _enter(self, operation: str, offset: int, length: int, writes: bool = False) -> Counter:
        if offset < 0 or length <= 0 or offset + length > self._size:
            number = errno.ENOSPC if writes else errno.EINVAL
            raise self._refusal(number, f"{operation} of {length} bytes at {offset} is outside the {self._size} bytes")
        if (offset | length) & self._mask:
            raise self._refusal(errno.EINVAL, f"{operation} of {length} bytes at {offset} is not aligned")
        if writes and not self.writable:
            raise self._refusal(errno.EROFS, "is read-only")
        if self.trace:
            self.trace(operation, offset, length)
        counter = self.counters[operation]
        counter.requests += 1
        return counter

    async def _flush_instead(self) -> None:
        """What makes a single request durable where the source cannot."""
        if Caps.FUA not in self._own and Caps.FLUSH in self._own:
            await self.below.flush()

    def _refusal(self, number: int, message: str) -> SourceError:
        return SourceError(number, message, where=self.info.description)

    def _failed(self, counter: Counter, error: OSError) -> SourceError:
        counter.errors += 1
        if isinstance(error, SourceError) and error.errno:
            return error
        return self._refusal(error.errno or errno.EIO, error.strerror or str(error))
