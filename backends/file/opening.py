"""Open a path, find out what it is, and claim it: one clear line for whatever is wrong with it."""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import stat
import struct

from nbdfs import libc
from nbdfs.errors import NotWritableError, UserError
from nbdfs.fileio import LOCAL
from nbdfs.ranges import align_down
from nbdfs.records import Record
from nbdfs.undo import unless_done

log = logging.getLogger(__name__)

_BLKROGET = 0x125E  # linux/fs.h: whether the device is read-only
_BLKSSZGET = 0x1268  # size of a logical block
_OTHER_KINDS = {
    stat.S_IFDIR: "is a directory: name a file or a block device",
    stat.S_IFCHR: "is a character device: name a file or a block device",
    stat.S_IFIFO: "is a pipe: its bytes can be read only once, copy them into a file first",
    stat.S_IFSOCK: "is a socket: an NBD server is named by nbd+unix:///?socket=PATH",
}
_RESIDENT = {0x01021994: "tmpfs"}


class Opened(Record):
    """An open file: `size` in bytes, of `whole` that it has, `block` the alignment its requests need.

    `local`: its page cache is near.  `resident`: its page cache is all there is of it.
    """

    fd: int
    size: int
    whole: int
    block: int
    device: bool
    local: bool
    resident: bool


def open_path(path: str, *, readonly: bool, direct: bool, lock: bool) -> Opened:
    """Open and claim a file.  Raises UserError."""
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)  # before opening, which could wait on a pipe
        if kind in _OTHER_KINDS:
            raise UserError(f"{path} {_OTHER_KINDS[kind]}")
        device = kind == stat.S_IFBLK
        exclusive = os.O_EXCL if device and lock and not readonly else 0
        access = os.O_RDONLY if readonly else os.O_RDWR
        fd = os.open(path, access | os.O_CLOEXEC | exclusive | (os.O_DIRECT if direct else 0))
    except OSError as error:
        raise _refusal(path, error, direct) from error
    with unless_done(lambda: os.close(fd)):
        if device and not readonly and struct.unpack("i", fcntl.ioctl(fd, _BLKROGET, bytes(4)))[0]:
            raise NotWritableError(
                f"{path} cannot be written, it is a read-only device: use -r to open it for reading only"
            )
        if lock and not readonly:
            _claim(fd, path)
        whole = os.lseek(fd, 0, os.SEEK_END)
        block = _block(fd, path, whole, device=device, direct=direct)
        size = align_down(whole, block)
        kind = 0 if device else libc.filesystem_type(fd)
        return Opened(fd, size, whole, block, device, kind in LOCAL, kind in _RESIDENT)


def _refusal(path: str, error: OSError, direct: bool) -> UserError:
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY) and os.access(path, os.R_OK):
        return NotWritableError(f"{path} cannot be written ({error.strerror}): use -r to open it for reading only")
    if error.errno == errno.EBUSY:
        return NotWritableError(f"{path} is in use, mounted or opened by another program: end that first, or use -r")
    if error.errno == errno.EINVAL and direct:
        return UserError(f"{path} cannot be opened with direct: its file system does not allow it")
    return UserError(f"cannot open {path}: {error.strerror}")


def _claim(fd: int, path: str) -> None:
    """Take a lock on all of the file, as a writer; programs that look for locks (QEMU, nbdfs) then stay away."""
    everything = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # struct flock
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, everything)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise NotWritableError(
                f"{path} is being used by another program, which holds a lock on it: end that first, or use -r"
            ) from error
        log.info("%s: its file system has no locks: see that nobody else writes to it", path)


def _block(fd: int, path: str, size: int, *, device: bool, direct: bool) -> int:
    """The alignment that requests need: a power of two."""
    if device:
        return int(struct.unpack("i", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))[0])
    if not direct or size == 0:
        return 1
    page = mmap.mmap(-1, mmap.PAGESIZE)
    for block in (512, mmap.PAGESIZE):
        try:
            os.preadv(fd, [memoryview(page)[:block]], 0)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        else:
            return block
    raise UserError(f"{path} cannot be read with direct: its blocks are larger than a page")
