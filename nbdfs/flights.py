"""Requests of a front end that wait for their source: cancelled when they are past their deadline."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

import trio

from nbdfs.eager import Run
from nbdfs.source import Source

_CHECKS = 8  # in one `timeout`: how exactly deadlines are kept


class Flight(Run):
    """A request under way; `began` and `progressed`, when it last got on, are times of the monotonic clock.

    One that changes `writes_to` gets on while that writes back, as it may wait for room or for all of it.
    """

    __slots__ = ("_writes_to", "_written_back", "began", "progressed")

    def __init__(
        self,
        work: Coroutine[Any, Any, None],
        nursery: trio.Nursery,
        ended: Callable[[], None],
        writes_to: Source | None = None,
    ) -> None:
        super().__init__(work, nursery, ended)
        self.began = self.progressed = time.monotonic()
        self._writes_to = writes_to
        self._written_back: int | None = None  # at the last look

    def look(self) -> None:
        """See whether it got on."""
        if self._writes_to is not None:
            before, self._written_back = self._written_back, self._writes_to.written_back()
            if before is not None and self._written_back > before:
                self.progressed = time.monotonic()


F = TypeVar("F", bound=Flight)


class Flights(dict[Hashable, F], Generic[F]):
    """Those of one front end, by key, in the order in which they began; changed by `add` and `remove` only."""

    def __init__(self) -> None:
        super().__init__()
        self._begun: trio.Event | None = None  # set at the next `add`, if anybody waits for it
        self._landed: trio.Event | None = None  # set at the next `remove`, if anybody waits for it

    def add(self, key: Hashable, flight: F) -> None:
        self[key] = flight
        if self._begun is not None:
            self._begun.set()

    def remove(self, key: Hashable) -> None:
        """It has ended."""
        del self[key]
        if self._landed is not None:
            self._landed.set()

    def cancel(self) -> None:
        """Cancel all of them."""
        for flight in list(self.values()):
            flight.cancel()

    async def fewer_than(self, count: int) -> None:
        """Wait until there are fewer than `count`; one task at a time.  No checkpoint if there are."""
        while len(self) >= count:
            self._landed = trio.Event()
            await self._landed.wait()
            self._landed = None

    async def watch(self, timeout: float, overdue: Callable[[F], None], limit: float = math.inf) -> None:
        """Cancel what has not got on for `timeout` seconds, or takes `limit`, after telling `overdue`.

        Until cancelled.
        """
        while True:
            if not self:
                self._begun = trio.Event()
                await self._begun.wait()
                self._begun = None
            await trio.sleep(min(timeout, limit) / _CHECKS)
            for flight in self.values():
                flight.look()
            now = time.monotonic()
            late = [flight for flight in self.values()
                    if flight.progressed < now - timeout or flight.began < now - limit]  # fmt: skip
            for flight in late:
                flight.began = flight.progressed = math.inf  # told once, however long a thread then keeps it
                overdue(flight)
                flight.cancel()
