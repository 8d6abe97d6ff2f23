"""Requests that are past their deadline."""

from __future__ import annotations

import threading

import trio

from nbdfs.flights import Flight, Flights


async def test_one_that_a_thread_keeps_is_told_of_once() -> None:
    """A write to a disk that is gone cannot be given up, and may take hours."""
    flights: Flights[Flight] = Flights()
    told: list[Flight] = []
    over = threading.Event()

    async def write() -> None:
        await trio.to_thread.run_sync(over.wait)

    async with trio.open_nursery() as watching, trio.open_nursery() as nursery:
        watching.start_soon(flights.watch, 0.08, told.append)
        flight = Flight(write(), nursery, lambda: flights.remove("key"))
        flights.add("key", flight)
        flight.start_task()
        while not told:
            await trio.sleep(0.01)
        await trio.sleep(0.2)
        over.set()
        await flights.fewer_than(1)
        watching.cancel_scope.cancel()
    assert told == [flight]
