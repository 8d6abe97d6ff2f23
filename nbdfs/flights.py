"""Requests of a front end that wait for their source: cancelled when they are past their deadline."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

import trio

from nbdfs.eager import Run

_CHECKS = 8  # in one `timeout`: how exactly deadlines are kept


class Flight(Run):
    """A request under way; `progressed` is when it last got on, in trio's time."""

    __slots__ = ("progressed",)

    def __init__(self, work: Coroutine[Any, Any, None], nursery: trio.Nursery, ended: Callable[[], None]) -> None:
        super().__init__(work, nursery, ended)
        self.progressed = trio.current_time()


F = TypeVar("F", bound=Flight)


class Flights(Generic[F]):
    """Those of one front end, by key, in the order in which they began."""

    def __init__(self) -> None:
        self._all: dict[Hashable, F] = {}
        self._some = trio.Event()  # set when there are any
        self._landed = trio.Event()  # set when one ends

    def __len__(self) -> int:
        return len(self._all)

    def get(self, key: Hashable) -> F | None:
        return self._all.get(key)

    def add(self, key: Hashable, flight: F) -> None:
        self._all[key] = flight
        self._some.set()

    def remove(self, key: Hashable) -> None:
        """It has ended."""
        del self._all[key]
        self._landed.set()

    def cancel(self) -> None:
        """Cancel all of them."""
        for flight in list(self._all.values()):
            flight.cancel()

    async def fewer_than(self, count: int) -> None:
        """Wait until there are fewer than `count`.  No checkpoint if there are."""
        while len(self._all) >= count:
            self._landed = trio.Event()
            await self._landed.wait()

    async def watch(self, timeout: float, overdue: Callable[[F], None]) -> None:
        """Cancel what has not got on for `timeout` seconds, after telling `overdue`; until cancelled."""
        while True:
            if not self._all:
                self._some = trio.Event()
                await self._some.wait()
            await trio.sleep(timeout / _CHECKS)
            before = trio.current_time() - timeout
            for flight in [flight for flight in self._all.values() if flight.progressed < before]:
                overdue(flight)
                flight.cancel()
