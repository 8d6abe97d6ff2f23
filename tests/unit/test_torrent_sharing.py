"""Which reader asks for which piece: all agree without a word, evenly, and nobody waits for ever."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from nbdfs.backends.torrent.session import FINGERPRINT, peer_id
from nbdfs.backends.torrent.sharing import Sharing, Way, begun
from nbdfs.backends.torrent.swarm import Swarm

PIECES, LENGTH = 100, 256 << 10
NOTHING = bytes(PIECES)
READERS = [f"-nB0100-{number:012}".encode() for number in range(8)]


def sharing(who: bytes, others: dict[bytes, bytes], strangers: tuple[bytes, ...] = ()) -> Sharing:
    """What a reader makes of the others and their pieces."""
    made = Sharing(who, PIECES, LENGTH)
    see(made, others, strangers)
    return made


def see(
    made: Sharing, others: dict[bytes, bytes], strangers: tuple[bytes, ...] = (), wanted: Collection[int] = (),
    *, expected: Collection[bytes] = (), seeds: bool = True, now: float = 0.0,
) -> None:  # fmt: skip
    """Have a reader look at the others and their pieces, with a seed beside them unless told otherwise."""
    made.look(others, strangers, wanted, expected=expected, seeds=seeds, now=now)


def having(*pieces: int) -> bytes:
    return bytes(piece in pieces for piece in range(PIECES))


def everybody(readers: list[bytes]) -> list[Sharing]:
    return [sharing(who, {other: NOTHING for other in readers if other != who}) for who in readers]


@given(st.sets(st.binary(min_size=20, max_size=20), min_size=1, max_size=20))
def test_all_readers_agree_and_each_piece_has_one_owner(names: set[bytes]) -> None:
    views = everybody(list(names))
    for piece in range(PIECES):
        assert len({view.owner(piece) for view in views}) == 1
        assert [view.way(piece) for view in views].count(Way.OURS) == 1
        assert set(views[0].order(piece)) == names


def test_who_meets_itself_counts_once() -> None:
    view = everybody(READERS[:2])[0]
    see(view, {READERS[0]: NOTHING, READERS[1]: NOTHING})
    assert view.members == tuple(READERS[:2])
    assert set(Counter(view.owner(piece) for piece in range(16)).values()) == {8}


def test_every_row_is_shared_evenly() -> None:
    view = everybody(READERS)[0]
    assert set(Counter(view.owner(piece) for piece in range(16)).values()) == {2}


def test_who_comes_takes_pieces_and_leaves_most_others_with_theirs() -> None:
    before, after = everybody(READERS[:7])[0], everybody(READERS)[0]
    moved = [piece for piece in range(PIECES) if before.owner(piece) != after.owner(piece)]
    assert len(moved) < PIECES // 2
    assert any(after.owner(piece) == READERS[7] for piece in moved)


def test_alone_everything_is_ours_whoever_else_downloads() -> None:
    view = sharing(READERS[0], {}, strangers=(having(3),))
    assert view.alone
    assert {view.way(piece) for piece in range(PIECES)} == {Way.OURS}


def test_what_a_reader_has_is_had_in_the_circle_and_from_nobody_else() -> None:
    view = everybody(READERS[:2])[0]
    ours = next(piece for piece in range(PIECES) if view.way(piece) is Way.OURS)
    theirs = [piece for piece in range(PIECES) if view.way(piece) is Way.THEIRS]
    see(view, {READERS[1]: having(ours, theirs[0])}, strangers=(having(ours, *theirs[:2]),))
    assert view.way(ours) is Way.CIRCLE
    assert [view.way(piece) for piece in theirs[:3]] == [Way.CIRCLE, Way.OTHERS, Way.THEIRS]


@pytest.mark.parametrize(("pieces", "length", "owners"), [(1, 4 << 20, 1), (4, 1 << 20, 4), (8, 256 << 10, 4)])
def test_a_small_torrent_is_owned_by_the_oldest(pieces: int, length: int, owners: int) -> None:
    view = Sharing(READERS[3], pieces, length)
    see(view, {reader: bytes(pieces) for reader in READERS if reader != READERS[3]})
    assert {view.owner(piece) for piece in range(pieces)} == set(READERS[:owners])


def test_who_is_expected_owns_pieces_but_is_not_waited_for_until_it_has_come() -> None:
    view = sharing(READERS[0], {})
    see(view, {}, expected=[READERS[1]])
    piece = next(piece for piece in range(PIECES) if view.way(piece) is Way.THEIRS)
    assert not view.may_come(piece)
    see(view, {READERS[1]: NOTHING})
    assert view.may_come(piece)
    see(view, {READERS[1]: NOTHING}, seeds=False)
    assert not view.may_come(piece)


def test_a_reader_that_was_waited_for_in_vain_is_one_again_when_it_has_what_is_wanted() -> None:
    view = everybody(READERS[:2])[0]
    piece = next(piece for piece in range(PIECES) if view.way(piece) is Way.THEIRS)
    view.in_vain(piece, view.counts())
    see(view, {READERS[1]: NOTHING})
    assert view.alone
    see(view, {READERS[1]: having(piece + 1)}, wanted=range(piece, piece + 1))
    assert view.alone
    see(view, {READERS[1]: having(piece)}, wanted=range(piece, piece + 1))
    assert not view.alone


def test_one_read_in_vain_tells_of_all_readers_that_get_nothing() -> None:
    view = everybody(READERS[:4])[0]
    piece = next(piece for piece in range(PIECES) if view.owner(piece) == READERS[1])
    had = view.counts()
    got = {READERS[1]: NOTHING, READERS[2]: having(5), READERS[3]: NOTHING}
    see(view, got)
    view.in_vain(piece, had)
    see(view, got)
    assert view.members == (READERS[0], READERS[2])


def test_patience_is_for_the_pieces_before_and_ends_in_turn() -> None:
    views = everybody(READERS[:3])
    for view in views:
        view.pace = LENGTH  # a piece a second
    owner = views[0].owner(40)
    others = [view for view, name in zip(views, READERS, strict=False) if name != owner]
    waits = [view.patience(40, []) for view in others]
    assert min(waits) > 2
    assert waits[0] != waits[1]
    before = [piece for piece in range(40) if views[0].owner(piece) == owner]
    assert others[0].patience(40, before) > waits[0] + len(before)


async def test_peer_ids_are_in_the_order_in_which_their_sessions_began() -> None:
    ids = []
    for _ in range(3):
        ids.append(peer_id())
        await trio.sleep(0.02)
    assert ids == sorted(ids)
    assert all(len(name) == 20 and name.startswith(FINGERPRINT) for name in ids)
    assert abs(begun(ids[0]) - time.time()) < 60


def young_and_old(monkeypatch: pytest.MonkeyPatch) -> tuple[bytes, bytes]:
    """The names of a reader that begins now, and of one that began a minute ago."""
    young = peer_id()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: begun(young) - 60)
        return young, peer_id()


@pytest.mark.parametrize(("seeds", "waits"), [(True, False), (False, True)])
def test_a_reader_that_began_long_ago_and_has_nothing_is_not_waited_for_if_there_was_a_seed(
    monkeypatch: pytest.MonkeyPatch, seeds: bool, waits: bool
) -> None:
    young, old = young_and_old(monkeypatch)
    view = Sharing(young, PIECES, LENGTH)
    see(view, {old: NOTHING}, wanted=[3], seeds=seeds)
    assert view.alone is not waits
    see(view, {old: having(3)}, wanted=[3], seeds=seeds)
    assert not view.alone


async def test_joining_anew_is_no_proof_that_there_was_a_seed(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    young, old = young_and_old(monkeypatch)
    view = Sharing(young, PIECES, LENGTH)
    nothing: Any = SimpleNamespace()
    swarm = Swarm(nothing, nothing, view, nothing)
    await trio.sleep(100)
    swarm.begin_anew()
    see(view, {old: NOTHING}, wanted=[3], seeds=False, now=trio.current_time())
    assert not view.alone


def test_readers_that_were_waited_for_in_vain_though_they_have_the_piece_are_not_asked_for_a_while() -> None:
    view = everybody(READERS[:2])[0]
    see(view, {READERS[1]: having(5)}, wanted=[5], now=0)
    assert view.way(5) is Way.CIRCLE
    view.too_slow(5, now=0)
    see(view, {READERS[1]: having(5)}, wanted=[5], now=1)
    assert view.way(5) is Way.OURS
    assert view.alone
    see(view, {READERS[1]: having(5)}, wanted=[5], now=100)
    assert view.way(5) is Way.CIRCLE
