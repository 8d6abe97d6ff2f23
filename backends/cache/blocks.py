"""The blocks a `cache` layer holds, and which of them goes when there is no room.

No operation here knows the source below.  Invariants:

* a block is present only if its whole content is in the store;
* a block that is pinned (being read or written back) or dirty is never evicted, so its place in the store is not
  emptied under its reader;
* the store changes only under `_changing`, so a hole made for an evicted block never meets its new content.
"""

from __future__ import annotations

import logging
import zlib
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from nbdfs.backends.cache.storage import Storage
from nbdfs.errors import reason

log = logging.getLogger(__name__)

_EVICTED_AT_ONCE = 16  # a part of the capacity: one hole for many blocks
_NARROW = 1024  # blocks that are looked at one by one


class Blocks:
    """Up to `capacity` blocks of `block` bytes, the least recently used of which go first."""

    def __init__(self, storage: Storage, size: int, block: int, capacity: int) -> None:
        self.storage = storage
        self.block = block
        self.capacity = capacity
        self.dirty: set[int] = set()
        self.leaving: set[int] = set()  # on their way below, no longer dirty unless written to again
        self.evicted = 0  # blocks, since it was opened
        self._size = size
        self.used_along = 0  # blocks that were fetched along with others and then read, since it was opened
        # Whether nobody has asked for it yet; the least recently used first.
        self._present: OrderedDict[int, bool] = OrderedDict()
        self._unverified = dict(storage.entries())  # block: CRC its content must have
        self._pinned: Counter[int] = Counter()
        self._changing = trio.Lock()
        self._full = False  # the last attempt to store failed
        for block_number in self._unverified:
            self._present[block_number] = False

    def __contains__(self, block: int) -> bool:
        return block in self._present

    def __len__(self) -> int:
        return len(self._present)

    @property
    def unsaved(self) -> set[int]:
        """The blocks whose content is not all below yet."""
        return self.dirty | self.leaving

    @property
    def count(self) -> int:
        """The blocks of the device."""
        return -(-self._size // self.block)

    @property
    def present_bytes(self) -> int:
        """The bytes of all present blocks."""
        last = self.count - 1
        start, end = self.bounds(last, last + 1)
        return len(self._present) * self.block - (self.block - (end - start) if last in self._present else 0)

    def runs(self, first: int, last: int) -> Iterator[tuple[int, int, bool]]:
        """Cut blocks [first, last) into runs (start, end, whether present)."""
        if last - first > len(self._present) + _NARROW:
            yield from self._wide_runs(first, last)
            return
        start = first
        while start < last:
            here = start in self._present
            end = start + 1
            while end < last and (end in self._present) is here:
                end += 1
            yield start, end, here
            start = end

    def _wide_runs(self, first: int, last: int) -> Iterator[tuple[int, int, bool]]:
        """The same by way of the blocks that are present, which are fewer than those asked for."""
        start = first
        for begin, end in joined(sorted(block for block in self._present if first <= block < last)):
            if start < begin:
                yield start, begin, False
            yield begin, end, True
            start = end
        if start < last:
            yield start, last, False

    def touched(self, offset: int, length: int) -> tuple[int, int]:
        """The blocks [first, last) that a range of bytes touches."""
        return offset // self.block, -(-(offset + length) // self.block)

    def bounds(self, first: int, last: int) -> tuple[int, int]:
        """Where blocks [first, last) begin and end, in bytes; the last of the device may be short."""
        return first * self.block, min(last * self.block, self._size)

    async def read_into(self, buffer: memoryview, offset: int) -> bool:
        """Fill `buffer` from present blocks; False if one proves to be damaged or is no longer present."""
        first, last = self.touched(offset, len(buffer))
        with self.pinned(first, last):
            for block in range(first, last):
                if not await self.sound(block):
                    return False
                self._use(block)
            await self.storage.scratch.read_into(buffer, offset)
        return True

    async def sound(self, block: int) -> bool:
        """Whether a block is present with the content it had when it was stored; if damaged it is no longer present."""
        if block not in self._unverified:
            return block in self._present
        start, end = self.bounds(block, block + 1)
        content = memoryview(bytearray(end - start))
        await self.storage.scratch.read_into(content, start)
        crc = self._unverified.pop(block, None)
        if crc is None or zlib.crc32(content) == crc:
            return block in self._present
        log.warning("block %d of the cache is damaged and is fetched again", block)
        self.remove(block, block + 1)
        return False

    def view(self, offset: int, length: int) -> memoryview | None:
        """The bytes themselves, if they are all present and in memory."""
        if not self.storage.scratch.in_memory:
            return None
        first, last = self.touched(offset, length)
        for block in range(first, last):
            if block not in self._present:
                return None
            self._use(block)
        return self.storage.scratch.view(offset, length)

    async def add(self, first: int, data: memoryview, asked: range | None = None) -> None:
        """Store whole blocks from `first` on, of which only those of `asked` are wanted so far (None: all are).

        Where there is no room they are not present, which is no error.
        """
        last = first + -(-len(data) // self.block)
        try:
            async with self._changing:
                await self.make_room(last - first)
                await self.storage.scratch.write(data, first * self.block)
        except OSError as error:
            self.remove(first, last)
            if not self._full:
                log.warning("the cache takes no more blocks: %s", reason(error))
            self._full = True
            return
        self._full = False
        self.storage.remember(first, data)
        self._enter(first, last, asked)

    async def update(self, data: memoryview, offset: int) -> None:
        """Overwrite a part of blocks; those of them that are not present are written whole by the caller.

        Raises OSError if there is no room; what was present then holds some of the data.
        """
        first, last = self.touched(offset, len(data))
        with self.pinned(first, last):
            async with self._changing:
                await self.make_room(sum(block not in self._present for block in range(first, last)))
                self.storage.forget(first, last)
                await self.storage.scratch.write(data, offset)
        self._enter(first, last)

    async def clear(self, offset: int, length: int) -> None:
        """Make a range of the store read as zero, which changes the content of present blocks to just that."""
        first, last = self.touched(offset, length)
        async with self._changing:
            self.storage.forget(first, last)
            await self.storage.scratch.discard(offset, length)

    def remove(self, first: int, last: int) -> None:
        """Blocks are no longer present.  Their bytes stay in the store, since someone may be reading them."""
        self.storage.forget(first, last)
        for block in range(first, last) if last - first < len(self._present) else list(self._present):
            if first <= block < last:
                self._present.pop(block, None)
                self._unverified.pop(block, None)
                self.dirty.discard(block)

    @contextmanager
    def pinned(self, first: int, last: int) -> Iterator[None]:
        """Keep blocks from being evicted during the block."""
        for block in range(first, last):
            self._pinned[block] += 1
        try:
            yield
        finally:
            for block in range(first, last):
                self._pinned[block] -= 1
                if not self._pinned[block]:
                    del self._pinned[block]

    def _use(self, block: int) -> None:
        if self._present[block]:
            self._present[block] = False
            self.used_along += 1
        self._present.move_to_end(block)

    def _enter(self, first: int, last: int, asked: range | None = None) -> None:
        for block in range(first, last):
            self._present[block] = asked is not None and block not in asked
            self._present.move_to_end(block)
            self._unverified.pop(block, None)

    async def make_room(self, count: int) -> None:
        """Evict blocks until `count` more may be present."""
        excess = len(self._present) + count - self.capacity
        if excess > 0:
            await self._evict(max(excess, self.capacity // _EVICTED_AT_ONCE))

    async def _evict(self, count: int) -> None:
        victims = []
        for block in self._present:
            if block not in self.dirty and block not in self._pinned:
                victims.append(block)
                if len(victims) == count:
                    break
        runs = list(joined(sorted(victims)))
        self.evicted += len(victims)
        for first, last in runs:  # all before the first wait: from then on somebody could pin one of them
            self.remove(first, last)
        for first, last in runs:
            start, end = self.bounds(first, last)
            await self.storage.scratch.discard(start, end - start)


def joined(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Runs [first, last) of ascending numbers."""
    at = 0
    while at < len(numbers):
        end = at + 1
        while end < len(numbers) and numbers[end] == numbers[end - 1] + 1:
            end += 1
        yield numbers[at], numbers[end - 1] + 1
        at = end
