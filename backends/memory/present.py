"""Which pages of a memfd are known to be there: so much is written with each request that asking the kernel is dear.

A page that was written stays until its range is punched (it may be swapped out, which only makes its next use slower).
The record takes a byte for each page of a range that was ever written to.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable

_SHIFT = mmap.PAGESIZE.bit_length() - 1
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # of which a part can be dropped


class Present:
    """The record of a file of `size` bytes.  Raises OSError if the address space has no room for it."""

    def __init__(self, size: int) -> None:
        self._pages = mmap.mmap(-1, (size >> _SHIFT) + 1, flags=_PRIVATE)

    def covers(self, offset: int, length: int) -> bool:
        """Whether every page of the range is known to be there."""
        first, last = offset >> _SHIFT, (offset + length - 1) >> _SHIFT
        if first == last:
            return self._pages[first] > 0
        return self._pages.find(b"\0", first, last + 1) < 0

    def missing(self, offsets: Iterable[int], length: int) -> list[int]:
        """Where ranges of this length begin of which a page is not known to be there."""
        if length > mmap.PAGESIZE:
            return [offset for offset in offsets if not self.covers(offset, length)]
        pages, last = self._pages, length - 1
        return [at for at in offsets if not (pages[at >> _SHIFT] and pages[(at + last) >> _SHIFT])]

    def add(self, offset: int, length: int) -> None:
        """The range was written."""
        first, last = offset >> _SHIFT, (offset + length - 1) >> _SHIFT
        if first == last:
            self._pages[first] = 1
        else:
            self._pages[first : last + 1] = b"\1" * (last + 1 - first)

    def discard(self, offset: int, length: int) -> None:
        """Pages of the range may be gone."""
        first, end = offset >> _SHIFT, ((offset + length - 1) >> _SHIFT) + 1
        inner_first, inner_end = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if inner_first >= inner_end:
            self._pages[first:end] = bytes(end - first)
            return
        self._pages[first:inner_first] = bytes(inner_first - first)
        self._pages.madvise(mmap.MADV_DONTNEED, inner_first, inner_end - inner_first)
        self._pages[inner_end:end] = bytes(end - inner_end)

    def close(self) -> None:
        self._pages.close()
