"""The FUSE protocol as far as the data plane speaks it: numbers and layouts of <linux/fuse.h>.

Every message from the kernel begins with a header of 40 bytes and every reply with one of 16; all integers are in the
machine's byte order.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator

from nbdfs.records import Record


class Opcode(enum.IntEnum):
    """enum fuse_opcode: those that nbdfs looks at."""

    FORGET = 2
    OPEN = 14
    READ = 15
    WRITE = 16
    FSYNC = 20
    GETXATTR = 22
    LISTXATTR = 23
    FLUSH = 25
    INIT = 26
    READDIR = 28
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    LSEEK = 46
    COPY_FILE_RANGE = 47
    COPY_FILE_RANGE_64 = 53


class InitFlag(enum.IntFlag):
    """FUSE_INIT flags; those from bit 32 on travel in `flags2`."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    SPLICE_WRITE = 1 << 7
    SPLICE_MOVE = 1 << 8
    SPLICE_READ = 1 << 9
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    EXPLICIT_INVAL_DATA = 1 << 25
    HANDLE_KILLPRIV_V2 = 1 << 28
    INIT_EXT = 1 << 30
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    PASSTHROUGH = 1 << 37


class OpenFlag(enum.IntFlag):
    """FOPEN_* of an open reply."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    NOFLUSH = 1 << 5
    PARALLEL_DIRECT_WRITES = 1 << 6
    PASSTHROUGH = 1 << 7


IN_HEADER = struct.Struct("=IIQQIIIHH")  # length, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding
OUT_HEADER = struct.Struct("=IiQ")  # length, error (negative errno, or notification code), unique

# Bodies, all at offset 40 of a request.
IO_IN = struct.Struct("=QQIIQII")  # READ and WRITE: fh, offset, size, io flags, lock_owner, flags, padding
LSEEK_IN = struct.Struct("=QQII")  # fh, offset, whence, padding
FALLOCATE_IN = struct.Struct("=QQQII")  # fh, offset, length, mode, padding
FORGET_IN = struct.Struct("=Q")  # nlookup
BATCH_FORGET_IN = struct.Struct("=II")  # count, padding; then so many FORGET_ONE
FORGET_ONE = struct.Struct("=QQ")  # nodeid, nlookup
SIZE_IN = struct.Struct("=I")  # the size in an IO_IN, at SIZE
GETXATTR_IN = struct.Struct("=II")  # size, padding; then the name and NUL
INTERRUPT_IN = struct.Struct("=Q")  # unique of the request to interrupt
COPY_FILE_RANGE_IN = struct.Struct("=QQQQQQQ")  # fh_in, off_in, nodeid_out, fh_out, off_out, len, flags
INIT_IN = struct.Struct("=IIII")  # major, minor, max_readahead, flags; then flags2 (u32) and unused

# What the data plane needs of a READ or WRITE, header and body at once: opcode, unique, nodeid, offset, size, flags.
REQUEST = struct.Struct("=4xIQQ16x8xQI4x8xI4x")

# Bodies of replies and notifications, at offset 16.
WRITE_OUT = struct.Struct("=II")  # size, padding
WRITTEN = struct.Struct("=IiQI4x")  # header and WRITE_OUT at once
LSEEK_OUT = struct.Struct("=Q")  # offset
COPY_OUT = struct.Struct("=Q")  # bytes_copied
OPEN_OUT = struct.Struct("=QIi")  # fh, open_flags, backing_id
INIT_OUT = struct.Struct("=IIIIHHIIHHIIH22x")  # see InitReply
INVALIDATE_INODE = struct.Struct("=Qqq")  # nodeid, offset, length

NOTIFY_INVALIDATE_INODE = 2
BODY = IN_HEADER.size
SIZE = BODY + 16
DATA = BODY + IO_IN.size  # where the payload of a WRITE begins

# ioctl(2) requests on /dev/fuse.
BACKING_OPEN = 0x4010E501  # FUSE_DEV_IOC_BACKING_OPEN, takes BACKING_MAP
BACKING_CLOSE = 0x4004E502  # FUSE_DEV_IOC_BACKING_CLOSE, takes the id (u32)
BACKING_MAP = struct.Struct("=iIQ")  # fd, flags, padding

MAX_PAGES = 256  # pages of one request: /proc/sys/fs/fuse/max_pages_limit unless root raised it
MAX_WRITE = MAX_PAGES * 4096
REQUEST_SIZE = MAX_WRITE + 4096  # bytes: the largest message from the kernel
LEAST_MINOR = 31  # Linux 5.4: the oldest protocol the data plane speaks


class InitRequest(Record):
    """What the kernel offers in FUSE_INIT."""

    major: int
    minor: int
    max_readahead: int
    flags: int

    @classmethod
    def parse(cls, message: memoryview) -> InitRequest:
        major, minor, readahead, flags = INIT_IN.unpack_from(message, BODY)
        if flags & InitFlag.INIT_EXT:
            flags |= struct.unpack_from("=I", message, BODY + INIT_IN.size)[0] << 32
        return cls(major, minor, readahead, flags)


class InitReply(Record):
    """What we take: protocol minor, flags, limits in bytes, requests and pages."""

    minor: int
    flags: int
    max_readahead: int
    max_background: int
    max_stack_depth: int

    def pack(self) -> bytes:
        return INIT_OUT.pack(
            7,
            self.minor,
            self.max_readahead,
            self.flags & 0xFFFFFFFF,
            self.max_background,
            self.max_background * 3 // 4,
            MAX_WRITE,
            1,  # time granularity, ns
            MAX_PAGES,
            0,
            self.flags >> 32,
            self.max_stack_depth,
            0,
        )


def forgotten(opcode: int, message: memoryview) -> Iterator[tuple[int, int]]:
    """What a FORGET or BATCH_FORGET names: inodes, each with the number of references that the kernel drops."""
    if opcode == Opcode.FORGET:
        yield IN_HEADER.unpack_from(message)[3], FORGET_IN.unpack_from(message, BODY)[0]
        return
    count, begin = BATCH_FORGET_IN.unpack_from(message, BODY)[0], BODY + BATCH_FORGET_IN.size
    yield from FORGET_ONE.iter_unpack(message[begin : begin + count * FORGET_ONE.size])


def reply(unique: int, body: bytes = b"") -> bytes:
    """A successful reply with a small body."""
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, unique) + body


def error_reply(unique: int, number: int) -> bytes:
    """A reply that fails with an errno."""
    return OUT_HEADER.pack(OUT_HEADER.size, -number, unique)


def notification(code: int, body: bytes) -> bytes:
    """A message to the kernel that answers no request."""
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), code, 0) + body
