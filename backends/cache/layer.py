"""The requests of the `cache` layer: what its blocks have is read from them, and writes go as its mode says.

Invariants:

* whoever fetches or changes blocks holds the lock on them, so a fetch never puts back what a write has replaced, and
  two readers of a missing block fetch it once;
* a flush returns only after all writes that were done before it are below and flushed there.  Nothing that was flushed
  depends on the cache.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

import trio

from nbdfs.backends.cache import CacheOptions
from nbdfs.backends.cache.blocks import Blocks, joined
from nbdfs.backends.cache.fetching import FETCH, Fetcher
from nbdfs.backends.cache.storage import open_storage
from nbdfs.backends.cache.writeback import WriteBack
from nbdfs.errors import UsageError
from nbdfs.nursery import serving_nursery
from nbdfs.rangelock import RangeLock
from nbdfs.ranges import normalise
from nbdfs.records import replace
from nbdfs.source import (
    ALLOCATION,
    CLOSE_TIMEOUT,
    HOLE,
    RESIDENT,
    BlockSize,
    Caps,
    Extent,
    Layer,
    Source,
    read,
)
from nbdfs.undo import unless_done

_IN_MEMORY = 256 << 20  # bytes kept where the size is not given
_ON_DISK = 8 << 30
_DIRTY_SHARE = 2  # a part of the capacity: so many dirty blocks make a writer write back first
_FEWEST = 16  # blocks of capacity


class Cache(Layer):
    """`below` with `blocks` kept of it; `mode` as in the options."""

    def __init__(self, below: Source, blocks: Blocks, mode: str, nursery: trio.Nursery) -> None:
        super().__init__(below)
        self._blocks = blocks
        self._block = blocks.block
        self._size = below.info.size
        self._lock = RangeLock()
        self._populating = mode != "read"
        self._hits = self._misses = 0  # blocks
        self._fetcher = Fetcher(below, blocks, self._lock, nursery)
        self._write_back = WriteBack(below, blocks)
        self._back = mode == "writeback" and Caps.WRITE in below.info.caps
        caps = (below.info.caps & ~Caps.IMMEDIATE) | Caps.CACHE
        if self._back:
            caps = (caps & ~Caps.FUA) | Caps.FLUSH
        block = BlockSize(1, max(blocks.block, below.info.block.preferred), below.info.block.maximum)
        contexts = below.info.contexts if RESIDENT in below.info.contexts else (*below.info.contexts, RESIDENT)
        self.info = replace(below.info, caps=caps, block=block, contexts=contexts)

    # ---- reading

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        end = offset + len(buffer)
        first, last = self._blocks.touched(offset, len(buffer))
        for start, stop, here in list(self._blocks.runs(first, last)):
            at, until = max(start * self._block, offset), min(stop * self._block, end)
            part = buffer[at - offset : until - offset]
            if here and await self._blocks.read_into(part, at):
                self._hits += stop - start
            else:
                self._misses += stop - start
                await self._fetcher.read(part, at)

    async def cache(self, offset: int, length: int) -> None:
        await self._fetcher.fetch(*self._blocks.touched(offset, length))

    def view(self, offset: int, length: int, *, writable: bool = False) -> memoryview | None:
        view = None if writable else self._blocks.view(offset, length)
        if view is not None:
            first, last = self._blocks.touched(offset, length)
            self._hits += last - first
        return view

    def statistics(self) -> Mapping[str, int]:
        return {
            "hits_total": self._hits,
            "misses_total": self._misses,
            "evictions_total": self._blocks.evicted,
            "resident_bytes": self._blocks.present_bytes,
            "dirty_bytes": len(self._blocks.unsaved) * self._block,
        }

    def written_back(self) -> int:
        return self._write_back.written

    async def extents(self, offset: int, length: int, *, context: str = ALLOCATION, one: bool = False) -> list[Extent]:
        if context == RESIDENT:
            return await self._resident(offset, length, one)
        unsaved = self._blocks.unsaved  # what gets below from here on may come too late for what it tells
        found = await self.below.extents(offset, length, context=context, one=one)
        return self._with_unsaved(normalise(found, offset, length), unsaved)

    async def _resident(self, offset: int, length: int, one: bool) -> list[Extent]:
        found: list[Extent] = []
        for start, stop, here in list(self._blocks.runs(*self._blocks.touched(offset, length))):
            at, end = max(start * self._block, offset), min(stop * self._block, offset + length)
            if here:
                found.append(Extent(at, end - at, 0))
            elif RESIDENT not in self.below.info.contexts:
                found.append(Extent(at, end - at, HOLE))
            else:
                found += normalise(await self.below.extents(at, end - at, context=RESIDENT, one=one), at, end - at)
                if found[-1].offset + found[-1].length < end:
                    break
            if one:
                break
        return found

    def _with_unsaved(self, extents: list[Extent], unsaved: set[int]) -> list[Extent]:
        """What below tells, with data where a write has not reached it yet."""
        if not unsaved:
            return extents
        found = []
        for extent in extents:
            end = extent.offset + extent.length
            first, last = self._blocks.touched(extent.offset, extent.length)
            for start, stop in joined(sorted(block for block in unsaved if first <= block < last)):
                at, until = max(start * self._block, extent.offset), min(stop * self._block, end)
                found.append(Extent(extent.offset, at - extent.offset, extent.flags))
                found.append(Extent(at, until - at, 0))
                extent = Extent(until, end - until, extent.flags)
            found.append(extent)
        return [extent for extent in found if extent.length]

    # ---- writing

    async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        self._blocks.storage.before_write()
        if self._back and len(self._blocks.dirty) >= self._blocks.capacity // _DIRTY_SHARE:
            await self._write_back.run()
        first, last = self._blocks.touched(offset, len(data))
        async with self._lock.hold(first, last - first):
            if self._back:
                await self._write_here(data, offset)
            else:
                await self._write_through(data, offset, fua)

    async def _write_here(self, data: memoryview, offset: int) -> None:
        first, last = self._blocks.touched(offset, len(data))
        try:
            await self._update_whole(data, offset)
        except OSError:  # whatever ails the cache's disk, the device works on without it
            # What is here goes first: it is older, or some of the data, of which below knows nothing yet.
            self._blocks.dirty.update(block for block in range(first, last) if block in self._blocks)
            await self._write_back.run(first, last)
            await self._write_below(data, offset, fua=False)
            self._blocks.remove(first, last)
            return
        self._blocks.dirty.update(range(first, last))

    async def _write_through(self, data: memoryview, offset: int, fua: bool) -> None:
        first, last = self._blocks.touched(offset, len(data))
        await self._write_below(data, offset, fua=fua)
        # Below the write is done; what is here must be so too or be gone, whatever ends the block.
        with suppress(OSError), unless_done(lambda: self._blocks.remove(first, last)):
            if self._populating:
                await self._update_whole(data, offset)
            else:
                await self._update_present(data, offset)

    async def _update_whole(self, data: memoryview, offset: int) -> None:
        """Put data into the store; blocks that it covers in part and that are not present are completed first."""
        first, last = self._blocks.touched(offset, len(data))
        with self._blocks.pinned(first, last):
            for block in self._edges(offset, len(data)):
                if not await self._blocks.sound(block):
                    start, end = self._blocks.bounds(block, block + 1)
                    await self._blocks.update(memoryview(await read(self.below, start, end - start)), start)
            await self._blocks.update(data, offset)

    async def _update_present(self, data: memoryview, offset: int) -> None:
        """Put data into the store only where blocks are present."""
        first, last = self._blocks.touched(offset, len(data))
        with self._blocks.pinned(first, last):
            for block in self._edges(offset, len(data)):
                await self._blocks.sound(block)  # else it is no longer present
            for start, stop, here in list(self._blocks.runs(first, last)):
                if here:
                    at, end = max(start * self._block, offset), min(stop * self._block, offset + len(data))
                    await self._blocks.update(data[at - offset : end - offset], at)

    def _edges(self, offset: int, length: int) -> list[int]:
        """The blocks that a range covers only in part."""
        first, last = self._blocks.touched(offset, length)
        bounds = ((block, *self._blocks.bounds(block, block + 1)) for block in {first, last - 1})
        return [block for block, start, end in bounds if start < offset or end > offset + length]

    async def _write_below(self, data: memoryview, offset: int, *, fua: bool) -> None:
        first, last = self._blocks.touched(offset, len(data))
        with unless_done(lambda: self._blocks.remove(first, last)):  # nobody knows how much of it is done
            await self.below.pwrite(data, offset, fua=fua)

    async def flush(self) -> None:
        await self._write_back.run()
        if Caps.FLUSH in self.below.info.caps:
            await self.below.flush()

    async def finish(self) -> None:
        """Write below what nobody has flushed."""
        if self._blocks.dirty:
            await self.flush()

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        first, last = self._blocks.touched(offset, length)
        async with self._emptied(offset, length):
            await self.below.trim(offset, length, fua=fua)
            with suppress(OSError):  # the space is given back with the next eviction then
                await self._blocks.clear(offset, length)
            self._blocks.remove(first, last)

    async def zero(
        self, offset: int, length: int, *, may_trim: bool = True, fast: bool = False, fua: bool = False
    ) -> None:
        async with self._emptied(offset, length):
            await self.below.zero(offset, length, may_trim=may_trim, fast=fast, fua=fua)
            try:
                await self._blocks.clear(offset, length)
            except OSError:
                self._blocks.remove(*self._blocks.touched(offset, length))

    @asynccontextmanager
    async def _emptied(self, offset: int, length: int) -> AsyncIterator[None]:
        """Hold the blocks of a range with nothing in them dirty; if the block fails they are not present any more."""
        self._blocks.storage.before_write()
        first, last = self._blocks.touched(offset, length)
        async with self._lock.hold(first, last - first):
            await self._write_back.run(first, last)
            with unless_done(lambda: self._blocks.remove(first, last)):
                yield


@asynccontextmanager
async def open_cache(below: Source, options: CacheOptions) -> AsyncIterator[Source]:
    """Open the layer.  What is in memory already is not kept once more: such a source stays as it is."""
    if not 4096 <= options.block <= FETCH or options.block & (options.block - 1):
        raise UsageError("cache: block must be a power of two from 4k to 4M")
    capacity = (options.size or (_ON_DISK if options.cache else _IN_MEMORY)) // options.block
    if capacity < _FEWEST:
        raise UsageError(f"cache: size must be {_FEWEST} blocks or more, here {_FEWEST * options.block} bytes")
    if Caps.IMMEDIATE in below.info.caps or not below.info.size:
        yield below
        return
    storage = open_storage(options.cache, below.info, options.block)
    try:
        blocks = Blocks(storage, below.info.size, options.block, capacity)
        await blocks.make_room(0)
        async with serving_nursery() as nursery:
            layer = Cache(below, blocks, options.mode, nursery)
            try:
                yield layer
            finally:
                with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
                    await layer.finish()
    finally:
        storage.close()
