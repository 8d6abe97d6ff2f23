"""The server's byte streams: sockets, TLS over them, and a pair of pipes.

All are non-blocking.  The `_now` methods never wait: they give WOULD_BLOCK for nothing received, 0 for nothing sent.
One task may receive and one may send at a time.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import struct
from collections.abc import Sequence
from typing import Protocol

import trio

from nbdfs.nbd.tls import explain
from nbdfs.undo import unless_done

WOULD_BLOCK = -1
_LAST_STANDARD = 2  # descriptor of standard error
_MOST_DESCRIPTOR = (1 << 31) - 1
_SOCKET_BUFFER = 4 << 20  # bytes; what a Unix socket takes before the sender must wait
MOST_BUFFERS = 1024  # IOV_MAX
_RECORD = 64 << 10  # bytes; small buffers are joined up to here, to be one TLS record or a few

Buffer = bytes | memoryview


class Stream(Protocol):
    """A connected stream.

    `peer` says in words who is at the other end; `near`, that it is on this machine, to which bytes travel at the speed
    of memory; `can_sendfile`, that `sendfile_now` works.
    """

    peer: str
    near: bool
    can_sendfile: bool

    def recv_now(self, buffer: memoryview) -> int: ...
    def send_now(self, buffers: Sequence[Buffer]) -> int: ...
    def sendfile_now(self, fd: int, offset: int, length: int) -> int: ...
    async def readable(self) -> None: ...
    async def writable(self) -> None: ...
    def close(self) -> None: ...


class SocketStream:
    """A stream socket, not encrypted."""

    can_sendfile = True

    def __init__(self, sock: socket.socket, peer: str) -> None:
        sock.setblocking(False)
        if sock.family == socket.AF_UNIX:
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)
        elif sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.socket = sock
        self.peer = peer
        self.near = sock.family == socket.AF_UNIX

    def recv_now(self, buffer: memoryview) -> int:
        try:
            return self.socket.recv_into(buffer)
        except BlockingIOError:
            return WOULD_BLOCK

    def send_now(self, buffers: Sequence[Buffer]) -> int:
        try:
            return self.socket.sendmsg(buffers[:MOST_BUFFERS])
        except BlockingIOError:
            return 0

    def sendfile_now(self, fd: int, offset: int, length: int) -> int:
        try:
            sent = os.sendfile(self.socket.fileno(), fd, offset, length)
        except BlockingIOError:
            return 0
        if not sent:
            raise OSError(errno.EIO, "a file ended before its data was sent")
        return sent

    async def readable(self) -> None:
        await trio.lowlevel.wait_readable(self.socket)

    async def writable(self) -> None:
        await trio.lowlevel.wait_writable(self.socket)

    def close(self) -> None:
        if self.socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()


class TlsStream(SocketStream):
    """A socket under TLS, the server's end."""

    can_sendfile = False

    def __init__(self, plain: SocketStream, context: ssl.SSLContext) -> None:
        self.peer = plain.peer
        self.near = False  # encrypting a byte costs more than not sending it
        self._tls = context.wrap_socket(plain.socket, server_side=True, do_handshake_on_connect=False)
        self.socket = self._tls
        self._record = memoryview(b"")  # what OpenSSL was given and has not taken yet: it must be given the same again

    async def handshake(self) -> None:
        """Raises ConnectionError if the two ends do not agree."""
        while True:
            try:
                return self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.readable()
            except ssl.SSLWantWriteError:
                await self.writable()
            except (OSError, ValueError) as error:
                raise ConnectionError(errno.ECONNREFUSED, f"TLS: {explain(error)}") from error

    def recv_now(self, buffer: memoryview) -> int:
        try:
            return self.socket.recv_into(buffer)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return WOULD_BLOCK
        except ssl.SSLEOFError:
            return 0
        except ssl.SSLError as error:
            raise ConnectionError(errno.EPROTO, f"TLS: {explain(error)}") from error

    def send_now(self, buffers: Sequence[Buffer]) -> int:
        record = self._record or tls_record(buffers)
        try:
            sent = self.socket.send(record)
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            sent = 0
        except ssl.SSLError as error:
            raise ConnectionError(errno.EPROTO, f"TLS: {explain(error)}") from error
        self._record = record[sent:]
        return sent


def tls_record(buffers: Sequence[Buffer]) -> memoryview:
    """The next bytes to encrypt: a header goes with what follows it, and small replies go together."""
    size = 0
    for count, buffer in enumerate(buffers):
        size += len(buffer)
        if size > _RECORD:
            return memoryview(b"".join(buffers[:count]) if count else buffers[0])
    return memoryview(b"".join(buffers))


class PipeStream:
    """Two descriptors, as a program run by inetd or as a client's child has them."""

    near = False  # ssh may be behind them
    can_sendfile = False

    def __init__(self, reading: int, writing: int, peer: str) -> None:
        self._reading = reading
        self._writing = writing
        self.peer = peer
        for fd in (reading, writing):
            os.set_blocking(fd, False)

    def recv_now(self, buffer: memoryview) -> int:
        try:
            return os.readv(self._reading, [buffer])
        except BlockingIOError:
            return WOULD_BLOCK

    def send_now(self, buffers: Sequence[Buffer]) -> int:
        try:
            return os.writev(self._writing, buffers[:MOST_BUFFERS])
        except BlockingIOError:
            return 0

    def sendfile_now(self, fd: int, offset: int, length: int) -> int:
        raise OSError(errno.ENOTSUP, "a pipe has no sendfile")

    async def readable(self) -> None:
        await trio.lowlevel.wait_readable(self._reading)

    async def writable(self) -> None:
        await trio.lowlevel.wait_writable(self._writing)

    def close(self) -> None:
        for fd in {self._reading, self._writing}:
            trio.lowlevel.notify_closing(fd)
            os.close(fd)


def inherited_socket(descriptor: int) -> socket.socket:
    """The socket that was given to us as a descriptor.  Raises OSError.

    A standard stream is left where it is too: its number is closed by whoever tends those.
    """
    if descriptor > _MOST_DESCRIPTOR:
        raise OSError(errno.EBADF, "there is no such number")
    if descriptor > _LAST_STANDARD:
        os.set_inheritable(descriptor, False)
        return socket.socket(fileno=descriptor)
    own = os.dup(descriptor)
    with unless_done(lambda: os.close(own)):
        return socket.socket(fileno=own)


def credentials(sock: socket.socket) -> tuple[int, int] | None:
    """(process id, user id) of the peer of a Unix socket."""
    if sock.family != socket.AF_UNIX:
        return None
    pid, uid, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid
