"""How missing blocks come from below: each once, whoever asks, and with neighbours while they are cheap."""

from __future__ import annotations

import trio

from nbdfs.backends.cache.around import Around
from nbdfs.backends.cache.blocks import Blocks
from nbdfs.errors import SourceError
from nbdfs.nbd.buffers import Buffers
from nbdfs.rangelock import RangeLock
from nbdfs.ranges import pieces
from nbdfs.source import Source

FETCH = 4 << 20  # bytes fetched at once
_SPARE = 8 << 20  # bytes of memory kept for fetches


class Fetcher:
    """Fills `blocks` from `below`.  Whoever else changes blocks holds `lock` on them too."""

    def __init__(self, below: Source, blocks: Blocks, lock: RangeLock) -> None:
        self._below = below
        self._blocks = blocks
        self._lock = lock
        self._around = Around(blocks.block, blocks.capacity)
        self._buffers = Buffers(_SPARE)

    async def read(self, part: memoryview, offset: int) -> None:
        """Fill `part`, some of whose blocks were missing a moment ago."""
        low, high = self._window(*self._blocks.touched(offset, len(part)))
        async with self._lock.hold(low, high - low):
            await self._read_or_fetch(part, offset, low, high)

    async def fetch(self, first: int, last: int) -> None:
        """Have blocks [first, last) present, as far as there is room."""
        async with self._lock.hold(first, last - first):
            for start, stop, here in list(self._blocks.runs(first, last)):
                if not here:
                    at, until = self._blocks.bounds(start, stop)
                    for piece, size in pieces(at, until - at, FETCH):
                        await self._add(piece, size)

    def _window(self, first: int, last: int) -> tuple[int, int]:
        """What to fetch where blocks [first, last) are missing: if few, with neighbours that are missing too."""
        size = self._around.window(self._blocks.used_along)
        low, high = first, last
        if last - first < size:
            start = first - first % size
            end = min(start + size, self._blocks.count)
            while low > start and low - 1 not in self._blocks:
                low -= 1
            while high < end and high not in self._blocks:
                high += 1
        return low, high

    async def _read_or_fetch(self, part: memoryview, offset: int, low: int, high: int) -> None:
        """Fill `part`, fetching what is missing, and with it what is missing beside it in [low, high).

        The caller holds the lock on these blocks.  They are pinned: room made for one run must not be that of the next,
        and what is fetched must be missing, for a dirty block is newer than what is below.
        """
        block, end = self._blocks.block, offset + len(part)
        with self._blocks.pinned(low, high):
            for start, stop, here in list(self._blocks.runs(low, high)):
                at, until = max(start * block, offset), min(stop * block, end)
                if at >= until:
                    continue
                inner = part[at - offset : until - offset]
                if not here:
                    await self._fetch_run(inner, at, start, stop)
                elif not await self._blocks.read_into(inner, at):  # a damaged block is no longer present: look again
                    await self._read_or_fetch(inner, at, *self._blocks.touched(at, len(inner)))

    async def _fetch_run(self, part: memoryview, offset: int, first: int, last: int) -> None:
        """Fetch missing blocks, `part` among them; those beside it may not hinder it."""
        exact = self._blocks.touched(offset, len(part))
        if exact != (first, last):
            try:
                await self._fetch(part, offset, first, last)
            except OSError as error:
                if isinstance(error, SourceError) and error.retryable:  # it took its time, and all of it
                    raise
            else:
                return
        for at, size in pieces(offset, len(part), FETCH):
            await self._fetch(part[at - offset : at - offset + size], at, *self._blocks.touched(at, size))

    async def _fetch(self, part: memoryview, offset: int, first: int, last: int) -> None:
        """Read blocks [first, last) from below into the store, and `part` of them.  The caller holds the lock."""
        start, end = self._blocks.bounds(first, last)
        exact = (start, end) == (offset, offset + len(part))
        buffer = part if exact else self._buffers.take(end - start)
        whole = buffer[: end - start]
        try:
            began = trio.current_time()
            await self._below.pread_into(whole, start)
            asked = range(*self._blocks.touched(offset, len(part)))
            self._around.fetched(last - first, len(asked), trio.current_time() - began)
            if not exact:
                part[:] = whole[offset - start : offset - start + len(part)]
            await self._blocks.add(first, whole, asked)
        finally:
            if not exact:
                self._buffers.give(buffer)

    async def _add(self, offset: int, length: int) -> None:
        """Read whole blocks from below into the store.  The caller holds the lock."""
        buffer = self._buffers.take(length)
        try:
            await self._below.pread_into(buffer[:length], offset)
            await self._blocks.add(offset // self._blocks.block, buffer[:length])
        finally:
            self._buffers.give(buffer)
