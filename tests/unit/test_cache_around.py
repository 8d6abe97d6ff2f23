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
from nbdfs.source import read
from tests.devices import Ram

BLOCK = 64 << 10
LATENCY = 0.010  # seconds


class Far(Ram):
    """A device behind a round trip and one wire of `rate` bytes a second, on which answers wait for each other."""

    def __init__(self, content: bytes, rate: float) -> None:
        super().__init__(content, identity="x")
        self.rate = rate
        self._free = 0.0

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        self._free = max(trio.current_time() + LATENCY, self._free) + len(buffer) / self.rate
        await trio.sleep_until(self._free)
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


def misses(layer: Checked) -> int:
    return layer.below.statistics()["misses_total"]


async def learn(layer: Checked) -> None:
    """Have it find out, beyond the first 8 MiB, that windows are cheap; nothing is under way afterwards."""
    for number in range(128, 384):
        await read(layer, number * BLOCK, 10)
    await trio.sleep(1)


def fetched(base: Ram) -> list[int]:
    """The blocks that were read from below."""
    return sorted(block for at, size in base.names("read") for block in range(at // BLOCK, (at + size) // BLOCK))


async def test_a_fast_wire_has_neighbours_fetched_along(autojump_clock: trio.testing.MockClock) -> None:
    base = Far(content(32 << 20), rate=1e9)
    async with cached(base) as layer:
        await read_at_random(layer, base, 2000)
        assert misses(layer) < 100  # by the block there would be 512
    assert max(length for _, length in base.names("read")) > 8 * BLOCK


async def test_small_steps_on_and_on_wait_for_few_round_trips(autojump_clock: trio.testing.MockClock) -> None:
    base = Far(content(32 << 20), rate=1e9)
    async with cached(base) as layer:
        began = trio.current_time()
        for at in range(0, 32 << 20, 2 * BLOCK):
            await read(layer, at, 2 * BLOCK)
        assert trio.current_time() - began < 100 * LATENCY  # for 256 reads


async def test_a_reader_does_not_wait_for_the_neighbours(autojump_clock: trio.testing.MockClock) -> None:
    base = Far(content(32 << 20), rate=1e9)
    async with cached(base) as layer:
        await learn(layer)
        for number in range(2):
            began = trio.current_time()
            await read(layer, number * (4 << 20), 10)
            assert trio.current_time() - began == pytest.approx(LATENCY + BLOCK / base.rate)
            await trio.sleep(1)
        assert len(fetched(base)) >= 256 + 2 + 16  # learning, two blocks and the neighbours of at least one


async def test_a_slow_wire_has_only_what_is_asked_for_fetched(autojump_clock: trio.testing.MockClock) -> None:
    base = Far(content(32 << 20), rate=1e6)  # a block more takes six times the round trip
    async with cached(base) as layer:
        await read_at_random(layer, base, 100)
        before = len(base.names("read")), misses(layer)
        await read_at_random(layer, base, 100, seed=2)
        alone = misses(layer) - before[1]
    assert len(base.names("read")) - before[0] < 1.2 * alone


async def test_a_wire_between_slows_nobody_down_by_more_than_half(autojump_clock: trio.testing.MockClock) -> None:
    base = Far(content(256 << 20), rate=50e6)
    async with cached(base) as layer:
        await read_at_random(layer, base, 200)
        began, before = trio.current_time(), misses(layer)
        await read_at_random(layer, base, 200, seed=2)
        each = (trio.current_time() - began) / (misses(layer) - before)
    assert each <= 1.6 * (LATENCY + BLOCK / base.rate)
    assert max(length for _, length in base.names("read")[-100:]) > BLOCK


def test_neighbours_that_nobody_reads_are_no_longer_fetched() -> None:
    around = Around(BLOCK, 1 << 14)
    for _ in range(600):
        around.took(around.window(0), 1, LATENCY)
    assert sum(around.window(0) > 1 for _ in range(256)) <= 4


def test_what_is_of_use_again_is_fetched_again() -> None:
    around = Around(BLOCK, 1 << 14)
    for _ in range(600):
        around.took(around.window(0), 1, LATENCY)
    assert [around.window(0) for _ in range(32)].count(1) >= 31
    assert [around.window(10) for _ in range(32)].count(32) >= 28  # ten neighbours were read


def test_the_window_is_a_small_part_of_the_cache() -> None:
    for capacity in 16, 64, 128, 1024:
        around = Around(BLOCK, capacity)
        for _ in range(100):
            size = around.window(0)
            assert size <= max(capacity // 8, 1)
            around.took(size, 1, LATENCY)


def test_a_noisy_wire_hides_nothing() -> None:
    """Every fetch may take up to three times as long as it need: what is cheap is found all the same."""
    chance = random.Random(5)
    around = Around(BLOCK, 1 << 14)
    for _ in range(200):
        size = around.window(0)
        around.took(size, 1, LATENCY * (1 + 0.015 * size) * (1 + 2 * chance.random() ** 3))
    assert sum(around.window(0) for _ in range(64)) > 64 * 4


def test_a_fetch_that_found_all_at_hand_is_no_measure() -> None:
    around = Around(BLOCK, 1 << 14)
    for number in range(200):
        size = around.window(0)
        around.took(size, 1, LATENCY / 100 if number % 10 == 0 else LATENCY)
    assert sum(around.window(0) for _ in range(64)) > 64 * 4


async def test_only_what_is_missing_is_fetched_along(autojump_clock: trio.testing.MockClock) -> None:
    base = Far(content(32 << 20), rate=1e9)
    async with cached(base, mode="writethrough") as layer:
        await learn(layer)
        await layer.pwrite(memoryview(b"w" * BLOCK), 5 * BLOCK)
        base.log.clear()
        for number in 4, 3, 2, 6, 7:  # one fetch of so many is of a block alone
            await read(layer, number * BLOCK, 10)
            await trio.sleep(1)
        assert fetched(base)[:15] == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
        assert len(set(fetched(base))) == len(fetched(base))
        assert await read(layer, 0, 1 << 20) == base.content[: 1 << 20]


async def test_an_unreadable_neighbour_hinders_nobody(autojump_clock: trio.testing.MockClock) -> None:
    base = Far(content(32 << 20), rate=1e9)
    bad = 3 * BLOCK
    base.fail = lambda name, offset, length: errno.EIO if offset <= bad < offset + length else 0
    async with cached(base) as layer:
        await learn(layer)
        assert await read(layer, 0, BLOCK) == base.content[:BLOCK]
        assert await read(layer, 4 * BLOCK, BLOCK) == base.content[4 * BLOCK : 5 * BLOCK]
        with pytest.raises(OSError) as caught:
            await read(layer, bad, 10)
        assert caught.value.errno == errno.EIO


async def test_readers_of_one_window_fetch_it_once(autojump_clock: trio.testing.MockClock) -> None:
    base = Far(content(32 << 20), rate=1e9)
    async with cached(base) as layer:
        await learn(layer)
        base.log.clear()
        async with trio.open_nursery() as nursery:
            for number in range(16):
                nursery.start_soon(read, layer, number * BLOCK, 4096)
        await trio.sleep(1)
        assert fetched(base)[:16] == list(range(16))
        assert len(set(fetched(base))) == len(fetched(base))


async def test_a_write_in_a_window_under_way_is_not_undone(autojump_clock: trio.testing.MockClock) -> None:
    base = Far(content(32 << 20), rate=1e9)
    async with cached(base) as layer:
        await learn(layer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, layer, 0, 10)
            await trio.sleep(LATENCY / 2)
            await layer.pwrite(memoryview(b"w" * 100), 7 * BLOCK)
        await trio.sleep(1)
        assert await read(layer, 7 * BLOCK, 100) == b"w" * 100
        assert base.content[7 * BLOCK : 7 * BLOCK + 100] == b"w" * 100


async def test_closing_waits_for_no_neighbours(autojump_clock: trio.testing.MockClock) -> None:
    base = Far(content(32 << 20), rate=1e9)
    async with cached(base) as layer:
        await learn(layer)
        base.rate = 1e3  # the neighbours would take a quarter of an hour
        await read(layer, 0, 10)
        ending = trio.current_time()
    assert trio.current_time() == ending
