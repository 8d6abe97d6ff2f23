"""Work that is cheaper done once for several requests that were begun together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from nbdfs import eager
from nbdfs.eager import Wake

T = TypeVar("T")


class Together(Generic[T]):
    """Gathers items and hands them to `work`, `most` at a time.

    The first request to bring an item waits until the front end has begun all requests that it has (see
    `nbdfs.eager.later`), and then does the work of all that have come, so that what goes wrong is an error of that
    request.  The others then do theirs themselves.

    Invariant: an item is in a batch only while its request waits here; one that is cancelled takes its item along.
    """

    def __init__(self, work: Callable[[Sequence[T]], None], most: int) -> None:
        self._work = work
        self._most = most
        self._open: list[_Member[T]] | None = None  # the batch that can be joined

    async def do(self, item: T) -> None:
        """Return when `work` has done the item."""
        if not eager.corked():
            self._work([item])
        elif self._open is None:
            await self._lead(_Member(item))
        else:
            await self._join(_Member(item), self._open)

    async def _lead(self, leader: _Member[T]) -> None:
        batch = self._open = [leader]
        try:
            await eager.park(lambda wake: self._put_off(leader, wake), leader.forget)
            self._close(batch)
            self._work([member.item for member in batch])
            for member in batch:
                member.done = True
        finally:
            self._close(batch)
            with eager.held():
                for member in batch[1:]:
                    member.wake()

    def _put_off(self, leader: _Member[T], wake: Wake) -> None:
        leader.wake = wake
        eager.later(lambda: leader.wake())

    def _close(self, batch: list[_Member[T]]) -> None:
        if self._open is batch:
            self._open = None

    async def _join(self, member: _Member[T], batch: list[_Member[T]]) -> None:
        batch.append(member)
        if len(batch) == self._most:
            self._open = None

        def place(wake: Wake) -> None:
            member.wake = wake

        await eager.park(place, lambda: batch.remove(member))
        if not member.done:
            self._work([member.item])


class _Member(Generic[T]):
    __slots__ = ("done", "item", "wake")

    def __init__(self, item: T) -> None:
        self.item = item
        self.done = False
        self.wake: Wake = _nothing

    def forget(self) -> None:
        self.wake = _nothing


def _nothing() -> None:
    return
