"""Which pieces are dropped when the cache is full."""

from __future__ import annotations

import trio
import trio.testing

from nbdfs.backends.torrent.room import Room


async def dropped(used: list[int], claimed: set[int]) -> list[int]:
    """What has to go when a room for ten pieces gets twelve, of which some were used since."""
    room = Room(cache_size=10, piece_length=1)
    gone: list[int] = []

    async def drop(pieces: list[int]) -> None:
        gone.extend(pieces)
        room.leave(pieces)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(room.keep, claimed, drop)
        for piece in range(12):
            room.take(piece)
        for piece in used:
            room.touch(range(piece, piece + 1))
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
    room = Room(cache_size=10, piece_length=1)
    gone: list[list[int]] = []

    async def drop(pieces: list[int]) -> None:
        gone.append(pieces)
        room.take(20)
        room.leave(pieces)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(room.keep, (), drop)
        for piece in range(11):
            room.take(piece)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert gone == [[0, 1, 2, 3]]
