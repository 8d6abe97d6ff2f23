"""How missing blocks come from below: each once, whoever asks, and neighbours beside them while they are cheap.

A reader waits for the blocks it asked for only.  Their neighbours come at the same time, by tasks of their own, and
whoever asks for one of these waits for its task.
"""

from __future__ import annotations

import trio

from nbdfs.backends.cache.around import Around
from nbdfs.backends.cache.blocks import Blocks
from nbdfs.nbd.buffers import Buffers
from nbdfs.rangelock import RangeLock
from nbdfs.ranges import pieces
from nbdfs.source import Source

FETCH = 4 << 20  # bytes fetched at once
_SPARE = 8 << 20  # bytes of memory kept for fetches
_BESIDE = 4  # fetches of neighbours under way at once


class Fetcher:
    """Fills `blocks` from `below`, neighbours by tasks of `nursery`.

    Whoever else changes blocks holds `lock` on them too.
    """

    def __init__(self, below: Source, blocks: Blocks, lock: RangeLock, nursery: trio.Nursery) -> None:
        self._below = below
        self._blocks = blocks
        self._lock = lock
        self._nursery = nursery
        self._around = Around(blocks.block, blocks.capacity)
        self._beside = 0  # fetches of neighbours under way
        self._buffers = Buffers(_SPARE)

    async def read(self, part: memoryview, offset: int) -> None:
        """Fill `part`, some of whose blocks were missing a moment ago."""
        first, last = self._blocks.touched(offset, len(part))
        size = self._around.window(self._blocks.used_along)
        if last - first < size and self._beside < _BESIDE:
            self._fetch_beside(*self._neighbours(first, last, size))
        async with self._lock.hold(first, last - first):
            began = trio.current_time()
            if await self._read_or_fetch(part, offset):
                self._around.took(size, last - first, trio.current_time() - began)

    async def fetch(self, first: int, last: int) -> None:
        """Have blocks [first, last) present, as far as there is room."""
        async with self._lock.hold(first, last - first):
            await self._fetch_missing(first, last, range(first, last))

    async def _read_or_fetch(self, part: memoryview, offset: int) -> bool:
        """Fill `part`, fetching what is missing; whether anything was.

        The caller holds the lock on its blocks.  They are pinned: room made for one run must not be that of the next,
        and what is fetched must be missing, for a dirty block is newer than what is below.
        """
        first, last = self._blocks.touched(offset, len(part))
        block, end = self._blocks.block, offset + len(part)
        fetched = False
        with self._blocks.pinned(first, last):
            for start, stop, here in list(self._blocks.runs(first, last)):
                at, until = max(start * block, offset), min(stop * block, end)
                inner = part[at - offset : until - offset]
                if not here:
                    for piece, size in pieces(at, until - at, FETCH):
                        await self._fetch(inner[piece - at : piece - at + size], piece)
                    fetched = True
                elif not await self._blocks.read_into(inner, at):  # a damaged block is no longer present: look again
                    fetched |= await self._read_or_fetch(inner, at)
        return fetched

    async def _fetch(self, part: memoryview, offset: int) -> None:
        """Read whole blocks from below into the store, and `part` of them.  The caller holds the lock."""
        first, last = self._blocks.touched(offset, len(part))
        start, end = self._blocks.bounds(first, last)
        if (start, end) == (offset, offset + len(part)):
            await self._below.pread_into(part, start)
            await self._blocks.add(first, part)
            return
        buffer = self._buffers.take(end - start)
        try:
            whole = buffer[: end - start]
            await self._below.pread_into(whole, start)
            part[:] = whole[offset - start : offset - start + len(part)]
            await self._blocks.add(first, whole)
        finally:
            self._buffers.give(buffer)

    def _neighbours(self, first: int, last: int, most: int) -> tuple[int, int]:
        """The missing blocks after [first, last) that nobody fetches yet, or if there are none, those before.

        Not both: a read-ahead below would take three requests so near each other for a reader.
        """
        after = last
        while after < min(last + most, self._blocks.count) and self._wanting(after):
            after += 1
        if after > last:
            return last, after
        before = first
        while before > max(first - most, 0) and self._wanting(before - 1):
            before -= 1
        return before, first

    def _wanting(self, block: int) -> bool:
        """Whether a block is missing and not on its way."""
        return block not in self._blocks and not self._lock.claimed(block, 1)

    def _fetch_beside(self, first: int, last: int) -> None:
        """Begin to fetch neighbours."""
        if first < last:
            self._beside += 1
            self._nursery.start_soon(self._fetching_beside, first, last)

    async def _fetching_beside(self, first: int, last: int) -> None:
        try:
            async with self._lock.hold(first, last - first):
                await self._fetch_missing(first, last, range(0))
        except OSError:
            return  # whoever asks for them gets the error
        finally:
            self._beside -= 1

    async def _fetch_missing(self, first: int, last: int, asked: range) -> None:
        """Fetch what is missing of blocks [first, last); `asked` are those that somebody wants.  Holding the lock."""
        for start, stop, here in list(self._blocks.runs(first, last)):
            if not here:
                at, until = self._blocks.bounds(start, stop)
                for piece, size in pieces(at, until - at, FETCH):
                    buffer = self._buffers.take(size)
                    try:
                        await self._below.pread_into(buffer[:size], piece)
                        await self._blocks.add(piece // self._blocks.block, buffer[:size], asked)
                    finally:
                        self._buffers.give(buffer)
