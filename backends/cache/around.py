"""How much is fetched around a block that is missing.

A request takes a round trip however little it asks for, so the bytes that come in a small part of one more are nearly
free: as many neighbours are fetched along as make the fetch half as long again at most.  What that is worth is seen by
how many of them are read later.  While too few are, only what was asked for is fetched, and now and then a window to
see whether that has changed.
"""

from __future__ import annotations

import math

_MOST = 1 << 20  # bytes of a window
_CHEAP = 1.5  # times an exact fetch: what a window may take
_CHEAP_ENOUGH = 1.25  # times an exact fetch: then twice as large a window will be cheap too
_RISE, _FALL = 8, 2  # parts of what a fetch took more or less than the mean that change it
_EXACT_EVERY = 16  # fetches: one of just what is asked for, for its time
_WINDOW_EVERY = 64  # fetches: one try of what was not worth its cost
_COST = 0.25  # of a window, in round trips; a neighbour that is read saves one
_PATIENCE = 64.0  # round trips that windows may cost before they have saved any, and the most that is remembered


class Around:
    """Decides about one cache of `capacity` blocks of `block` bytes."""

    def __init__(self, block: int, capacity: int) -> None:
        most = min(_MOST // block, capacity // 8)
        self._largest = max(most, 1).bit_length() - 1  # windows are of 2 ** kind blocks, and of no larger kind
        self._kind = 0
        self._exact = math.inf  # seconds that a fetch takes of just what is asked for
        self._seconds: dict[int, float] = {}  # that one takes with neighbours, by kind
        self._fetches = 0
        self._credit = _PATIENCE
        self._used = 0

    def window(self, used: int) -> int:
        """How many blocks to fetch where some are missing.  `used`: the neighbours that were read so far, all told."""
        self._credit = min(self._credit + used - self._used, _PATIENCE)
        self._used = used
        self._fetches += 1
        if not self._fetches % _WINDOW_EVERY:
            self._seconds.pop(self._kind + 1, None)  # what was too dear may be so no longer
        if self._fetches % _EXACT_EVERY == 1:
            return 1
        if self._credit <= 0 and self._fetches % _WINDOW_EVERY:
            return 1
        return 1 << self._kind

    def fetched(self, blocks: int, asked: int, seconds: float) -> None:
        """So many blocks came together in that time, some of which were asked for."""
        kind = blocks.bit_length() - 1
        if kind > self._largest:
            return
        if blocks == asked:
            took = self._exact = _mean(self._exact, seconds)
        else:
            took = self._seconds[kind] = _mean(self._seconds.get(kind, math.inf), seconds)
            self._credit -= _COST
        cheap, twice = self._exact * _CHEAP, self._seconds.get(kind + 1, 0.0)
        if took > cheap:
            self._kind = kind - 1
        elif took <= self._exact * _CHEAP_ENOUGH and twice <= cheap and self._kind <= kind < self._largest:
            self._kind = kind + 1


def _mean(mean: float, seconds: float) -> float:
    """A running mean that a fetch which waited for others changes little."""
    if mean == math.inf:
        return seconds
    return mean + (seconds - mean) / (_RISE if seconds > mean else _FALL)
