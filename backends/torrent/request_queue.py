"""Which of the pieces that are to be asked for are asked for now: those needed first, as many as come in a second.

libtorrent takes what it is told of in no order, and a slow peer sends what it was asked for in the order of asking: a
read would wait for pieces that are needed long after its own.  What is told a little at a time comes in order.

What does not come for long holds nothing up: others may have what is needed next.

Invariant: `asked` has the pieces that libtorrent was told of and that have not come, the one asked for first first.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator

import trio

_LONG = 5.0  # seconds
_PERIOD = 1.0  # seconds over which the pace is taken, and for which enough is asked for
_SHORTEST = 0.25  # seconds that pieces are taken to have come in at least, as they come in bursts


class RequestQueue:
    """A queue of pieces, and how many of them are asked for at a time."""

    def __init__(self, fewest: int, pieces: int) -> None:
        self.asked: dict[int, float] = {}  # since when
        self.fewest = fewest
        self._most = 2 * pieces
        self._queue: list[tuple[float, int]] = []  # when it is needed, and the piece
        self.pace = 0.0  # pieces in a period
        self._since = 0.0
        self._came = 0

    def put(self, piece: int, due: float) -> None:
        """Have the piece asked for in its turn."""
        heapq.heappush(self._queue, (due, piece))
        if len(self._queue) > self._most:  # many were wanted and are no more: keep each once
            last = {piece: due for due, piece in self._queue}
            self._queue = sorted((due, piece) for piece, due in last.items())

    def take(self) -> Iterator[tuple[float, int]]:
        """The pieces, and when they are needed, whose turn it is; the caller puts them into `asked`, or drops them."""
        most = max(self.pace, self.fewest) + self._overdue()
        while self._queue and len(self.asked) < most:
            yield heapq.heappop(self._queue)

    def ask(self, piece: int) -> None:
        """The piece is asked for."""
        if not self.asked:
            self._since, self._came = trio.current_time(), 0
        self.asked.setdefault(piece, trio.current_time())

    def drop(self, piece: int) -> None:
        """The piece is not asked for any more."""
        self.asked.pop(piece, None)

    def came(self, piece: int) -> None:
        """The piece is here."""
        if self.asked.pop(piece, None) is None:
            return
        self._came += 1
        now = trio.current_time()
        elapsed = now - self._since
        pace = self._came * _PERIOD / max(elapsed, _SHORTEST)
        if elapsed < _PERIOD:
            self.pace = max(self.pace, pace)
        else:
            self.pace, self._since, self._came = pace, now, 0

    def _overdue(self) -> int:
        long_ago = trio.current_time() - _LONG
        return sum(1 for _ in itertools.takewhile(lambda since: since < long_ago, self.asked.values()))

    def clear(self) -> None:
        """Nothing is asked for any more."""
        self.asked.clear()
        self._queue.clear()
