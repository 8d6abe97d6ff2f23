"""The way from the data plane to pyfuse3 and back: a socket pair that pyfuse3 takes as a mounted descriptor.

Requests go over as they came; replies come back and two kinds are amended on their way to the kernel: INIT, for what
pyfuse3's libfuse cannot negotiate, and OPEN, for flags it does not know.

Invariant: what is on the other side at once, `_MOST` requests and one of them with a long reply, fits into the socket's
buffer both ways, as libfuse drops a reply that does not.  What comes beyond waits here, in order.  Each of them is
answered, so what waits goes over in the end.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Callable

import trio

from nbdfs.errors import reason
from nbdfs.fuse import wire
from nbdfs.fuse.wire import InitFlag, InitReply, InitRequest, Opcode

log = logging.getLogger(__name__)

_MOST = 64
_LARGEST = 128 << 10  # bytes of one message: an extended attribute of 64 KiB with its name is the largest
_BUFFER = 256 << 10  # bytes, half of what the kernel then reserves; any user may have nearly that (net.core.wmem_max)
_LONG_REPLIES = frozenset((Opcode.READDIR, Opcode.READDIRPLUS, Opcode.GETXATTR, Opcode.LISTXATTR))
_DIRECTORY_STEP = 64 << 10  # bytes of a directory in one reply


class ControlLink:
    """Carries control requests of one connection.

    `negotiate` turns the kernel's INIT into our reply.  `opened` is where the control plane leaves what to put into
    its reply to an OPEN: by file handle the FOPEN_* flags and a backing id.
    """

    def __init__(
        self,
        device: int,
        negotiate: Callable[[InitRequest], InitReply],
    ) -> None:
        self._device = device
        self._negotiate = negotiate
        self.opened: dict[int, tuple[int, int]] = {}
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._ours, theirs):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        self.theirs = theirs.detach()  # libfuse closes it
        self._pending: dict[int, int] = {}  # what is on the other side: the opcode, by number of the request
        self._long = 0  # how many of them have a long reply
        self._waiting: deque[tuple[int, int, bytes]] = deque()
        self._initial: InitRequest | None = None
        self._amendments: dict[int, Callable[[memoryview], bytes]] = {
            Opcode.INIT: self._amend_init,
            Opcode.OPEN: self._amend_open,
        }

    def close(self) -> None:
        self._ours.close()

    def forward(self, opcode: int, unique: int, message: memoryview) -> None:
        """Pass a request on, now or when there is room for it."""
        if opcode == Opcode.GETXATTR and not _is_users(message):
            self._write(wire.error_reply(unique, errno.ENODATA))
            return
        if opcode == Opcode.INIT:
            message = self._for_libfuse(message)
        if opcode in (Opcode.READDIR, Opcode.READDIRPLUS):
            _shorten(message)
        if self._waiting or not self._sent(opcode, unique, message):
            self._waiting.append((opcode, unique, bytes(message)))

    async def carry_replies(self) -> None:
        """Bring replies to the kernel, until cancelled or closed."""
        buffer = memoryview(bytearray(_LARGEST))
        while True:
            try:
                length = self._ours.recv_into(buffer)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._ours)
                continue
            if not length:
                return
            self._answer(buffer[:length])
            while self._waiting and self._sent(*self._waiting[0]):
                self._waiting.popleft()

    def _sent(self, opcode: int, unique: int, message: memoryview | bytes) -> bool:
        """Send a request if there is room for it, and for its reply."""
        long = opcode in _LONG_REPLIES
        if len(self._pending) >= _MOST or (long and self._long):
            return False
        try:
            self._ours.send(message)
        except BlockingIOError:
            return False
        self._pending[unique] = opcode
        self._long += long
        return True

    def _answer(self, message: memoryview) -> None:
        _, error, unique = wire.OUT_HEADER.unpack_from(message)
        opcode = self._pending.pop(unique)
        self._long -= opcode in _LONG_REPLIES
        amend = self._amendments.get(opcode)
        self._write(amend(message) if amend and not error else message)

    def _write(self, reply: bytes | memoryview) -> None:
        try:
            os.write(self._device, reply)
        except OSError as failure:
            log.debug("the kernel did not want a reply: %s", reason(failure))

    def _for_libfuse(self, message: memoryview) -> memoryview:
        """INIT as libfuse must see it: an older kernel, and one that cannot splice (it would splice our socket)."""
        self._initial = InitRequest.parse(message)
        flags = self._initial.flags & ~(InitFlag.SPLICE_WRITE | InitFlag.SPLICE_MOVE | InitFlag.SPLICE_READ)
        flags &= ~(InitFlag.INIT_EXT | InitFlag.WRITEBACK_CACHE) & 0xFFFFFFFF
        minor = min(self._initial.minor, wire.LEAST_MINOR)
        changed = bytearray(message)
        struct.pack_into("=IIII", changed, wire.BODY, self._initial.major, minor, self._initial.max_readahead, flags)
        return memoryview(changed)

    def _amend_init(self, message: memoryview) -> bytes:
        assert self._initial is not None
        unique = wire.OUT_HEADER.unpack_from(message)[2]
        return wire.reply(unique, self._negotiate(self._initial).pack())

    def _amend_open(self, message: memoryview) -> bytes:
        _, _, unique = wire.OUT_HEADER.unpack_from(message)
        handle = wire.OPEN_OUT.unpack_from(message, wire.OUT_HEADER.size)[0]
        return wire.reply(unique, wire.OPEN_OUT.pack(handle, *self.opened.pop(handle)))


def _is_users(message: memoryview) -> bool:
    """Whether a GETXATTR is for an attribute of the user.

    No file here has another, an access list or a label; but `ls -l` asks each file for both.
    """
    return message[wire.BODY + wire.GETXATTR_IN.size :].tobytes().startswith(b"user.")


def _shorten(message: memoryview) -> None:
    """Have a directory read in steps."""
    (size,) = wire.SIZE_IN.unpack_from(message, wire.SIZE)
    wire.SIZE_IN.pack_into(message, wire.SIZE, min(size, _DIRECTORY_STEP))
