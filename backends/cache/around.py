"""How much is fetched around a block that is missing.

A request takes a round trip however little it asks for, and the wire has nothing to do meanwhile: neighbours that come
beside it are nearly free, as many as make the request itself half as long again at most.  What they are worth is seen
by how many of them are read later.  While too few are, only what was asked for is fetched, and now and then a window
to see whether that has changed.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque

_MOST = 2 << 20  # bytes of a window
_CHEAP = 1.5  # times what a fetch takes alone: what it may take beside a window
_CHEAP_ENOUGH = 1.25  # times that: then twice as large a window will be cheap too
_MEMORY = 8  # fetches beside windows of a kind that are remembered
_SURE = 3  # of them say that a kind is dear; that it is cheap a single one can say
_EXACT_EVERY = 16  # fetches: one alone, for its time
_WINDOW_EVERY = 64  # fetches: one try of what was not worth its cost
_COST = 0.25  # of a window, in round trips; a neighbour that is read saves one
_PATIENCE = 64.0  # round trips that windows may cost before they have saved any, and the most that is remembered


class Around:
    """Decides about one cache of `capacity` blocks of `block` bytes."""

    def __init__(self, block: int, capacity: int) -> None:
        most = min(_MOST // block, capacity // 8)
        self._largest = max(most, 1).bit_length() - 1  # windows are of 2 ** kind blocks, and of no larger kind
        self._kind = 0
        self._times: defaultdict[int, _Times] = defaultdict(_Times)  # of fetches beside windows, by kind
        self._fetches = 0
        self._credit = _PATIENCE
        self._used = 0

    def window(self, used: int) -> int:
        """How many blocks to fetch in all where some are missing.

        `used` are the neighbours that were read so far, all told.
        """
        self._credit = min(self._credit + used - self._used, _PATIENCE)
        self._used = used
        self._fetches += 1
        if not self._fetches % _WINDOW_EVERY:
            self._times.pop(self._kind + 1, None)  # what was too dear may be so no longer
        if self._fetches % _EXACT_EVERY == 1:
            return 1
        if self._credit <= 0 and self._fetches % _WINDOW_EVERY:
            return 1
        return 1 << self._kind

    def took(self, window: int, asked: int, seconds: float) -> None:
        """A fetch of so many blocks took so long, beside what else there was of the window."""
        kind = window.bit_length() - 1
        if asked > 1 << self._largest:
            return
        times = self._times[kind]
        times.append(seconds)
        if window > asked:
            self._credit -= _COST
        alone, beside = self._times[0].usual(math.inf), times.usual()
        twice = self._times[kind + 1].usual()
        if beside > alone * _CHEAP:
            if len(times) >= _SURE:
                self._kind = kind - 1
        elif beside <= alone * _CHEAP_ENOUGH and twice <= alone * _CHEAP and self._kind <= kind < self._largest:
            self._kind = kind + 1


class _Times(deque[float]):
    """Seconds of the last fetches of a kind."""

    def __init__(self) -> None:
        super().__init__(maxlen=_MEMORY)

    def usual(self, unknown: float = 0.0) -> float:
        """What one takes that waits for nothing else: a short one, though not the one that found it all at hand."""
        return sorted(self)[len(self) // 4] if self else unknown
