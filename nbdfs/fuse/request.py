"""One request of the kernel, from its message to its one answer."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable

from nbdfs.fuse import wire

_HEADERS = wire.OUT_HEADER.size


class Request:
    """A request of the data plane and the memory for it; used again once it was answered.

    The kernel's `message` is read to where the data of a WRITE begins on a page.  That place, `payload`, also takes
    the data of the reply to a READ, whose header then lies before it: one piece of memory, one system call.
    `answered` is true once a reply was sent; a second one is ignored.
    """

    __slots__ = ("_device", "_framed", "answered", "flags", "inode", "message", "offset", "opcode", "payload",
                 "progress", "size", "unique", "vector")  # fmt: skip

    def __init__(self, device: int) -> None:
        memory = memoryview(mmap.mmap(-1, mmap.PAGESIZE + wire.REQUEST_SIZE))
        self._device = device
        self._framed = memory[mmap.PAGESIZE - _HEADERS :]
        self.message = memory[mmap.PAGESIZE - wire.DATA :]
        self.payload = memory[mmap.PAGESIZE :]
        self.vector = [self.message]
        self.opcode = self.unique = self.inode = self.offset = self.size = self.flags = 0
        self.answered = True
        self.progress: Callable[[], None] = _nothing  # a long request tells that it got on

    def __str__(self) -> str:
        return wire.Opcode(self.opcode).name

    def parse(self) -> None:
        """Take in the message that was read; offset, size and flags (of open(2)) mean something in READ and WRITE."""
        self.opcode, self.unique, self.inode, self.offset, self.size, self.flags = wire.REQUEST.unpack_from(
            self.message
        )
        self.answered = False

    def reply(self, body: bytes | memoryview = b"") -> None:
        """Answer with a body."""
        if not self.answered:
            self.answered = True
            header = wire.OUT_HEADER.pack(_HEADERS + len(body), 0, self.unique)
            try:
                os.writev(self._device, (header, body))
            except OSError as error:
                _unwanted(error)

    def reply_payload(self, size: int) -> None:
        """Answer with the first `size` bytes of `payload`."""
        if not self.answered:
            self.answered = True
            size += _HEADERS
            wire.OUT_HEADER.pack_into(self._framed, 0, size, 0, self.unique)
            try:
                os.write(self._device, self._framed[:size])
            except OSError as error:
                _unwanted(error)

    def reply_written(self, size: int) -> None:
        """Answer a WRITE of which `size` bytes were done."""
        if not self.answered:
            self.answered = True
            try:
                os.write(self._device, wire.WRITTEN.pack(wire.WRITTEN.size, 0, self.unique, size))
            except OSError as error:
                _unwanted(error)

    def fail(self, number: int) -> None:
        """Answer with an errno."""
        if not self.answered:
            self.answered = True
            try:
                os.write(self._device, wire.error_reply(self.unique, number))
            except OSError as error:
                _unwanted(error)


def _unwanted(error: OSError) -> None:
    """ENOENT: an interrupted request that the kernel has given up; the others: unmounted meanwhile."""
    if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ENOTCONN):
        raise error


def _nothing() -> None:
    return
