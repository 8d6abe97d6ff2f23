"""What becomes of reads, claims and priorities of pieces, beside a torrent that is not real."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

pytest.importorskip("libtorrent", reason="the torrent extra is not installed")

from nbdfs.backends.torrent.eviction import Eviction
from nbdfs.backends.torrent.pieces import Pieces
from nbdfs.backends.torrent.sharing import Sharing
from nbdfs.backends.torrent.swarm import Swarm

PIECES, LENGTH = 20, 16 << 10
READER = b"-nB0100-000000000000"


class Handle:
    """libtorrent's handle of a torrent, as far as pieces are concerned."""

    def __init__(self) -> None:
        self.priorities = [0] * PIECES

    def piece_priority(self, piece: int, priority: int) -> None:
        self.priorities[piece] = priority

    def set_piece_deadline(self, piece: int, after: int) -> None:
        pass

    reset_piece_deadline = unset_flags = set_flags = lambda self, *what: None


class Place(SimpleNamespace):
    """A torrent in a session and its pieces, with nobody else there."""

    def __init__(self) -> None:
        options = SimpleNamespace(timeout=1.0, sequential=True)
        self.membership: Any = SimpleNamespace(
            handle=Handle(), metainfo=SimpleNamespace(pieces=PIECES, piece_length=LENGTH)
        )
        circle: Any = SimpleNamespace(handle=None)
        sharing = Sharing(READER, PIECES, LENGTH)
        swarm = Swarm(self.membership, circle, sharing, options)
        self.pieces = Pieces(self.membership, circle, swarm, sharing, Eviction(0, LENGTH), options)


class AtTheLastMoment(trio.abc.Instrument):
    """Has a piece come when a task that waited for it has been cancelled but has not run since."""

    def __init__(self, pieces: Pieces, waiter: trio.lowlevel.Task, end: float) -> None:
        self._pieces = pieces
        self._waiter = waiter
        self._end = end

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._waiter and trio.current_time() >= self._end and not self._pieces.here[3]:
            self._pieces.came(3)


async def test_a_piece_that_comes_in_the_moment_in_which_the_time_is_up_is_read(autojump_clock: MockClock) -> None:
    pieces = Place().pieces
    late = AtTheLastMoment(pieces, trio.lowlevel.current_task(), trio.current_time() + 1)
    trio.lowlevel.add_instrument(late)
    try:
        with pieces.claimed(range(3, 4)):
            await pieces.arrived(range(3, 4))
    finally:
        trio.lowlevel.remove_instrument(late)
    assert trio.current_time() >= late._end


async def test_a_piece_that_does_not_come_is_told(autojump_clock: MockClock) -> None:
    pieces = Place().pieces
    with pieces.claimed(range(3, 5)), pytest.raises(OSError, match=r"2 pieces from 3 on did not come") as caught:
        await pieces.arrived(range(3, 5))
    assert caught.value.errno == errno.EIO


async def test_what_is_prefetched_while_the_torrent_is_out_of_the_session_is_wanted_when_it_is_back() -> None:
    place = Place()
    handle, place.membership.handle = place.membership.handle, None
    place.pieces.prefetch(range(4))
    assert not any(handle.priorities)
    assert list(place.pieces.background[:5]) == [1, 1, 1, 1, 0]
    place.membership.handle = handle
    place.pieces.prefetch(range(4, 6))
    assert handle.priorities[:7] == [0, 0, 0, 0, 1, 1, 0]
