"""A read waits for another reader for a while, then asks everybody."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from nbdfs.backends.torrent.patience import Patience
from nbdfs.backends.torrent.sharing import Sharing, Way

PIECES, LENGTH = 32, 256 << 10
OURSELVES, OTHER = b"-nB0100-000000000000", b"-nB0100-000000000001"
LONGEST = 30.0


def beside(*have: int, seeds: bool = True) -> Sharing:
    """What a reader makes of another one that has some pieces."""
    sharing = Sharing(OURSELVES, PIECES, LENGTH)
    see(sharing, *have, seeds=seeds)
    return sharing


def see(sharing: Sharing, *have: int, seeds: bool = True) -> None:
    pieces = bytes(piece in have for piece in range(PIECES))
    sharing.look({OTHER: pieces}, (), (), expected=(), seeds=seeds, now=trio.current_time())


def one_of(sharing: Sharing, way: Way) -> int:
    return next(piece for piece in range(PIECES) if sharing.way(piece) is way)


async def seconds_until_it_insists(patience: Patience, piece: int) -> float:
    start = trio.current_time()
    while patience.way(piece) is not Way.OURS:
        patience.look([piece], [piece])
        await trio.sleep(0.1)
    return trio.current_time() - start


async def test_a_read_insists_on_a_piece_that_its_owner_does_not_get(autojump_clock: MockClock) -> None:
    sharing = beside()
    piece, patience = one_of(sharing, Way.THEIRS), Patience(sharing, LONGEST)
    assert sharing.patience(piece, []) < await seconds_until_it_insists(patience, piece) < LONGEST
    see(sharing)
    assert sharing.alone  # the owner is not counted any more
    patience.forget(piece)
    see(sharing, piece)
    assert patience.way(piece) is Way.CIRCLE


async def test_without_a_seed_the_longest_is_waited(autojump_clock: MockClock) -> None:
    sharing = beside(seeds=False)
    piece = one_of(sharing, Way.THEIRS)
    assert await seconds_until_it_insists(Patience(sharing, LONGEST), piece) > LONGEST


async def test_a_piece_that_a_reader_has_is_waited_for_while_readers_send_much(autojump_clock: MockClock) -> None:
    for flow, waits_long in (1 << 20, True), (0, False):
        sharing = beside(3)
        sharing.flow = flow
        waited = await seconds_until_it_insists(Patience(sharing, LONGEST), 3)
        assert (waited > LONGEST) is waits_long
        see(sharing, 3)
        assert sharing.way(3) is not Way.CIRCLE  # that reader is not asked for a while


async def test_a_wait_that_ended_counts_no_more(autojump_clock: MockClock) -> None:
    sharing = beside()
    piece, patience = one_of(sharing, Way.THEIRS), Patience(sharing, LONGEST)
    patience.look([piece], [piece])
    patience.look([], [piece])
    await trio.sleep(2 * LONGEST)
    patience.look([piece], [piece])
    assert patience.way(piece) is Way.THEIRS
