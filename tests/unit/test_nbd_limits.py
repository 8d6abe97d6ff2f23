"""Reservations of a server's memory, a part of which is a client's."""

from __future__ import annotations

import pytest
import trio

from nbdfs.nbd.limits import Memory


@pytest.fixture
def parts() -> tuple[Memory, Memory, Memory]:
    """A whole of 100 bytes, and two parts of 80."""
    whole = Memory(100)
    return whole, Memory(80, whole), Memory(80, whole)


async def fits(memory: Memory, size: int) -> bool:
    """Whether a reservation need not wait; it is given back."""
    with trio.move_on_after(0):
        await memory.reserve(size)
        memory.release(size)
        return True
    return False


async def test_what_is_reserved_in_a_part_is_reserved_in_the_whole(parts: tuple[Memory, Memory, Memory]) -> None:
    whole, first, second = parts
    await first.reserve(60)
    assert not await fits(first, 21)
    assert await fits(second, 40)
    assert not await fits(second, 41)
    assert not await fits(whole, 41)
    first.release(60)
    assert await fits(second, 80)


async def test_who_gives_up_waiting_for_the_whole_has_taken_nothing(parts: tuple[Memory, Memory, Memory]) -> None:
    whole, first, second = parts
    await first.reserve(60)
    assert not await fits(second, 80)
    first.release(60)
    assert await fits(second, 80)
    assert await fits(whole, 100)


async def test_a_small_reservation_does_not_overtake_a_large_one(parts: tuple[Memory, Memory, Memory]) -> None:
    _, first, _ = parts
    granted: list[int] = []

    async def take(size: int) -> None:
        await first.reserve(size)
        granted.append(size)

    for _ in range(2):
        await first.reserve(40)
    async with trio.open_nursery() as nursery:
        for size in (50, 10):
            nursery.start_soon(take, size)
            await trio.testing.wait_all_tasks_blocked()
        first.release(40)
        await trio.testing.wait_all_tasks_blocked()
        assert granted == []
        first.release(40)
    assert sorted(granted) == [10, 50]
