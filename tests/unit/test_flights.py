"""Requests that are past their deadline."""

from __future__ import annotations

import math
import threading

import pytest
import trio

from nbdfs.flights import Flight, Flights
from nbdfs.stack import open_stack


async def test_one_that_a_thread_keeps_is_told_of_once() -> None:
    """A write to a disk that is gone cannot be given up, and may take hours."""
    flights: Flights[Flight] = Flights()
    told: list[Flight] = []
    over = threading.Event()

    async def write() -> None:
        await trio.to_thread.run_sync(over.wait)

    async with open_stack("null:1M") as source, trio.open_nursery() as watching, trio.open_nursery() as nursery:
        watching.start_soon(flights.watch, 0.08, told.append)
        flight = Flight(write(), nursery, lambda: flights.remove("key"), source)
        flights.add("key", flight)
        flight.start_task()
        while not told:
            await trio.sleep(0.01)
        await trio.sleep(0.2)
        over.set()
        await flights.fewer_than(1)
        watching.cancel_scope.cancel()
    assert told == [flight]


@pytest.mark.parametrize(("limit", "fails"), [(math.inf, False), (0.6, True)])
async def test_a_flush_has_time_while_its_source_writes_back(limit: float, fails: bool) -> None:
    """All of it takes longer than the deadline, each block less."""
    flights: Flights[Flight] = Flights()
    told: list[Flight] = []
    done = False
    spec = "cache,mode=writeback,block=4k::rate,rate=64k::null:1M"
    async with open_stack(spec) as source, trio.open_nursery() as watching, trio.open_nursery() as nursery:
        watching.start_soon(flights.watch, 0.8, told.append, limit)
        for offset in range(0, 1 << 18, 1 << 13):
            await source.pwrite(memoryview(bytes(1 << 12)), offset)

        async def flush() -> None:
            nonlocal done
            await source.flush()
            done = True

        flight = Flight(flush(), nursery, lambda: flights.remove("key"), source)
        flights.add("key", flight)
        flight.start_task()
        await flights.fewer_than(1)
        watching.cancel_scope.cancel()
    assert (done, told) == ((False, [flight]) if fails else (True, []))
