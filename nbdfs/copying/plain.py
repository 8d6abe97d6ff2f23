"""Copies between two plain files, in threads: shared blocks, a copy inside the kernel, or one by hand."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct

from nbdfs import libc
from nbdfs.fileio import LOCAL, write_whole
from nbdfs.source import Backing

STEP = 16 << 20  # bytes; how much one thread copies at once, so that progress shows and a stop is heard
# Bytes written at once: what stays in the processor's cache, and less than what Linux has to look for free memory for
# (it puts one long write into one folio).
BUFFER = 256 << 10
_FICLONERANGE = 0x4020940D  # linux/fs.h
# What the kernel says where it cannot copy between these two: other file systems, old kernels, sealed or special files.
_CANNOT = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY, errno.ETXTBSY, errno.EPERM,
           errno.EBADF)  # fmt: skip


class Writeback:
    """Has the disk begin to write a file now and then while it is filled, so that a flush finds little left to do."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._behind = 0  # bytes that the disk was not told of

    def wrote(self, length: int) -> None:
        """So many more bytes are in the page cache."""
        self._behind += length
        if self._behind >= STEP:
            self._behind = 0
            with contextlib.suppress(OSError):  # no more than a hint
                libc.start_writeback(self._fd, 0, 0)


class Files:
    """The plain files that are the two ends of a copy; several threads may use it at the same time.

    Without `share` each gets blocks of its own.  What the kernel refuses once is not tried again.
    """

    def __init__(self, source: Backing, destination: Backing, *, share: bool = True) -> None:
        self._source = source
        self._destination = destination
        ways = [self._shared, self._in_kernel, self._by_hand]
        if not share:
            ways = [self._by_hand]
        elif all(libc.filesystem_type(end.fd) in LOCAL for end in (source, destination)):
            ways.remove(self._in_kernel)  # one thread of it would not read while the other writes
        self._ways = ways
        self._writeback = Writeback(destination.fd)

    def copy(self, offset: int, length: int, buffer: memoryview) -> None:
        """Copy a range of the device, by way of `buffer` if need be.  Blocks.

        Raises OSError; EIO if the source file ended early.
        """
        for way in list(self._ways):
            try:
                way(offset, length, buffer)
                break
            except OSError as error:
                if way == self._by_hand or error.errno not in _CANNOT:
                    raise
                with contextlib.suppress(ValueError):  # another thread was told so too
                    self._ways.remove(way)
        self._writeback.wrote(length)

    def _shared(self, offset: int, length: int, buffer: memoryview) -> None:
        """Have both files own the same blocks: ioctl_ficlonerange(2)."""
        source, destination = self._source, self._destination
        clone = struct.pack("=qQQQ", source.fd, source.offset + offset, length, destination.offset + offset)
        fcntl.ioctl(destination.fd, _FICLONERANGE, clone)

    def _in_kernel(self, offset: int, length: int, buffer: memoryview) -> None:
        """copy_file_range(2), which a file system on another machine may do there."""
        source, destination = self._source, self._destination
        end = offset + length
        while offset < end:
            count = os.copy_file_range(
                source.fd, destination.fd, end - offset, source.offset + offset, destination.offset + offset
            )
            if count == 0:
                raise _ended(offset)
            offset += count

    def _by_hand(self, offset: int, length: int, buffer: memoryview) -> None:
        source, destination = self._source, self._destination
        end = offset + length
        while offset < end:
            count = os.preadv(source.fd, [buffer[: end - offset]], source.offset + offset)
            if count == 0:
                raise _ended(offset)
            write_whole(destination.fd, buffer[:count], destination.offset + offset)
            offset += count


def _ended(offset: int) -> OSError:
    return OSError(errno.EIO, f"the file ended at byte {offset}")
