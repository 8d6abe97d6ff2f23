"""FUSE passthrough: the kernel serves read, write and mmap of a file from a descriptor of ours.

Needs Linux 6.9 and CAP_SYS_ADMIN.  A write through the kernel could make a plain file grow, past what the mount
promises; so only a backing file whose size is fixed is passed through.
"""

from __future__ import annotations

import errno
import fcntl
import struct

from nbdfs.errors import SourceError
from nbdfs.fuse import wire
from nbdfs.fuse.tree import File


class Passthrough:
    """The backing files registered with one FUSE connection; `enabled` once INIT has agreed to it."""

    def __init__(self, device: int) -> None:
        self._device = device
        self.enabled = False

    def open(self, file: File) -> int:
        """The backing id of a file, 0 if the data plane must serve it.

        All handles of an inode must agree, so what the first call decides is kept.
        """
        if not self.enabled or file.backing_id < 0:
            return 0
        if not file.backing_id:
            file.backing_id = self._register(file)
        return max(file.backing_id, 0)

    def close(self, file: File) -> None:
        """Let go of a file that no handle has open."""
        if file.backing_id > 0:
            fcntl.ioctl(self._device, wire.BACKING_CLOSE, struct.pack("=I", file.backing_id))
        file.backing_id = 0

    def _register(self, file: File) -> int:
        backing = file.source.backing()
        if backing is None or backing.offset or not backing.fixed_size:
            return -1
        try:
            # Only with a mutable argument does ioctl() give the result of the call.
            mapping = bytearray(wire.BACKING_MAP.pack(backing.fd, 0, 0))
            return int(fcntl.ioctl(self._device, wire.BACKING_OPEN, mapping))
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ELOOP, errno.EINVAL):
                return -1  # not this kind of file, or not this deep: the data plane serves it
            raise SourceError(error.errno or errno.EIO, "the kernel refuses the backing file") from error
