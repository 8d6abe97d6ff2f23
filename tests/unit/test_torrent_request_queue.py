"""How much is asked for at a time: what is needed first, and about as much as comes in a second."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from nbdfs.backends.torrent.request_queue import RequestQueue


def ask(requests: RequestQueue) -> list[int]:
    """Ask for all whose turn it is."""
    asked = []
    for _, piece in requests.take():
        requests.ask(piece)
        asked.append(piece)
    return asked


def queue(fewest: int = 4, pieces: int = 1000) -> RequestQueue:
    requests = RequestQueue(fewest, pieces)
    for piece in reversed(range(pieces)):
        requests.put(piece, due=float(piece))
    return requests


async def test_what_is_needed_first_is_asked_for_first_and_no_more_than_a_few() -> None:
    requests = queue()
    assert ask(requests) == [0, 1, 2, 3]
    assert ask(requests) == []
    requests.came(1)
    assert ask(requests) == [4]


async def test_a_slow_peer_is_asked_for_little(mock_clock: MockClock) -> None:
    requests = queue()
    ask(requests)
    for piece in range(20):
        mock_clock.jump(0.5)
        requests.came(piece)
        ask(requests)
        assert len(requests.asked) == 4


async def test_bursts_do_not_look_like_a_fast_peer(mock_clock: MockClock) -> None:
    requests = queue()
    ask(requests)
    for _ in range(10):
        mock_clock.jump(1.0)
        for piece in sorted(requests.asked)[:4]:
            requests.came(piece)
        ask(requests)
        assert len(requests.asked) <= 16


async def test_a_fast_peer_is_asked_for_much_soon(mock_clock: MockClock) -> None:
    requests = queue()
    ask(requests)
    for _ in range(3):
        mock_clock.jump(0.01)
        for piece in sorted(requests.asked):
            requests.came(piece)
        ask(requests)
    assert len(requests.asked) > 100


async def test_what_does_not_come_holds_nothing_up(mock_clock: MockClock) -> None:
    requests = queue()
    assert ask(requests) == [0, 1, 2, 3]
    mock_clock.jump(6)
    assert ask(requests) == [4, 5, 6, 7]
    requests.drop(0)
    assert ask(requests) == []


async def test_pieces_that_are_wanted_again_and_again_take_no_more_room_than_all() -> None:
    requests = RequestQueue(1, 100)
    for due in range(10_000):
        requests.put(due % 100, float(due))
    assert len(requests._queue) <= 200


async def test_a_queue_that_is_cleared_starts_anew(autojump_clock: MockClock) -> None:
    requests = queue()
    ask(requests)
    requests.clear()
    requests.put(7, trio.current_time())
    assert ask(requests) == [7]
