"""Page-aligned buffers of one size, made once and used again."""

from __future__ import annotations

import mmap


class BufferPool:
    """Buffers of `size` bytes; at most `keep` unused ones are kept.

    A buffer's pages become resident as they are touched, so one that only ever held small requests is small.
    """

    def __init__(self, size: int, keep: int) -> None:
        self._size = size
        self._keep = keep
        self._free: list[memoryview] = []

    def take(self) -> memoryview:
        return self._free.pop() if self._free else memoryview(mmap.mmap(-1, self._size))

    def give(self, buffer: memoryview) -> None:
        """Return a buffer that nobody looks at any more."""
        if len(self._free) < self._keep:
            self._free.append(buffer)
