"""How much is fetched around a block that is missing.

A request takes a round trip however little it asks for, so the bytes that come in a small part of one more are nearly
free: as many neighbours are fetched along as make the fetch half as long again at most.  What that is worth is seen by
how many of them are read later.  While too few are, only what was asked for is fetched, and now and then a window to
see whether that has changed.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque

_MOST = 1 << 20  # bytes of a window
_CHEAP = 1.5  # times an exact fetch: what a window may take
_CHEAP_ENOUGH = 1.25  # times an exact fetch: then twice as large a window will be cheap too
_MEMORY = 8  # fetches of a kind that are remembered
_SURE = 3  # of them say that a kind is dear; that it is cheap a single one can say
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
        self._exact = _Times()  # of fetches of just what is asked for
        self._along: defaultdict[int, _Times] = defaultdict(_Times)  # of those with neighbours, by kind
        self._fetches = 0
        self._credit = _PATIENCE
        self._used = 0

    def window(self, used: int) -> int:
        """How many blocks to fetch where some are missing.  `used`: the neighbours that were read so far, all told."""
        self._credit = min(self._credit + used - self._used, _PATIENCE)
        self._used = used
        self._fetches += 1
        if not self._fetches % _WINDOW_EVERY:
            self._along.pop(self._kind + 1, None)  # what was too dear may be so no longer
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
        times = self._exact if blocks == asked else self._along[kind]
        times.append(seconds)
        if blocks > asked:
            self._credit -= _COST
        exact, took = min(self._exact, default=math.inf), min(times)
        twice = min(self._along.get(kind + 1, ()), default=0.0)
        if took > exact * _CHEAP:
            if len(times) >= _SURE:
                self._kind = kind - 1
        elif took <= exact * _CHEAP_ENOUGH and twice <= exact * _CHEAP and self._kind <= kind < self._largest:
            self._kind = kind + 1


class _Times(deque[float]):
    """Seconds of the last fetches of a kind, the shortest of which counts: what others wait for only adds to them."""

    def __init__(self) -> None:
        super().__init__(maxlen=_MEMORY)
