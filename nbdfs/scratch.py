"""A sparse store of bytes for layers that keep data of their own: in memory or in a file.

Memory and the page cache are used at once, without a thread: what is cached is read with RWF_NOWAIT, and a write into
the page cache is a copy.  Only when the kernel makes writers wait (too many dirty pages) do writes go to a thread, for
a while; what must come from the disk always does.
"""

from __future__ import annotations

import errno
import os
import tempfile
from typing import Final

import trio

from nbdfs.budget import Budget
from nbdfs.errors import SourceError
from nbdfs.fileio import data_runs, read_whole, write_whole
from nbdfs.libc import punch_hole
from nbdfs.pages import Pages
from nbdfs.throttle import Throttle


class Scratch:
    """Bytes [start, start + size) of a descriptor, which it closes; unwritten ones read as zero.

    `in_memory` says that no operation waits for a disk.
    """

    def __init__(self, descriptor: int, size: int, *, start: int = 0, in_memory: bool = False) -> None:
        self.descriptor: Final = descriptor
        self.size: Final = size
        self.in_memory: Final = in_memory
        self._start = start
        self._mappable = in_memory and size > 0
        self._throttle = Throttle()
        self._failed = 0  # errno of a sync
        self._pages: Pages | None = None
        self._budget = Budget()

    async def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from `offset`."""
        done = (
            os.preadv(self.descriptor, [buffer], self._start + offset)
            if self.in_memory
            else self._cached(buffer, offset)
        )
        if done < len(buffer):
            await trio.to_thread.run_sync(read_whole, self.descriptor, buffer[done:], self._start + offset + done)

    def _cached(self, buffer: memoryview, offset: int) -> int:
        try:
            return os.preadv(self.descriptor, [buffer], self._start + offset, os.RWF_NOWAIT)
        except OSError:  # not in the page cache, or a file system that cannot tell: a thread will see
            return 0

    async def write(self, data: memoryview, offset: int) -> None:
        """Write all of `data`.  Raises OSError, ENOSPC among others; some of it may be written then."""
        if self.in_memory:
            self.write_now(data, offset)
        elif self._throttle.waits():
            await trio.to_thread.run_sync(self.write_now, data, offset)
        else:
            self._throttle.watch(lambda: self.write_now(data, offset))

    def write_now(self, data: memoryview, offset: int) -> None:
        """As `write`, for a worker thread."""
        if self.in_memory and not self._budget.take(self.descriptor, self._start + offset, len(data)):
            raise SourceError(errno.ENOSPC, "the memory of the machine is used up")
        write_whole(self.descriptor, data, self._start + offset)

    async def discard(self, offset: int, length: int) -> None:
        """Give the space back; the range reads as zero."""
        if self.in_memory:
            punch_hole(self.descriptor, self._start + offset, length)
        else:
            await trio.to_thread.run_sync(punch_hole, self.descriptor, self._start + offset, length)

    async def sync(self) -> None:
        """Make everything written so far durable.

        After a failure the kernel may have dropped what it could not write, so every later call fails too.
        """
        if self.in_memory:
            return
        if self._failed:
            raise OSError(self._failed, "an earlier sync failed, what was written since then may be lost")
        try:
            await trio.to_thread.run_sync(os.fdatasync, self.descriptor)
        except OSError as error:
            self._failed = error.errno or errno.EIO
            raise

    def view(self, offset: int, length: int) -> memoryview | None:
        """The bytes themselves, if they are in memory and no hole."""
        if not self._mappable:
            return None
        if self._pages is None:
            try:
                self._pages = Pages(self.descriptor, self.size)
            except OSError:  # a limit on address space
                self._mappable = False
                return None
        return self._pages.view(offset, length)

    def data_runs(self, offset: int, length: int) -> list[tuple[int, int, bool]]:
        """Cut the range into runs (start, end, whether data), as the file system knows its holes."""
        start, end = self._start + offset, self._start + offset + length
        return [
            (first - self._start, min(last, end) - self._start, data)
            for first, last, data in data_runs(self.descriptor, start, end)
        ]

    def close(self) -> None:
        os.close(self.descriptor)


def memory_scratch(name: str, size: int) -> Scratch:
    """A store in memory (a memfd, which `name` is seen by in /proc)."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    os.ftruncate(descriptor, size)
    return Scratch(descriptor, size, in_memory=True)


def temporary_directory() -> str:
    """Where large files that nobody sees are kept: $TMPDIR, or /var/tmp, which is on a disk."""
    return os.environ.get("TMPDIR") or "/var/tmp"  # noqa: S108


def unnamed_scratch(directory: str, size: int) -> Scratch:
    """A store in a file without a name in `directory`, gone with the process."""
    with tempfile.TemporaryFile(dir=directory) as file:
        descriptor = os.dup(file.fileno())
    try:
        os.truncate(descriptor, size)
    except OSError:
        os.close(descriptor)
        raise
    return Scratch(descriptor, size)
