"""Copies between two plain files, in threads: by the kernel, which may share blocks, or by hand where it cannot."""

from __future__ import annotations

import contextlib
import errno
import os

from nbdfs import libc
from nbdfs.fileio import write_whole
from nbdfs.source import Backing

STEP = 16 << 20  # bytes; how much one thread copies at once, so that progress shows and a stop is heard
_CHUNK = 256 << 10  # bytes; a buffer that stays in the processor's cache
# What the kernel says where it cannot copy between these two: other file systems, old kernels, sealed or special files.
_CANNOT = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ETXTBSY, errno.EPERM, errno.EBADF)


def copy_range(source: Backing, destination: Backing, offset: int, length: int) -> None:
    """Copy a range of the device.  Blocks.  Raises OSError; EIO if the source file ended early.

    The disk begins to write at once, so that the flush at the end of a copy has little left to wait for.
    """
    _copy(source, destination, offset, offset + length)
    with contextlib.suppress(OSError):  # no more than a hint
        libc.start_writeback(destination.fd, destination.offset + offset, length)


def _copy(source: Backing, destination: Backing, offset: int, end: int) -> None:
    while offset < end:
        try:
            count = os.copy_file_range(
                source.fd, destination.fd, end - offset, source.offset + offset, destination.offset + offset
            )
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            _copy_by_hand(source, destination, offset, end)
            return
        if count == 0:
            raise _ended(offset)
        offset += count


def _copy_by_hand(source: Backing, destination: Backing, offset: int, end: int) -> None:
    buffer = memoryview(bytearray(_CHUNK))
    while offset < end:
        count = os.preadv(source.fd, [buffer[: end - offset]], source.offset + offset)
        if count == 0:
            raise _ended(offset)
        write_whole(destination.fd, buffer[:count], destination.offset + offset)
        offset += count


def _ended(offset: int) -> OSError:
    return OSError(errno.EIO, f"the file ended at byte {offset}")
