"""The client's byte stream: a non-blocking socket, plain or under TLS, that receives straight into the caller's memory.

It has what `trio.SocketStream` has not: `recv_into`, one `sendmsg` for header and payload, and the `_now` forms that
never wait, for callers that poll.  One task may receive and one may send at a time.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import TypeVar

import trio

from nbdfs.nbd.stream import MOST_BUFFERS, Buffer, tls_record
from nbdfs.nbd.tls import explain
from nbdfs.nbd.uri import HOST_CID, Address, Tcp, Unix
from nbdfs.undo import unless_done

T = TypeVar("T")
WOULD_BLOCK = -1
_SOCKET_BUFFER = 4 << 20  # bytes; what a Unix socket takes before the sender must wait


class Channel:
    """A connected stream.  `peer` says in words who is at the other end."""

    def __init__(self, sock: socket.socket, peer: str) -> None:
        sock.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF) if sock.family == socket.AF_UNIX else ():
            sock.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)
        self._socket = sock
        self.peer = peer
        self._tls: ssl.SSLSocket | None = None
        self._record = memoryview(b"")  # what OpenSSL was given and has not taken yet: it must be given the same again

    async def start_tls(self, context: ssl.SSLContext, hostname: str) -> None:
        """Go on under TLS.  Raises ConnectionError if the two ends do not agree."""
        wrapped = context.wrap_socket(self._socket, server_hostname=hostname, do_handshake_on_connect=False)
        self._socket = self._tls = wrapped
        try:
            await self._until_done(wrapped.do_handshake)
        except OSError as error:
            raise ConnectionError(errno.ECONNREFUSED, f"TLS with {self.peer}: {explain(error)}") from error

    async def _until_done(self, step: Callable[[], T]) -> T:
        while True:
            try:
                return step()
            except (BlockingIOError, ssl.SSLWantReadError):
                await trio.lowlevel.wait_readable(self._socket)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self._socket)

    def recv_now(self, buffer: memoryview) -> int:
        """Receive into `buffer` what is here: its length, 0 at the end of the stream, WOULD_BLOCK for nothing."""
        try:
            return self._socket.recv_into(buffer)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return WOULD_BLOCK
        except ssl.SSLEOFError:
            return 0

    async def readable(self) -> None:
        """Wait until `recv_now` may have something."""
        await trio.lowlevel.wait_readable(self._socket)

    async def writable(self) -> None:
        """Wait until `send_now` may take something."""
        await trio.lowlevel.wait_writable(self._socket)

    def send_now(self, buffers: Sequence[Buffer]) -> int:
        """Send what goes without waiting; give its length.  What does not go must be offered again first."""
        try:
            if self._tls is None:
                return self._socket.sendmsg(buffers[:MOST_BUFFERS])
            if not self._record:
                self._record = tls_record(buffers)
            sent = self._socket.send(self._record)
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return 0
        self._record = self._record[sent:]
        return sent

    def own(self) -> None:
        """Copy what was offered and is kept under way: the buffers of `send_now` may be used for something else."""
        self._record = memoryview(bytes(self._record))

    async def send_rest(self, data: memoryview) -> None:
        """Send all of `data`."""
        while data:
            data = data[await self._until_done(lambda rest=data: self._send(rest)) :]  # type: ignore[misc]

    def _send(self, data: memoryview) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            raise ssl.SSLWantWriteError from None

    async def recv_exactly(self, length: int) -> bytes:
        """The next `length` bytes, for the handshake.  Raises ConnectionError if the stream ends before."""
        data = memoryview(bytearray(length))
        done = 0
        while done < length:
            received = self.recv_now(data[done:])
            if received == 0:
                raise ConnectionResetError(errno.ECONNRESET, f"{self.peer} closed the connection")
            if received == WOULD_BLOCK:
                await self.readable()
            else:
                done += received
        return bytes(data)

    def close(self) -> None:
        """Close at once; whoever waits for the socket gets trio.ClosedResourceError."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


async def dial(address: Address) -> Channel:
    """Connect.  Raises OSError with the address in its message."""
    try:
        if isinstance(address, Tcp):
            stream = await trio.open_tcp_stream(address.host, address.port)
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            return Channel(_detach(stream.socket), str(address))
        if isinstance(address, Unix):
            sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            target: object = address.path
        else:
            sock = trio.socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
            target = (HOST_CID if address.cid is None else address.cid, address.port)
        with unless_done(lambda: sock.close()):
            await sock.connect(target)
        return Channel(_detach(sock), str(address))
    except OSError as error:
        while isinstance(error.__cause__, OSError | BaseExceptionGroup):  # trio tried several addresses
            cause = error.__cause__
            error = cause if isinstance(cause, OSError) else cause.exceptions[0]  # type: ignore[assignment]
        number = error.errno or errno.ECONNREFUSED
        # trio puts the address into the text; the numbers of a name that is not found are not those of errno.
        reason = os.strerror(number) if number in errno.errorcode else error.strerror or str(error)
        raise ConnectionError(number, f"cannot connect to {address}: {reason}") from error
    except UnicodeError as error:  # a server may send us anywhere
        raise ConnectionError(errno.EINVAL, f"cannot connect to {address}: this is no name of a host") from error


def _detach(sock: trio.socket.SocketType) -> socket.socket:
    return socket.socket(sock.family, sock.type, sock.proto, sock.detach())
