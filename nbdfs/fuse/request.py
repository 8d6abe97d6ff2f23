"""One request of the kernel, from its message to its one answer."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from nbdfs.fuse import wire

_SMALL = 128 << 10  # bytes: a message up to this size is copied rather than its buffer given away


class Request:
    """A request of the data plane.  `answered` is true once a reply was sent; a second one is ignored."""

    __slots__ = ("_device", "answered", "message", "opcode", "progress", "unique")

    def __init__(self, device: int, opcode: int, unique: int, message: memoryview) -> None:
        self._device = device
        self.opcode = opcode
        self.unique = unique
        self.message = message
        self.answered = False
        self.progress: Callable[[], None] = _nothing  # a long request tells that it got on

    def __str__(self) -> str:
        return wire.Opcode(self.opcode).name

    def detach(self) -> bool:
        """Make the request outlive the reading of the next one; True if it needs the buffer for that."""
        if len(self.message) > _SMALL:
            return True
        self.message = memoryview(bytes(self.message))
        return False

    def reply(self, body: bytes | memoryview = b"") -> None:
        """Answer with a body."""
        self._send([wire.OUT_HEADER.pack(wire.OUT_HEADER.size + len(body), 0, self.unique), body])

    def fail(self, number: int) -> None:
        """Answer with an errno."""
        self._send([wire.error_reply(self.unique, number)])

    def _send(self, parts: list[bytes | memoryview]) -> None:
        if self.answered:
            return
        self.answered = True
        try:
            os.writev(self._device, parts)
        except OSError as error:
            # ENOENT: an interrupted request that the kernel has given up; ENODEV: unmounted meanwhile.
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ENOTCONN):
                raise


def _nothing() -> None:
    return
