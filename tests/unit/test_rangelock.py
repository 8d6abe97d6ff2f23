"""The range lock: who may hold at the same time, in which order, and what cancelling leaves behind."""

from __future__ import annotations

from collections.abc import Sequence

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from nbdfs.rangelock import RangeLock

claims = st.lists(
    st.tuples(st.integers(0, 20), st.integers(1, 8), st.integers(0, 4), st.integers(0, 5), st.integers(1, 30)),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(claims)
def test_holders_are_disjoint_and_served_in_order(claims: Sequence[tuple[int, int, int, int, int]]) -> None:
    """Each claim: offset, length, when it comes, how long it holds, after how long it gives up waiting or holding."""
    held: list[tuple[int, int]] = []
    arrived: list[tuple[int, int]] = []
    served: list[tuple[int, int]] = []

    async def claimant(lock: RangeLock, offset: int, length: int, start: int, duration: int, patience: int) -> None:
        await trio.sleep(start)
        mine = (offset, offset + length)
        with trio.move_on_after(patience):
            arrived.append(mine)
            async with lock.hold(offset, length):
                assert all(end <= mine[0] or mine[1] <= begin for begin, end in held)
                held.append(mine)
                served.append(mine)
                try:
                    await trio.sleep(duration)
                finally:
                    held.remove(mine)

    async def main() -> None:
        lock = RangeLock()
        async with trio.open_nursery() as nursery:
            for claim in claims:
                nursery.start_soon(claimant, lock, *claim)
        with trio.fail_after(1):
            async with lock.hold(0, 100):
                pass

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert not held
    for index, mine in enumerate(served):  # of two that overlap and were both served, the earlier came first
        for other in served[index + 1 :]:
            if mine[0] < other[1] and other[0] < mine[1] and arrived.count(mine) == arrived.count(other) == 1:
                assert arrived.index(mine) < arrived.index(other)


async def test_others_do_not_wait() -> None:
    lock = RangeLock()
    with trio.fail_after(30):
        async with lock.hold(0, 10), lock.hold(10, 10), lock.hold(30, 1):
            pass


async def test_a_cancelled_waiter_lets_those_behind_it_on(autojump_clock: trio.testing.MockClock) -> None:
    lock = RangeLock()
    done = []

    async def wait(offset: int, length: int, scope: trio.CancelScope) -> None:
        with scope:
            async with lock.hold(offset, length):
                done.append((offset, length))

    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        async with lock.hold(0, 10):
            nursery.start_soon(wait, 5, 10, scope)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(wait, 12, 5, trio.CancelScope())
            await trio.testing.wait_all_tasks_blocked()
            assert done == []
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert done == [(12, 5)]


async def test_a_lock_is_free_while_nobody_holds_or_waits() -> None:
    lock = RangeLock()
    assert lock.free
    async with trio.open_nursery() as nursery:
        async with lock.hold(0, 10):
            assert not lock.free
            with trio.CancelScope() as scope:
                nursery.start_soon(trio.testing.wait_all_tasks_blocked)
                scope.cancel()
                async with lock.hold(5, 1):
                    pass
            assert not lock.free
    assert lock.free


async def test_what_is_claimed_is_known() -> None:
    lock = RangeLock()
    async with lock.hold(10, 10):
        assert [lock.claimed(*place) for place in ((0, 10), (0, 11), (15, 1), (19, 5), (20, 5))] == [
            False, True, True, True, False,
        ]  # fmt: skip
    assert not lock.claimed(10, 10)
