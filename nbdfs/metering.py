"""Counting and timing at the boundary above a layer: how often, how much, how long, and what went wrong.

`Metered` stands there only while metrics are wanted (`nbdfs.stack.open_stack`), so that otherwise nothing is counted
and nothing is called.  It is transparent: its facts and fast paths are those of the source below.  What the kernel does
itself with a `backing` file is not seen here.
"""

from __future__ import annotations

import errno
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType

from nbdfs.around import OPERATIONS, PASSED
from nbdfs.records import replace
from nbdfs.source import ALLOCATION, Backing, Extent, Layer, Source, count_views

BOUNDS = (25e-6, 1e-4, 2.5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 1.0, 5.0, 30.0)  # seconds
CANCELLED = "cancelled"  # stands among the errors for what nobody waited for any more


class Figures:
    """What is known of one operation; `seconds` are those of all its requests added up.

    `buckets` counts requests by duration: those up to each of BOUNDS, and last those that took longer.  A request that
    failed is counted, but not its bytes.
    """

    __slots__ = ("buckets", "bytes", "errors", "in_flight", "seconds")

    def __init__(self) -> None:
        self.bytes = 0
        self.seconds = 0.0
        self.buckets = [0] * (len(BOUNDS) + 1)
        self.errors: Counter[str] = Counter()  # by name of errno
        self.in_flight = 0

    def add(self, requests: int, length: int, elapsed: float) -> None:
        """So many requests of `length` bytes in all took so many seconds together, each of them all that time."""
        self.seconds += requests * elapsed
        self.buckets[bisect_left(BOUNDS, elapsed)] += requests
        self.bytes += length

    @property
    def requests(self) -> int:
        """Requests that are over."""
        return sum(self.buckets)


class Meter:
    """The figures of one layer, by operation."""

    def __init__(self) -> None:
        self.operations = {operation: Figures() for operation in OPERATIONS}


class _Timed:
    """A block that is one request."""

    __slots__ = ("_began", "_figures", "_length")

    def __init__(self, figures: Figures, length: int) -> None:
        self._figures = figures
        self._length = length

    def __enter__(self) -> None:
        self._figures.in_flight += 1
        self._began = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        elapsed = time.perf_counter() - self._began
        figures = self._figures
        figures.in_flight -= 1
        figures.seconds += elapsed
        figures.buckets[bisect_left(BOUNDS, elapsed)] += 1
        if error is None:
            figures.bytes += self._length
        elif isinstance(error, OSError):
            figures.errors[errno.errorcode.get(error.errno or errno.EIO, "EIO")] += 1
        elif not isinstance(error, Exception):
            figures.errors[CANCELLED] += 1
        else:
            figures.errors["EIO"] += 1  # which is what the front end makes of a fault of ours


class Metered(Layer):
    """`below`, with each request noted in `meter`."""

    def __init__(self, below: Source) -> None:
        super().__init__(below)
        self.meter = Meter()
        self._figures = self.meter.operations
        self._read = self._figures["read"]
        self._write = self._figures["write"]
        self.info = replace(below.info, caps=below.info.caps & PASSED)
        self.eager = below.eager
        self.batches = below.batches

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        with _Timed(self._read, len(buffer)):
            await self.below.pread_into(buffer, offset)

    async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        with _Timed(self._write, len(data)):
            await self.below.pwrite(data, offset, fua=fua)

    async def flush(self) -> None:
        with _Timed(self._figures["flush"], 0):
            await self.below.flush()

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        with _Timed(self._figures["trim"], length):
            await self.below.trim(offset, length, fua=fua)

    async def zero(
        self, offset: int, length: int, *, may_trim: bool = True, fast: bool = False, fua: bool = False
    ) -> None:
        with _Timed(self._figures["zero"], length):
            await self.below.zero(offset, length, may_trim=may_trim, fast=fast, fua=fua)

    async def extents(self, offset: int, length: int, *, context: str = ALLOCATION, one: bool = False) -> list[Extent]:
        with _Timed(self._figures["extents"], 0):
            return await self.below.extents(offset, length, context=context, one=one)

    async def cache(self, offset: int, length: int) -> None:
        with _Timed(self._figures["cache"], length):
            await self.below.cache(offset, length)

    async def resize(self, size: int) -> None:
        await self.below.resize(size)
        self.info = replace(self.info, size=self.below.info.size)

    def view(self, offset: int, length: int, *, writable: bool = False) -> memoryview | None:
        view = self.below.view(offset, length, writable=writable)
        if view is not None:  # whoever takes it takes it for a request, one that did not wait
            figures = self._write if writable else self._read
            figures.buckets[0] += 1
            figures.bytes += length
        return view

    def views(self, length: int, offsets: Sequence[int], *, writable: bool = False) -> Sequence[memoryview | None]:
        views = self.below.views(length, offsets, writable=writable)
        figures = self._write if writable else self._read
        count = count_views(views)
        figures.buckets[0] += count
        figures.bytes += count * length
        return views

    def read_now(self, buffer: memoryview, length: int, offsets: Sequence[int]) -> int:
        began = time.perf_counter()
        done = self.below.read_now(buffer, length, offsets)
        self._read.add(done, done * length, time.perf_counter() - began)
        return done

    def write_now(self, data: memoryview, length: int, offsets: Sequence[int]) -> int:
        began = time.perf_counter()
        done = self.below.write_now(data, length, offsets)
        self._write.add(done, done * length, time.perf_counter() - began)
        return done

    def backing(self) -> Backing | None:
        return self.below.backing()

    def poller(self) -> Callable[[], bool] | None:
        return self.below.poller()
