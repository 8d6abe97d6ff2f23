"""The readahead layer: what it fetches, and that it never shows what a write has changed."""

from __future__ import annotations

import errno
import random

import pytest
import trio
import trio.testing

from nbdfs import eager
from nbdfs.backends.readahead import readahead
from nbdfs.backends.zero import Zero
from nbdfs.eager import Signal
from nbdfs.errors import SourceError
from nbdfs.source import Caps, Source, SourceInfo, read

MIB = 1 << 20
CONTENT = random.Random(1).randbytes(4 * MIB) * 16


class Slow(Source):
    """Content that takes `delay` seconds to read; it takes the bytes at the beginning or at the end of that time."""

    def __init__(self, delay: float = 0.0) -> None:
        self.info = SourceInfo(len(CONTENT) - 77, Caps.WRITE | Caps.FLUSH | Caps.ZERO | Caps.TRIM)
        self.data = bytearray(CONTENT[: self.info.size])
        self.delay = delay
        self.reads: list[tuple[int, int]] = []
        self.under_way = 0
        self.most_under_way = 0
        self.broken: range = range(0)
        self.early = False

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        self.reads.append((offset, len(buffer)))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        then = self.data[offset : offset + len(buffer)] if self.early else None
        try:
            await trio.sleep(self.delay)
        finally:
            self.under_way -= 1
        if any(at in self.broken for at in (offset, offset + len(buffer) - 1)):
            raise SourceError(errno.EIO)
        buffer[:] = then or self.data[offset : offset + len(buffer)]

    async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        await trio.sleep(self.delay)
        self.data[offset : offset + len(data)] = data
        await trio.sleep(self.delay)

    async def zero(
        self, offset: int, length: int, *, may_trim: bool = True, fast: bool = False, fua: bool = False
    ) -> None:
        await self.pwrite(memoryview(bytes(length)), offset)

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        await self.zero(offset, length)


@pytest.mark.parametrize("length", [4096, 65519, 128 << 10, MIB, 3 * MIB + 1])
async def test_a_sequential_reader_gets_the_bytes_and_few_reads_go_down(
    length: int, autojump_clock: trio.testing.MockClock
) -> None:
    below = Slow(0.002)
    async with readahead(below, 8 * MIB, 32 * MIB) as source:
        for at in range(0, below.info.size, length):
            size = min(length, below.info.size - at)
            assert await read(source, at, size) == below.data[at : at + size]
    assert below.most_under_way > 4
    assert sum(size for _, size in below.reads) <= below.info.size + 4 * length


async def test_a_block_that_is_here_is_read_by_view_without_waiting(autojump_clock: trio.testing.MockClock) -> None:
    below = Slow(0.002)
    async with readahead(below, 4 * MIB, 16 * MIB) as source:
        for at in range(0, MIB, 128 << 10):
            await read(source, at, 128 << 10)
        await trio.sleep(0.1)
        view = source.view(MIB, 128 << 10)
        assert view == below.data[MIB : MIB + (128 << 10)]
        assert source.view(MIB, 128 << 10, writable=True) is None
        assert source.view(2 * MIB - 1, 2) is None  # crosses blocks


async def test_random_readers_cause_no_fetches(autojump_clock: trio.testing.MockClock) -> None:
    below = Slow()
    places = random.Random(3).sample(range(0, below.info.size - 4096, 4096), 1000)
    async with readahead(below, 8 * MIB, 32 * MIB) as source:
        for at in places:
            assert await read(source, at, 4096) == below.data[at : at + 4096]
    assert len(below.reads) <= 1000 + 40


async def test_several_streams_at_once(autojump_clock: trio.testing.MockClock) -> None:
    below = Slow(0.002)
    async with readahead(below, 4 * MIB, 32 * MIB) as source:
        for at in range(0, 8 * MIB, 256 << 10):
            for start in (0, 20 * MIB, 40 * MIB):
                assert await read(source, start + at, 256 << 10) == below.data[start + at : start + at + (256 << 10)]
    assert sum(size == MIB for _, size in below.reads) >= 21


