"""A lock on byte ranges: overlapping holders wait for each other, others do not.

Invariant: a claim holds its range once every claim before it in the queue that overlaps it has been released.
So the holders are disjoint, overlapping claims are served in the order they came, and none starves.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from nbdfs.eager import Signal


class RangeLock:
    """Mutual exclusion of overlapping ranges in one trio run; it waits as `nbdfs.eager` has it."""

    def __init__(self) -> None:
        self._queue: list[_Claim] = []  # holders and waiters, in order of arrival

    @property
    def free(self) -> bool:
        """Whether nobody holds or waits for any range: what then is done without waiting needs no lock."""
        return not self._queue

    def claimed(self, offset: int, length: int) -> bool:
        """Whether anybody holds or waits for a part of this range."""
        return any(other.start < offset + length and offset < other.end for other in self._queue)

    @asynccontextmanager
    async def hold(self, offset: int, length: int) -> AsyncIterator[None]:
        """Hold [offset, offset + length) for the block.  A checkpoint only if it must wait."""
        claim = _Claim(offset, offset + length)
        earlier = [other for other in self._queue if other.start < claim.end and claim.start < other.end]
        self._queue.append(claim)
        try:
            for other in earlier:
                await other.released.wait()
            yield
        finally:
            self._queue.remove(claim)
            claim.released.set()


class _Claim:
    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end
        self.released = Signal()
