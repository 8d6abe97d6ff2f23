"""Which pieces go when the cache is full: those unused for longest.

Invariants: pieces that are here are in `_used` if there is a limit; a piece with a claim is never given up.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Container, Iterable

import trio

_FEWEST_PIECES = 8  # that a cache must hold: reads in flight and a little ahead
_KEEP = 0.75  # share of the cache that is left when it overflowed


class Eviction:
    """The pieces that are here, of which a cache has room for `limit`; 0 for no limit."""

    def __init__(self, cache_size: int, piece_length: int) -> None:
        self.limit = max(cache_size // piece_length, _FEWEST_PIECES) if cache_size else 0
        self.tight: list[Callable[[], None]] = []  # called when some must go, before they are chosen
        self.dropped = 0  # pieces that had to make room
        self._used: OrderedDict[int, None] = OrderedDict()  # pieces here, the one unused for longest first
        self._full = trio.Event()

    def add(self, piece: int) -> None:
        """A piece has come."""
        if self.limit:
            self._used[piece] = None
            self.check()

    def touch(self, pieces: range) -> None:
        """Note that pieces are in use, for the choice of what to drop."""
        if self.limit:
            for piece in pieces:
                if piece in self._used:
                    self._used.move_to_end(piece)

    def check(self) -> None:
        """Have `run` look whether something must go."""
        if self.limit and len(self._used) > self.limit:
            self._full.set()

    async def run(self, claimed: Container[int], drop: Callable[[list[int]], Awaitable[None]]) -> None:
        """Have pieces that are not claimed dropped whenever there is no room, until cancelled."""
        while True:
            await self._full.wait()
            self._full = trio.Event()
            if len(self._used) <= self.limit:  # pieces that came while others were dropped have found room
                continue
            for listener in self.tight:
                listener()
            keep = int(self.limit * _KEEP)
            idle = [piece for piece in self._used if piece not in claimed]
            if excess := idle[: len(self._used) - keep]:
                await drop(excess)

    def remove(self, pieces: Iterable[int]) -> None:
        """These pieces are dropped."""
        for piece in pieces:
            self.dropped += 1
            del self._used[piece]