async def test_memory_is_bounded(autojump_clock: trio.testing.MockClock) -> None:
    below = Slow(0.002)
    async with readahead(below, 16 * MIB, 4 * MIB) as source:
        for at in range(0, 32 * MIB, 512 << 10):
            await read(source, at, 512 << 10)
    assert below.most_under_way <= 5  # four fetches and a read that found none


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("change", ["pwrite", "zero", "trim"])
async def test_a_change_is_seen_by_the_next_read(
    change: str, early: bool, autojump_clock: trio.testing.MockClock
) -> None:
    below = Slow(0.002)
    below.early = early
    draw = random.Random(5)
    async with readahead(below, 8 * MIB, 32 * MIB) as source:
        async with trio.open_nursery() as nursery:

            async def reader() -> None:
                for at in range(0, 32 * MIB, 256 << 10):
                    await read(source, at, 256 << 10)

            nursery.start_soon(reader)
            for _ in range(200):
                at, length = draw.randrange(30 * MIB), draw.randrange(1, 300_000)
                if change == "pwrite":
                    await source.pwrite(memoryview(draw.randbytes(length)), at)
                else:
                    await getattr(source, change)(at, length)
                assert await read(source, at, length) == below.data[at : at + length]
                view = source.view(at, length)
                assert view is None or view == below.data[at : at + length]
        for at in range(0, 32 * MIB, MIB):
            assert await read(source, at, MIB) == below.data[at : at + MIB]


async def test_an_error_of_a_fetch_reaches_only_who_reads_there(autojump_clock: trio.testing.MockClock) -> None:
    below = Slow(0.002)
    below.broken = range(5 * MIB, 5 * MIB + 1)
    failed = []
    async with readahead(below, 8 * MIB, 32 * MIB) as source:
        for at in range(0, 8 * MIB, 128 << 10):
            try:
                assert await read(source, at, 128 << 10) == below.data[at : at + (128 << 10)]
            except OSError as error:
                failed.append((at, error.errno))
        below.broken = range(0)
        assert await read(source, 5 * MIB, MIB) == below.data[5 * MIB : 6 * MIB]
    assert failed == [(5 * MIB, errno.EIO)]


async def test_a_block_is_not_kept_for_long(autojump_clock: trio.testing.MockClock) -> None:
    below = Slow(0.002)
    async with readahead(below, 8 * MIB, 32 * MIB) as source:
        for at in range(0, MIB, 128 << 10):
            await read(source, at, 128 << 10)
        await trio.sleep(3)
        below.data[MIB] ^= 0xFF  # another client of the same device
        assert await read(source, MIB, 128 << 10) == below.data[MIB : MIB + (128 << 10)]


async def test_fetches_that_are_no_tasks_end_with_the_layer_too() -> None:
    class Parking(Slow):
        eager = True

        async def pread_into(self, buffer: memoryview, offset: int) -> None:
            if offset:
                self.under_way += 1
                try:
                    await arrival.wait()
                    await eager.task()  # as a client does whose connection is lost
                finally:
                    self.under_way -= 1

    arrival, source = Signal(), Parking()
    async with readahead(source, 4 * MIB, 8 * MIB) as layer:
        for _ in range(4):
            await layer.pread_into(memoryview(bytearray(1)), 0)
        assert source.under_way > 0
    assert source.under_way == 0
    arrival.set()


async def test_it_tells_what_of_reads_was_there() -> None:
    base = Slow()
    async with readahead(base, 4 * MIB, 16 * MIB) as layer:
        for at in range(0, 8 * MIB, MIB):
            await read(layer, at, MIB)
            await trio.testing.wait_all_tasks_blocked()
        told = layer.statistics()
    assert told["hits_total"] + told["misses_total"] == 8
    assert told["hits_total"] > told["misses_total"] > 0


async def test_a_change_of_all_of_a_huge_device_is_no_walk_over_it() -> None:
    async with readahead(Zero(1 << 62), 4 * MIB, 16 * MIB) as layer:
        for at in range(0, 8 * MIB, MIB):
            await read(layer, at, MIB)
        await layer.zero(0, 1 << 62)
        assert await read(layer, 8 * MIB, MIB) == bytes(MIB)
