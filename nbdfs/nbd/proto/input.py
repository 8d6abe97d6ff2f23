"""Received bytes that are not parsed yet."""

from __future__ import annotations

import mmap


class Input:
    """One buffer of fixed size.  The driver receives into `space()`, a machine parses from `start` to `end`.

    Payload that came along with headers is taken out by `move_into`; all other payload never comes here.
    """

    def __init__(self, size: int = 256 << 10) -> None:
        self._pages = mmap.mmap(-1, size)  # those that were never received into cost nothing
        self.view = memoryview(self._pages)
        self.start = 0
        self.end = 0

    def __len__(self) -> int:
        return self.end - self.start

    def space(self) -> memoryview:
        """Where to receive more.  Never empty unless more than half of the buffer waits to be parsed."""
        if self.start == self.end:
            self.start = self.end = 0
        elif self.start > len(self.view) // 2:
            rest = self.end - self.start
            self.view[:rest] = self.view[self.start : self.end]
            self.start, self.end = 0, rest
        return self.view[self.end :]

    def rest(self) -> None:
        """Give back the memory, if nothing is in it."""
        if self.start == self.end:
            self._pages.madvise(mmap.MADV_REMOVE)

    def received(self, count: int) -> None:
        self.end += count

    def feed(self, data: bytes) -> None:
        """Put bytes in, as if they had been received."""
        self.space()[: len(data)] = data
        self.received(len(data))

    def take(self, count: int) -> bytes:
        """Remove and give the first `count` bytes, which must be here."""
        taken = bytes(self.view[self.start : self.start + count])
        self.start += count
        return taken

    def skip(self, count: int) -> int:
        """Drop up to `count` bytes; give how many."""
        count = min(count, self.end - self.start)
        self.start += count
        return count

    def move_into(self, buffer: memoryview) -> int:
        """Move payload that is here already into `buffer`; give its length."""
        count = min(len(buffer), self.end - self.start)
        buffer[:count] = self.view[self.start : self.start + count]
        self.start += count
        return count
