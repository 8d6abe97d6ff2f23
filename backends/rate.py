"""The `rate` layer: no more bytes or requests a second than given."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from nbdfs.around import AroundLayer, Request
from nbdfs.errors import UsageError
from nbdfs.records import Record
from nbdfs.registry import NUMBER, SIZE, LayerDriver, OpenContext, option
from nbdfs.source import Caps, Source

T = TypeVar("T")

_BURST = 0.1  # seconds: what was not used so long may be used at once


class RateOptions(Record):
    rate: int = option(0, SIZE, "bytes a second, read and written together")
    read: int = option(0, SIZE, "bytes a second read")
    write: int = option(0, SIZE, "bytes a second written")
    iops: float = option(0.0, NUMBER, "requests a second, of every kind")


class Bucket:
    """Lets `rate` units a second through, in the order they come."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free_at = float("-inf")

    def take(self, units: float) -> float:
        """Book units; give the time (of trio's clock) from which on they may pass."""
        now = trio.current_time()
        start = max(self._free_at, now - _BURST)
        self._free_at = start + units / self._rate
        return start


class Rate(AroundLayer):
    """`below`, with requests held back; `buckets` are by operation."""

    def __init__(self, below: Source, buckets: dict[str, list[Bucket]], every: list[Bucket]) -> None:
        super().__init__(below, without=Caps.IMMEDIATE)
        self._buckets = buckets
        self._every = every

    async def around(self, request: Request, call: Callable[[], Awaitable[T]]) -> T:
        booked = [bucket.take(1) for bucket in self._every]
        booked += [bucket.take(request.length) for bucket in self._buckets.get(request.operation, [])]
        if booked:
            await trio.sleep_until(max(booked))
        return await call()


def _open(below: Source, options: RateOptions, context: OpenContext) -> Source:
    if min(options.rate, options.read, options.write, options.iops) < 0:
        raise UsageError("rate: there is no rate below nothing")
    both = [Bucket(options.rate)] if options.rate else []
    buckets = {
        "read": both + ([Bucket(options.read)] if options.read else []),
        "write": both + ([Bucket(options.write)] if options.write else []),
    }
    every = [Bucket(options.iops)] if options.iops else []
    if not (every or buckets["read"] or buckets["write"]):
        raise UsageError("rate needs one of rate=, read=, write= and iops=")
    return Rate(below, buckets, every)


DRIVER = LayerDriver("rate", "hold requests back to a rate", RateOptions, open=_open)
