"""How much is asked for at a time: what is needed first, and about as much as comes in a second."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from nbdfs.backends.torrent.front import Front


def ask(front: Front) -> list[int]:
    """Ask for all whose turn it is."""
    asked = []
    for _, piece in front.take():
        front.ask(piece)
        asked.append(piece)
    return asked


def queue(fewest: int = 4, pieces: int = 1000) -> Front:
    front = Front(fewest, pieces)
    for piece in reversed(range(pieces)):
        front.put(piece, due=float(piece))
    return front


async def test_what_is_needed_first_is_asked_for_first_and_no_more_than_a_few() -> None:
    front = queue()
    assert ask(front) == [0, 1, 2, 3]
    assert ask(front) == []
    front.came(1)
    assert ask(front) == [4]


async def test_a_slow_peer_is_asked_for_little(mock_clock: MockClock) -> None:
    front = queue()
    ask(front)
    for piece in range(20):
        mock_clock.jump(0.5)
        front.came(piece)
        ask(front)
        assert len(front.asked) == 4


async def test_bursts_do_not_look_like_a_fast_peer(mock_clock: MockClock) -> None:
    front = queue()
    ask(front)
    for _ in range(10):
        mock_clock.jump(1.0)
        for piece in sorted(front.asked)[:4]:
            front.came(piece)
        ask(front)
        assert len(front.asked) <= 16


async def test_a_fast_peer_is_asked_for_much_soon(mock_clock: MockClock) -> None:
    front = queue()
    ask(front)
    for _ in range(3):
        mock_clock.jump(0.01)
        for piece in sorted(front.asked):
            front.came(piece)
        ask(front)
    assert len(front.asked) > 100


async def test_what_does_not_come_holds_nothing_up(mock_clock: MockClock) -> None:
    front = queue()
    assert ask(front) == [0, 1, 2, 3]
    mock_clock.jump(6)
    assert ask(front) == [4, 5, 6, 7]
    front.drop(0)
    assert ask(front) == []


async def test_pieces_that_are_wanted_again_and_again_take_no_more_room_than_all() -> None:
    front = Front(1, 100)
    for due in range(10_000):
        front.put(due % 100, float(due))
    assert len(front._queue) <= 200


async def test_a_queue_that_is_cleared_starts_anew(autojump_clock: MockClock) -> None:
    front = queue()
    ask(front)
    front.clear()
    front.put(7, trio.current_time())
    assert ask(front) == [7]
