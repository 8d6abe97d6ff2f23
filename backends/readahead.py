"""The `readahead` layer: fetch what a sequential reader will ask for next.

Reads are matched to streams.  A stream that goes on where it stopped gets a window of blocks ahead of it, which
doubles with each hit up to `window`.  Blocks that are here are read without waiting, and without copying where the
caller can take a view.

Invariants: a block lies in `_blocks` from before its fetch begins until it is consumed, evicted or dropped, so a
change of its range always finds it.  A change drops the blocks it touches before it goes down and again when it came
back; a dropped block is never read, also not by who was waiting for it.  What `_blocks` and unfinished fetches hold is
at most `memory`.
"""

from __future__ import annotations

import collections
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

import trio

from nbdfs.eager import Run, Signal
from nbdfs.errors import UsageError
from nbdfs.nursery import serving_nursery
from nbdfs.ranges import pieces
from nbdfs.records import Record, replace
from nbdfs.registry import SIZE, LayerDriver, OpenContext, option
from nbdfs.source import ALLOCATION, Caps, Extent, Layer, Source

_BLOCK = 1 << 20  # bytes fetched by one request
_MOST_STREAMS = 8
_SLACK = 2 << 20  # bytes; several requests of one reader are under way at once and may overtake each other
_YOUNG_SLACK = 4  # lengths of the request: so far off only, until reads in a row have shown that there is a stream
_SEQUENTIAL = 2  # reads in a row that make a stream
_MOST_AGE = 2.0  # seconds that a block is good for: others may write to the same device


class _Block:
    """One block of `length` bytes: under way until `arrived` is set, then readable if `valid`."""

    __slots__ = ("arrived", "born", "consumed", "data", "length", "valid")

    def __init__(self, length: int) -> None:
        self.length = length
        self.data = memoryview(b"")
        self.arrived = Signal()
        self.born = trio.current_time()
        self.consumed = 0
        self.valid = True


class _Stream:
    """A reader: where its next read is expected, how far blocks were fetched, and how many bytes go ahead of it.

    A read that begins in [`low`, `high`] is one of its.
    """

    __slots__ = ("fetched", "high", "hits", "low", "next", "window")

    def __init__(self) -> None:
        self.next = self.low = self.high = 0
        self.fetched = 0
        self.hits = 0
        self.window = _BLOCK

    def goes_on(self, end: int, length: int) -> None:
        """A read of so many bytes was its, up to `end`."""
        self.next = max(self.next, end)
        self.hits += 1
        slack = _SLACK if self.hits > _SEQUENTIAL else _YOUNG_SLACK * length
        self.low = self.next - slack
        self.high = self.next + slack


