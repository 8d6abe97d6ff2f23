"""The requests of the `cow` layer: each block from its overlay or from below, taken over before it is changed in part.

Invariant: whoever puts blocks into the overlay holds the lock on them from before it looks whether they are there until
they are, so that taking over the rest of a block from below can never undo another's completed write.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager

import trio

from nbdfs.backends.cow import CowOptions
from nbdfs.backends.cow.overlay import (
    FINGERPRINTED,
    LARGEST_BLOCK,
    Base,
    Overlay,
    is_block,
    open_overlay,
    temporary_overlay,
)
from nbdfs.errors import SourceError, UsageError
from nbdfs.rangelock import RangeLock
from nbdfs.records import replace
from nbdfs.registry import OpenContext
from nbdfs.source import ALLOCATION, CLOSE_TIMEOUT, HOLE, ZERO, BlockSize, Caps, Extent, Layer, Source, read

_WRITING = Caps.WRITE | Caps.TRIM | Caps.ZERO | Caps.FAST_ZERO
_ZEROES = memoryview(bytes(LARGEST_BLOCK))


class Cow(Layer):
    """`below` with the blocks of `overlay` over it."""

    def __init__(self, below: Source, overlay: Overlay) -> None:
        super().__init__(below)
        self._overlay = overlay
        self._content = overlay.content
        self._block = overlay.block
        self._size = below.info.size
        self._lock = RangeLock()
        caps = Caps.EXTENTS | Caps.MULTI_CONN | (below.info.caps & Caps.CACHE)
        if not overlay.readonly:
            caps |= _WRITING
        if overlay.kept:
            caps |= Caps.FLUSH
        if overlay.content.in_memory:
            caps |= below.info.caps & Caps.IMMEDIATE
        block = BlockSize(1, max(overlay.block, below.info.block.preferred), below.info.block.maximum)
        below_identity = below.info.identity if overlay.readonly else ""
        identity = f"overlay {overlay.version} on {below_identity}" if below_identity else ""
        description = f"overlay on {below.info.description}"
        self.info = replace(below.info, caps=caps, block=block, identity=identity, description=description,
                            contexts=(ALLOCATION,))  # fmt: skip

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        for start, end, inside in self._runs(offset, len(buffer)):
            part = buffer[start - offset : end - offset]
            if inside:
                await self._content.read_into(part, start)
            else:
                await self.below.pread_into(part, start)

    async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        first, last = self._blocks(offset, len(data))
        if self._content.in_memory and self._lock.free and not self._missing_edges(offset, len(data)):
            self._content.write_now(data, offset)
            self._overlay.add(first, last)
            return
        async with self._lock.hold(first, last - first):
            await self._take_over_edges(offset, len(data))
            await self._content.write(data, offset)
            self._overlay.add(first, last)

    async def flush(self) -> None:
        await self._overlay.flush()

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        first, last = self._inside(offset, length)
        if first < last:
            async with self._lock.hold(first, last - first):
                try:
                    await self._clear(first, last)
                except OSError as error:
                    if error.errno != errno.EOPNOTSUPP:  # where there are no holes the hint is of no use
                        raise

    async def zero(
        self, offset: int, length: int, *, may_trim: bool = True, fast: bool = False, fua: bool = False
    ) -> None:
        first, last = self._inside(offset, length)
        edges = first * self._block != offset or min(last * self._block, self._size) != offset + length
        if not may_trim or (fast and edges):
            raise SourceError(errno.ENOTSUP, "no way to zero that is faster than writing", where=self.info.description)
        if not edges:
            async with self._lock.hold(first, last - first):
                await self._clear(first, last)
            return
        outer_first, outer_last = self._blocks(offset, length)
        async with self._lock.hold(outer_first, outer_last - outer_first):
            await self._take_over_edges(offset, length)
            end = offset + length
            head = min(first * self._block, end)
            await self._content.write(_ZEROES[: head - offset], offset)
            if first < last:
                await self._clear(first, last)
                head = min(last * self._block, end)
            await self._content.write(_ZEROES[: end - head], head)
            self._overlay.add(outer_first, outer_last)

    async def extents(self, offset: int, length: int, *, context: str = ALLOCATION, one: bool = False) -> list[Extent]:
        found: list[Extent] = []
        for start, end, inside in self._runs(offset, length):
            if inside:
                runs = self._content.data_runs(start, end - start)
                found += [Extent(at, stop - at, 0 if data else HOLE | ZERO) for at, stop, data in runs]
            elif Caps.EXTENTS not in self.below.info.caps:
                found.append(Extent(start, end - start, 0))
            else:
                below = await self.below.extents(start, end - start, context=context, one=one)
                found += _clipped(below, end)
                if found[-1].offset + found[-1].length < end:
                    break  # it told of less than asked, and so do we
            if one:
                break
        return found

    async def cache(self, offset: int, length: int) -> None:
        for start, end, inside in self._runs(offset, length):
            if not inside:
                await self.below.cache(start, end - start)

    def view(self, offset: int, length: int, *, writable: bool = False) -> memoryview | None:
        if writable:
            return None
        first, last = self._blocks(offset, length)
        if self._overlay.present.covers(first, last):
            return self._content.view(offset, length)
        _, stop, inside = next(self._overlay.present.runs(first, last))
        return self.below.view(offset, length) if stop == last and not inside else None

    def statistics(self) -> Mapping[str, int]:
        return {"overlay_bytes": min(self._overlay.present.total * self._block, self._size)}

    async def _take_over_edges(self, offset: int, length: int) -> None:
        """Copy from below the blocks that the range covers in part and that are not here yet."""
        for block in self._missing_edges(offset, length):
            at, stop = block * self._block, min((block + 1) * self._block, self._size)
            await self._content.write(memoryview(await read(self.below, at, stop - at)), at)

    def _missing_edges(self, offset: int, length: int) -> list[int]:
        """The blocks, two at most, that the range covers in part and that are not here yet."""
        end = offset + length
        first, last = offset // self._block, (end - 1) // self._block
        partly = [first] if offset % self._block else []
        if end % self._block and end != self._size and (last != first or not partly):
            partly.append(last)
        return [block for block in partly if not self._overlay.present.covers(block, block + 1)]

    async def _clear(self, first: int, last: int) -> None:
        start = first * self._block
        await self._content.discard(start, min(last * self._block, self._size) - start)
        self._overlay.add(first, last)

    def _blocks(self, offset: int, length: int) -> tuple[int, int]:
        """The blocks that the range touches."""
        return offset // self._block, -(-(offset + length) // self._block)

    def _inside(self, offset: int, length: int) -> tuple[int, int]:
        """The blocks that the range covers; the last of the device may be short."""
        end = offset + length
        last = -(-end // self._block) if end == self._size else end // self._block
        return -(-offset // self._block), last

    def _runs(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """Cut the range into runs (start, end, whether in the overlay), in bytes."""
        end = offset + length
        for first, last, inside in list(self._overlay.present.runs(*self._blocks(offset, length))):
            yield max(first * self._block, offset), min(last * self._block, end), inside


def _clipped(extents: list[Extent], end: int) -> list[Extent]:
    """Without what lies past `end`."""
    return [Extent(at, min(length, end - at), flags) for at, length, flags in extents if at < end]


@asynccontextmanager
async def open_cow(below: Source, options: CowOptions, context: OpenContext) -> AsyncIterator[Source]:
    """Open the layer; a kept overlay is complete on the disk after an orderly end, flushed or not."""
    if not is_block(options.block):
        raise UsageError("cow: block must be a power of two from 512 to 1M")
    if options.overlay and options.memory:
        raise UsageError("cow: overlay= and memory exclude each other")
    if options.overlay:
        base = await describe_base(below)
        overlay = open_overlay(
            options.overlay, base, options.block, accept=options.accept_base, readonly=context.readonly
        )
    else:
        memory = options.memory or (Caps.IMMEDIATE in below.info.caps and below.info.size <= _share_of_memory())
        overlay = temporary_overlay(below.info.size, options.block, memory=memory)
    try:
        yield Cow(below, overlay)
    finally:
        with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
            try:
                await overlay.flush()
            finally:
                overlay.close()


def _share_of_memory() -> int:
    """Bytes of memory that an overlay over memory may take without being asked to."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4


async def describe_base(base: Source) -> Base:
    """What an overlay remembers of what it lies over."""
    beginning = await read(base, 0, min(FINGERPRINTED, base.info.size))
    return Base(base.info.size, base.info.identity, bytes(beginning))
