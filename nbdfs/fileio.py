"""Whole reads and writes of a descriptor, and what its file system says of holes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from nbdfs.errors import SourceError

# Where a page cache write or a look at holes never waits for another machine or process (linux/magic.h).
LOCAL = {0xEF53: "ext4", 0x58465342: "xfs", 0x9123683E: "btrfs", 0x01021994: "tmpfs", 0xF2F52010: "f2fs"}


def read_whole(fd: int, buffer: memoryview, offset: int) -> None:
    """Fill `buffer`.  EIO if the file ends before."""
    done = os.preadv(fd, [buffer], offset)
    while done < len(buffer):
        count = os.preadv(fd, [buffer[done:]], offset + done)
        if count == 0:
            raise SourceError(errno.EIO, f"the file ends at {offset + done}: it has become shorter")
        done += count


def write_whole(fd: int, data: memoryview, offset: int, flags: int = 0) -> None:
    """Write all of `data`.  `flags` are those of pwritev2(2)."""
    done = os.pwritev(fd, [data], offset, flags) if flags else os.pwrite(fd, data, offset)
    while done < len(data):
        done += os.pwritev(fd, [data[done:]], offset + done, flags)


def version(fd: int) -> str:
    """What names the content of a file as long as nobody writes to it."""
    facts = os.fstat(fd)
    return f"{facts.st_dev}-{facts.st_ino}-{facts.st_size}-{facts.st_mtime_ns}"


def data_runs(fd: int, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """Cut [start, end) into runs (start, end, whether data), in order and without gaps.

    The last run may pass `end`.  A file system that cannot tell calls all of it data.
    """
    while start < end:
        data = _seek(fd, start, os.SEEK_DATA, end)
        if data > start:
            yield start, data, False
        if data < end:
            hole = _seek(fd, data, os.SEEK_HOLE, end)
            yield data, hole, True
            data = hole
        start = data


def _seek(fd: int, offset: int, whence: int, end: int) -> int:
    try:
        return os.lseek(fd, offset, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:  # nothing of that kind up to the end of the file
            return end
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):  # it cannot tell
            return end if whence == os.SEEK_HOLE else offset
        raise