class Readahead(Layer):
    """`below`, with blocks fetched ahead by tasks of `nursery`."""

    def __init__(self, below: Source, nursery: trio.Nursery, window: int, memory: int) -> None:
        super().__init__(below)
        info = below.info
        self._block = max(min(_BLOCK, info.block.maximum), info.block.minimum)
        self._window = max(window, self._block)
        self._room = max(memory // self._block, 2)  # blocks that may yet be made
        self._nursery = nursery
        self._blocks: collections.OrderedDict[int, _Block] = collections.OrderedDict()  # by number, oldest first
        self._spare: list[memoryview] = []
        self._hits = self._misses = self._evicted = 0
        self._fetches: set[Run] = set()  # under way
        self._streams: collections.deque[_Stream] = collections.deque(maxlen=_MOST_STREAMS)  # the latest comes last
        self.info = replace(info, caps=info.caps & ~Caps.IMMEDIATE)
        self.eager = below.eager

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        self._follow(offset, len(buffer))
        if not self._blocks:
            self._misses += 1
            await self.below.pread_into(buffer, offset)
            return
        missing = offset  # [missing, at) is to be read from below
        for at, size in pieces(offset, len(buffer), self._block):
            block = self._blocks.get(at // self._block)
            if block is None:
                continue
            if not block.arrived.is_set:
                await block.arrived.wait()
            if not self._usable(block):
                continue
            if missing < at:
                self._misses += 1
                await self.below.pread_into(buffer[missing - offset : at - offset], missing)
                if not self._usable(block):  # changed meanwhile
                    missing = at
                    continue
            start = at % self._block
            self._hits += 1
            buffer[at - offset : at - offset + size] = block.data[start : start + size]
            self._consume(at // self._block, size)
            missing = at + size
        if missing < offset + len(buffer):
            self._misses += 1
            await self.below.pread_into(buffer[missing - offset :], missing)

    def view(self, offset: int, length: int, *, writable: bool = False) -> memoryview | None:
        if writable:
            return None
        number, start = divmod(offset, self._block)
        block = self._blocks.get(number) if self._blocks else None
        if block is None or start + length > block.length:
            return self.below.view(offset, length)
        if not block.arrived.is_set or not self._usable(block):
            return None
        self._follow(offset, length)
        if not block.valid:  # evicted for one further on
            return None
        # The bytes stay as they are until the caller's next checkpoint: a fetch that is begun fills nothing before.
        self._consume(number, length)
        self._hits += 1
        return block.data[start : start + length]

    def poller(self) -> Callable[[], bool] | None:
        return self.below.poller()

    def statistics(self) -> Mapping[str, int]:
        return {"hits_total": self._hits, "misses_total": self._misses, "evictions_total": self._evicted}

    def _usable(self, block: _Block) -> bool:
        if block.valid and trio.current_time() - block.born > _MOST_AGE:
            self._streams[-1].window = self._block  # a slow reader: the window was too large for it
            return False
        return block.valid

    def _consume(self, number: int, size: int) -> None:
        """A reader has got so much of a block; one that is all consumed has done its work."""
        block = self._blocks[number]
        block.consumed += size
        if block.consumed >= block.length:
            self._drop(number)

    def _follow(self, offset: int, length: int) -> None:
        """Match a read to its stream, and fetch ahead of that."""
        stream = self._stream(offset)
        stream.goes_on(offset + length, length)
        if stream.hits <= _SEQUENTIAL:
            return
        first = max(stream.fetched, -(-stream.next // self._block))
        last = -(-min(stream.next + stream.window, self.info.size) // self._block)
        for number in range(first, last):
            if number not in self._blocks and not self._fetch(number):
                break
            stream.fetched = number + 1
        if last > first:
            stream.window = min(stream.window * 2, self._window)

    def _stream(self, offset: int) -> _Stream:
        """The stream that a read at `offset` belongs to, which may be a new one."""
        streams = self._streams
        for stream in reversed(streams):
            if stream.low <= offset <= stream.high:
                if stream is not streams[-1]:
                    streams.remove(stream)
                    streams.append(stream)
                return stream
        stream = _Stream()
        streams.append(stream)
        return stream

    def _fetch(self, number: int) -> bool:
        """Begin to fetch a block; False if there is no memory for it."""
        if not self._room and not self._evict():
            return False
        self._room -= 1
        offset = number * self._block
        block = self._blocks[number] = _Block(min(self._block, self.info.size - offset))
        fetch = Run(self._fetching(number, block), self._nursery, lambda: self._fetches.discard(fetch))
        self._fetches.add(fetch)
        if self.below.eager:
            fetch.start()
        else:
            fetch.start_task()
        return True

    def stop(self) -> None:
        """End the fetches under way."""
        for fetch in list(self._fetches):
            fetch.cancel()

    async def _fetching(self, number: int, block: _Block) -> None:
        data = self._spare.pop() if self._spare else memoryview(bytearray(self._block))
        complete = False
        try:
            with suppress(OSError):  # whoever reads that place asks below and gets the error
                await self.below.pread_into(data[: block.length], number * self._block)
                complete = True
        finally:
            block.data = data
            block.valid = block.valid and complete
            if not block.valid:
                self._drop(number, block)
                self._release(block)
            block.arrived.set()

    def _evict(self) -> bool:
        """Drop the oldest block that nobody waits for."""
        for number, block in self._blocks.items():
            if block.arrived.is_set:
                self._drop(number)
                self._evicted += 1
                return True
        return False

    def _drop(self, number: int, only: _Block | None = None) -> None:
        block = self._blocks.get(number)
        if block is None or (only is not None and block is not only):
            return
        del self._blocks[number]
        if block.valid:
            block.valid = False
            if block.arrived.is_set:
                self._release(block)

    def _release(self, block: _Block) -> None:
        """Take back a block's memory, once, after its fetch has ended."""
        self._room += 1
        self._spare.append(block.data)

    def _changes(self, offset: int, length: int) -> None:
        """Forget what is about to change, or has."""
        if not self._blocks:
            return
        first, last = offset // self._block, (offset + length - 1) // self._block
        for number in range(first, last + 1) if last - first < len(self._blocks) else list(self._blocks):
            if first <= number <= last:
                self._drop(number)

    @asynccontextmanager
    async def _changing(self, offset: int, length: int) -> AsyncIterator[None]:
        self._changes(offset, length)
        try:
            yield
        finally:
            self._changes(offset, length)

    async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        self._changes(offset, len(data))
        try:
            await self.below.pwrite(data, offset, fua=fua)
        finally:
            self._changes(offset, len(data))

    async def flush(self) -> None:
        await self.below.flush()

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        async with self._changing(offset, length):
            await self.below.trim(offset, length, fua=fua)

    async def zero(
        self, offset: int, length: int, *, may_trim: bool = True, fast: bool = False, fua: bool = False
    ) -> None:
        async with self._changing(offset, length):
            await self.below.zero(offset, length, may_trim=may_trim, fast=fast, fua=fua)

    async def extents(self, offset: int, length: int, *, context: str = ALLOCATION, one: bool = False) -> list[Extent]:
        return await self.below.extents(offset, length, context=context, one=one)

    async def cache(self, offset: int, length: int) -> None:
        await self.below.cache(offset, length)


class ReadaheadOptions(Record):
    window: int = option(16 << 20, SIZE, "the most bytes to fetch ahead of one reader")
    memory: int = option(64 << 20, SIZE, "the most bytes to hold in all")


@asynccontextmanager
async def readahead(below: Source, window: int, memory: int) -> AsyncIterator[Source]:
    """`below` with read-ahead; the fetches under way end with the block."""
    async with serving_nursery() as nursery:
        layer = Readahead(below, nursery, window, memory)
        try:
            yield layer
        finally:
            layer.stop()  # not all of them are tasks of the nursery


def _open(below: Source, options: ReadaheadOptions, context: OpenContext) -> AbstractAsyncContextManager[Source]:
    if options.memory < options.window:
        raise UsageError("readahead: memory must not be less than window")
    return readahead(below, options.window, options.memory)


DRIVER = LayerDriver("readahead", "fetch ahead of sequential readers", ReadaheadOptions, open=_open)
