"""Copies that the kernel does by itself between two plain files, sharing blocks where the file system can."""

from __future__ import annotations

import errno
import os

from nbdfs.source import Backing

STEP = 64 << 20  # bytes; how much is asked of the kernel at once, so that progress shows and a stop is heard
_CANNOT = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ETXTBSY, errno.EPERM, errno.EBADF)


def copy_range(source: Backing, destination: Backing, offset: int, length: int) -> bool:
    """Copy a range of the device; False if the kernel cannot between these two files, before a byte was written.

    Blocks: call it in a thread.  Raises OSError as the system calls do; EIO if the source file ended early.
    """
    end = offset + length
    at = offset
    while at < end:
        try:
            count = os.copy_file_range(source.fd, destination.fd, end - at, source.offset + at, destination.offset + at)
        except OSError as error:
            if at == offset and error.errno in _CANNOT:
                return False
            raise
        if count == 0:
            raise OSError(errno.EIO, f"the file ended at byte {at}")
        at += count
    return True
