"""A mapping of a file in memory, looked at only where its pages are there.

To touch a hole through a mapping allocates a page, and where no memory is left that kills the process; so only views of
pages that exist are handed out.
"""

from __future__ import annotations

import ctypes
import mmap

from nbdfs import libc
from nbdfs.ranges import align_down, align_up

_PAGE = mmap.PAGESIZE
LARGEST_VIEW = 32 << 20  # bytes


class Pages:
    """A shared mapping of the `size` bytes of a memfd.  Raises OSError if the address space has no room for it.

    `whole` is all of it, for who knows which pages are in memory.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self.map = mmap.mmap(descriptor, size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.whole = memoryview(self.map)
        self.readable = self.whole.toreadonly()
        self._present = bytearray(LARGEST_VIEW // _PAGE + 1)  # one a page, as mincore(2) fills it
        self._vector = (ctypes.c_char * len(self._present)).from_buffer(self._present)

    def view(self, offset: int, length: int) -> memoryview | None:
        """The bytes themselves, writable, if all their pages are in memory."""
        if length > LARGEST_VIEW:
            return None
        first = align_down(offset, _PAGE)
        pages = (align_up(offset + length, _PAGE) - first) // _PAGE
        libc.mincore(self.address + first, pages * _PAGE, self._vector)
        if self._present.count(1, 0, pages) < pages:
            return None
        return self.whole[offset : offset + length]

    def close(self) -> None:
        """No view may be left."""
        self.readable.release()
        self.whole.release()
        self.map.close()
