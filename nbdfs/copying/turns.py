"""Put work that finishes in any order back into order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class Turns:
    """Lets ranges through one at a time, in the order of their offsets.

    Invariant: every byte from `at` on is passed by exactly one `turn`, so whoever holds the lowest range never waits
    and the others wait only for it.
    """

    def __init__(self) -> None:
        self.at = 0  # all before it had its turn
        self._waiting: dict[int, trio.Event] = {}

    @asynccontextmanager
    async def turn(self, offset: int, length: int) -> AsyncIterator[None]:
        """Wait until everything before `offset` is done; the block is then the only one at work."""
        if offset != self.at:
            await self._waiting.setdefault(offset, trio.Event()).wait()
        yield
        self.at = offset + length
        if (event := self._waiting.pop(self.at, None)) is not None:
            event.set()
