"""A lock on byte ranges: overlapping holders wait for each other, others do not.

Invariant: a claim holds its range once every claim before it in the queue that overlaps it has been released.
So the holders are disjoint, overlapping claims are served in the order they came, and none starves.
"""

from __future__ import annotations

from nbdfs.eager import Signal
from nbdfs.undo import unless_done


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

    def hold(self, offset: int, length: int) -> _Claim:
        """Hold [offset, offset + length) for the block of an `async with`.  A checkpoint only if it must wait."""
        return _Claim(self._queue, offset, offset + length)


class _Claim:
    """A range that is held, or waited for."""

    def __init__(self, queue: list[_Claim], start: int, end: int) -> None:
        self._queue = queue
        self.start = start
        self.end = end
        self.released = Signal()

    async def __aenter__(self) -> None:
        earlier = [other for other in self._queue if other.start < self.end and self.start < other.end]
        self._queue.append(self)
        if earlier:
            with unless_done(self._release):
                for other in earlier:
                    await other.released.wait()

    async def __aexit__(self, *_: object) -> None:
        self._release()

    def _release(self) -> None:
        self._queue.remove(self)
        self.released.set()
