"""What the `cache` layer fetches around a missing block: as much as is cheap, while it is of use."""

from __future__ import annotations

import errno
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from nbdfs.backends.cache import CacheOptions
from nbdfs.backends.cache.around import Around
from nbdfs.backends.cache.layer import open_cache
from nbdfs.checked import Checked
from nbdfs.errors import SourceError
from nbdfs.source import read
from tests.devices import Ram

BLOCK = 64 << 10
LATENCY = 0.010  # seconds


class Far(Ram):
    """A device behind a round trip and a wire of `rate` bytes a second."""

    def __init__(self, content: bytes, rate: float) -> None:
        super().__init__(content, identity="x")
        self.rate = rate

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        await trio.sleep(LATENCY + len(buffer) / self.rate)
        await super().pread_into(buffer, offset)


@asynccontextmanager
async def cached(base: Ram, mode: str = "read") -> AsyncIterator[Checked]:
    async with open_cache(base, CacheOptions(size=1 << 30, mode=mode)) as layer:
        yield Checked(layer)


async def read_at_random(layer: Checked, base: Ram, count: int, seed: int = 1) -> None:
    chance = random.Random(seed)
    for _ in range(count):
        offset = chance.randrange(len(base.content) // 4096) * 4096
        assert await read(layer, offset, 4096) == base.content[offset : offset + 4096]


def content(size: int) -> bytes:
    return random.Random(3).randbytes(1 << 20) * (size >> 20)


async def test_a_fast_wire_has_neighbours_fetched_along(autojump_clock: trio.testing.MockClock) -> None:
    base = Far(content(32 << 20), rate=1e9)
    async with cached(base) as layer:
        await read_at_random(layer, base, 2000)
    assert len(base.names("read")) < 100  # by the block there would be 512
    assert max(length for _, length in base.names("read")) == 1 << 20


async def test_small_steps_on_and_on_wait_for_few_round_trips(
    autojump_clock: trio.testing.MockClock,
) -> None:
    base = Far(content(32 << 20), rate=1e9)
    async with cached(base) as layer:
        for at in range(0, 32 << 20, 2 * BLOCK):
            await read(layer, at, 2 * BLOCK)
    assert len(base.names("read")) < 60  # of 256 reads


async def test_a_slow_wire_has_only_what_is_asked_for_fetched(autojump_clock: trio.testing.MockClock) -> None:
    base = Far(content(32 << 20), rate=5e6)  # a block more would take longer than the round trip
    async with cached(base) as layer:
        await read_at_random(layer, base, 200)
    lengths = [length for _, length in base.names("read")]
    assert sum(length > BLOCK for length in lengths) < len(lengths) / 10


async def test_a_wire_between_gets_a_window_that_is_cheap_on_it(autojump_clock: trio.testing.MockClock) -> None:
    base = Far(content(64 << 20), rate=50e6)
    async with cached(base) as layer:
        await read_at_random(layer, base, 300)
    exact = LATENCY + BLOCK / base.rate
    late = base.names("read")[-50:]
    assert all(LATENCY + length / base.rate <= 1.5 * exact for _, length in late)
    assert max(length for _, length in late) > BLOCK


async def test_neighbours_that_nobody_reads_are_no_longer_fetched(autojump_clock: trio.testing.MockClock) -> None:
    base = Far(content(1 << 20), rate=1e9)
    around = Around(BLOCK, 1 << 14)
    for number in range(600):
        around.fetched(blocks := around.window(0), 1, LATENCY + blocks * BLOCK / base.rate)
        if number < 100:
            continue
    windows = [around.window(0) for _ in range(256)]
    assert sum(size > 1 for size in windows) <= 4


def test_what_is_of_use_again_is_fetched_again() -> None:
    around = Around(BLOCK, 1 << 14)
    for _ in range(600):
        around.fetched(around.window(0), 1, LATENCY)
    assert [around.window(0) for _ in range(32)].count(1) >= 31
    assert [around.window(10) for _ in range(32)].count(16) >= 28  # ten neighbours were read


def test_the_window_is_a_small_part_of_the_cache() -> None:
    for capacity in 16, 64, 128, 1024:
        around = Around(BLOCK, capacity)
        for _ in range(100):
            size = around.window(0)
            assert size <= max(capacity // 8, 1)
            around.fetched(size, 1, LATENCY)


async def test_only_what_is_missing_is_fetched_along(autojump_clock: trio.testing.MockClock) -> None:
    base = Far(content(16 << 20), rate=1e9)
    async with cached(base, mode="writethrough") as layer:
        for number in range(64, 256):
            await read(layer, number * BLOCK, 10)
        await layer.pwrite(memoryview(b"w" * BLOCK), 5 * BLOCK)
        base.log.clear()
        for number in 4, 3, 6, 7:  # one fetch of so many may be of a block alone
            await read(layer, number * BLOCK, 10)
        fetched = sorted(block for at, size in base.names("read") for block in range(at // BLOCK, (at + size) // BLOCK))
        assert fetched == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
        assert await read(layer, 0, 1 << 20) == base.content[: 1 << 20]


async def test_an_unreadable_neighbour_hinders_nobody(autojump_clock: trio.testing.MockClock) -> None:
    base = Far(content(4 << 20), rate=1e9)
    bad = 3 * BLOCK
    base.fail = lambda name, offset, length: errno.EIO if offset <= bad < offset + length else 0
    async with cached(base) as layer:
        for number in range(16, 64):
            await read(layer, number * BLOCK, 10)
        assert await read(layer, 0, BLOCK) == base.content[:BLOCK]
        with pytest.raises(OSError) as caught:
            await read(layer, bad, 10)
        assert caught.value.errno == errno.EIO


async def test_a_server_that_does_not_answer_is_not_asked_twice(autojump_clock: trio.testing.MockClock) -> None:
    base = Far(content(4 << 20), rate=1e9)

    def fail(name: str, offset: int, length: int) -> int:
        raise SourceError(errno.EIO, "no answer", retryable=True)

    async with cached(base) as layer:
        for number in range(16, 64):
            await read(layer, number * BLOCK, 10)
        base.fail = fail
        base.log.clear()
        with pytest.raises(OSError):
            await read(layer, 0, 10)
        assert len(base.names("read")) == 1


async def test_readers_of_one_window_fetch_it_once(autojump_clock: trio.testing.MockClock) -> None:
    base = Far(content(16 << 20), rate=1e9)
    async with cached(base) as layer:
        for number in range(64, 256):
            await read(layer, number * BLOCK, 10)
        base.log.clear()
        async with trio.open_nursery() as nursery:
            for number in range(16):
                nursery.start_soon(read, layer, number * BLOCK, 4096)
        assert sum(length for _, length in base.names("read")) == 1 << 20


async def test_a_write_in_a_window_under_way_is_not_undone(autojump_clock: trio.testing.MockClock) -> None:
    base = Far(content(16 << 20), rate=1e9)
    async with cached(base) as layer:
        for number in range(64, 256):
            await read(layer, number * BLOCK, 10)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, layer, 0, 10)
            await trio.sleep(LATENCY / 2)
            await layer.pwrite(memoryview(b"w" * 100), 7 * BLOCK)
        assert await read(layer, 7 * BLOCK, 100) == b"w" * 100
        assert base.content[7 * BLOCK : 7 * BLOCK + 100] == b"w" * 100


def test_a_noisy_wire_hides_nothing() -> None:
    """Every fetch may take up to three times as long as it need: what is cheap is found all the same."""
    chance = random.Random(5)
    around = Around(BLOCK, 1 << 14)
    for _ in range(200):
        size = around.window(0)
        around.fetched(size, 1, LATENCY * (1 + 0.015 * size) * (1 + 2 * chance.random() ** 3))
    assert sum(around.window(0) for _ in range(64)) > 64 * 4
