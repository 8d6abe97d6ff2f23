"""Which pieces are dropped when the cache is full."""

from __future__ import annotations

import trio
import trio.testing

from nbdfs.backends.torrent.eviction import Eviction


async def dropped(used: list[int], claimed: set[int]) -> list[int]:
    """What has to go when a cache of ten pieces gets twelve, of which some were used since."""
    eviction = Eviction(cache_size=10, piece_length=1)
    gone: list[int] = []

    async def drop(pieces: list[int]) -> None:
        gone.extend(pieces)
        eviction.remove(pieces)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(eviction.run, claimed, drop)
        for piece in range(12):
            eviction.add(piece)
        for piece in used:
            eviction.touch(range(piece, piece + 1))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return gone


async def test_what_is_unused_for_longest_goes_first() -> None:
    assert await dropped([], set()) == [0, 1, 2, 3, 4]
    assert await dropped([2, 0], set()) == [1, 3, 4, 5, 6]


async def test_what_somebody_reads_stays() -> None:
    assert await dropped([], {0, 3}) == [1, 2, 4, 5, 6]
    assert await dropped([], set(range(11))) == [11]


async def test_what_comes_while_others_are_dropped_drops_no_more_than_it_must() -> None:
    eviction = Eviction(cache_size=10, piece_length=1)
    gone: list[list[int]] = []

    async def drop(pieces: list[int]) -> None:
        gone.append(pieces)
        eviction.add(20)
        eviction.remove(pieces)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(eviction.run, (), drop)
        for piece in range(11):
            eviction.add(piece)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert gone == [[0, 1, 2, 3]]
