"""One connection to an NBD export that blocks its thread: what a lane reads from and writes to.

The protocol is that of the client's other driver: `Handshake` and `Replies`.  A header is received to its last byte and
not beyond, so that the payload behind it can be moved on by the kernel without being seen here.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Callable, Iterable
from typing import Any, cast

from nbdfs.copying.direct.blocking import at_once
from nbdfs.errors import SourceError
from nbdfs.nbd.handshake import Handshake
from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.proto.events import ProtocolError
from nbdfs.nbd.proto.input import Input
from nbdfs.nbd.proto.pending import Pending
from nbdfs.nbd.proto.replies import CHUNK, Replies
from nbdfs.nbd.uri import HOST_CID, Address, Tcp, Unix, Uri
from nbdfs.source import ALLOCATION
from nbdfs.undo import unless_done

_HANDSHAKE_TIMEOUT = 15.0  # seconds for each wait of a handshake
_HEADERS = 4096  # bytes; more than any header is long
_ON_THE_WAY = 1 << 20  # bytes sent that a local server need not have taken yet: the lane goes on meanwhile


class Request(Pending):
    """A request of a lane, which keeps its own notes on it in `note`."""

    __slots__ = ("note",)

    def __init__(self, command: int, offset: int, length: int, flags: int = 0, *, note: Any = None) -> None:
        super().__init__(command, offset, length, flags)
        self.note = note


class LostError(Exception):
    """The connection is of no use any more; what is in flight on it may have been carried out or not."""


class _Replies(Replies[Request]):
    """The parser of replies, asked for what comes next."""

    exact = True  # no more than a header is received, since payload may follow that belongs elsewhere
    shortest = 0  # bytes of a header

    @property
    def reading(self) -> Request | None:
        """The READ whose data the next `payload_left` bytes are, from `reading_at` of the device on."""
        request = self._request
        data = self.payload_left and request and request.buffer is not None and self._into is request.buffer
        return request if data else None  # what describes a hole goes elsewhere

    @property
    def reading_at(self) -> int:
        assert self._request
        return self._request.offset + self._at

    @property
    def wanted(self) -> int:
        """Bytes of a header without which there is no next event."""
        return max(self._wanted, self.shortest) - len(self.received)

    def all_are_chunks(self) -> None:
        """Nothing is asked for from now on whose reply is simple, if there are structured ones."""
        self.shortest = CHUNK.size if self._structured else 0

    def space(self) -> memoryview:
        """Where to receive what comes next."""
        space = self.received.space()
        return space[: self.wanted] if self.exact else space


class Connection:
    """The transmission phase of one connection, begun by `connect`.  `name` says in words where it leads.

    Methods raise LostError when the connection is, which it then stays.
    """

    encrypted = False

    def __init__(self, sock: socket.socket, name: str) -> None:
        self.socket = sock
        self.peer = self.name = name
        self.lost = False

    # What a handshake asks of its channel.  Nothing here is ever waited for: the thread blocks instead.

    async def recv_exactly(self, length: int) -> bytes:
        data = self.socket.recv(length, socket.MSG_WAITALL) if length else b""
        if len(data) < length:
            raise ConnectionResetError(errno.ECONNRESET, f"{self.name} closed the connection")
        return data

    async def send_rest(self, data: memoryview) -> None:
        self.socket.sendall(data)

    def send_now(self, header: bytes) -> int:
        return self.socket.send(header)

    def shake_hands(self, export: str) -> None:
        """Enter the export.  Raises OSError that says what is wrong."""
        handshake = Handshake(cast(Any, self))
        at_once(handshake.begin(None, "", extended=False))
        if handshake.facts.protocol == "oldstyle":
            raise SourceError(errno.EPROTO, f"{self.name} speaks the oldstyle protocol of NBD")
        self.export = at_once(handshake.go(export, (ALLOCATION,)))
        self._input = Input(_HEADERS)
        self.replies = _Replies(self._input, structured=handshake.facts.structured, extended=False)
        self._next_cookie = 1

    # Requests

    def only_read(self, longest: int) -> None:
        """Nothing will be written: payload may be moved on by the kernel, as much of it as possible at once.

        Whatever is received from now on is waited for until all of it is here.
        """
        self.replies.all_are_chunks()
        if self.socket.family == socket.AF_UNIX:  # TCP would not tell of a header that is shorter
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, longest)

    def only_write(self) -> None:
        """Nothing will be read: all that comes is headers, and what is said of the export's map."""
        self.replies.exact = False

    def begin(self, request: Request, payload: memoryview | None = None) -> None:
        """Send a request."""
        header = self.header(request)
        if payload is None:
            self._checked(self.socket.sendall, header)
            return
        sent = self._checked(self.socket.sendmsg, [header, payload])
        for rest in (header[sent:], payload[max(sent - len(header), 0) :]):
            if rest:
                self._checked(self.socket.sendall, rest)

    def begin_all(self, requests: Iterable[Request]) -> None:
        """Send requests without payloads, together."""
        self._checked(self.socket.sendall, b"".join([self.header(request) for request in requests]))

    def header(self, request: Request) -> bytes:
        """What is sent of a request ahead of its payload; it is in flight from now on."""
        request.cookie = self._next_cookie
        self._next_cookie += 1
        self.replies.in_flight[request.cookie] = request
        return request.message(False)

    def reply_here(self) -> Request | None:
        """The next request whose reply is complete, if all of it was received."""
        try:
            return self.replies.next_event()
        except ProtocolError as error:
            raise self._lose(f"{self.name} broke the protocol: {error}") from error

    def reply(self, *, wait: bool) -> Request | None:
        """The next request whose reply is complete.

        None if the data of a READ comes first, as `replies.reading` tells, or without `wait` if nothing is here.
        """
        replies = self.replies
        while True:
            request = self.reply_here()
            if request is not None:
                return request
            if replies.payload_left:
                if replies.reading is not None:
                    return None
                replies.payload_received(self.receive(replies.place()))
                continue
            begun = wait or len(self._input) > 0
            count = self.receive(replies.space()) if begun else self._receive_now(replies.space())
            if not count:
                return None
            self._input.received(count)

    def receive(self, place: memoryview, flags: int = 0) -> int:
        """Receive into `place`, at least one byte; with MSG_WAITALL as much as comes before the time is over."""
        return self._received(self._checked(self.socket.recv_into, place, 0, flags))

    def close(self) -> None:
        """Say goodbye if there is anybody, and close."""
        if not self.lost:
            with contextlib.suppress(OSError):  # who left has no need of it
                self.socket.send(Request(nbd.CMD_DISC, 0, 0).message(False), socket.MSG_DONTWAIT)
        self.socket.close()

    def interrupt(self) -> None:
        """Make whatever thread blocks on the connection find it lost.  May be called by any thread."""
        self.lost = True
        with contextlib.suppress(OSError):  # it is connected no more
            self.socket.shutdown(socket.SHUT_RDWR)

    def _receive_now(self, place: memoryview) -> int:
        """Receive what is here, which may be nothing."""
        try:
            count = self.socket.recv_into(place, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._lose(error.strerror or str(error)) from error
        return self._received(count)

    def _received(self, count: int) -> int:
        if not count:
            raise self._lose(f"{self.name} closed the connection")
        return count

    def _checked(self, step: Any, *arguments: Any) -> Any:
        try:
            return step(*arguments)
        except BlockingIOError:  # SO_RCVTIMEO, SO_SNDTIMEO
            raise self._lose(f"no answer from {self.name}") from None
        except OSError as error:
            raise self._lose(error.strerror or str(error)) from error

    def _lose(self, reason: str) -> LostError:
        self.lost = True
        return LostError(reason)


def connect(uri: Uri, timeout: float, opened: Callable[[Connection], None]) -> Connection:
    """Connect and enter the export; a wait for the server ends after `timeout` seconds.  Raises OSError.

    `opened` is told of the connection before anything is waited for, so that others can interrupt it.
    """
    sock = _dial(uri.address)
    connection = Connection(sock, str(uri))
    with unless_done(connection.interrupt):
        opened(connection)
        _limit_waits(sock, _HANDSHAKE_TIMEOUT)
        try:
            connection.shake_hands(uri.export)
        except BlockingIOError:
            reason = f"{uri} does not answer: no handshake within {_HANDSHAKE_TIMEOUT:g} s"
            raise TimeoutError(errno.ETIMEDOUT, reason) from None
        _limit_waits(sock, timeout)
    return connection


def _dial(address: Address) -> socket.socket:
    try:
        if isinstance(address, Tcp):
            sock = socket.create_connection((address.host, address.port), _HANDSHAKE_TIMEOUT)
            sock.settimeout(None)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        family, target = (
            (socket.AF_UNIX, address.path)
            if isinstance(address, Unix)
            else (socket.AF_VSOCK, (HOST_CID if address.cid is None else address.cid, address.port))
        )
        sock = socket.socket(family, socket.SOCK_STREAM)
        with unless_done(sock.close):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ON_THE_WAY)  # as far as the system lets us
            _limit_waits(sock, _HANDSHAKE_TIMEOUT)
            sock.connect(target)
        return sock
    except OSError as error:
        raise ConnectionError(
            error.errno or errno.ECONNREFUSED, f"cannot connect to {address}: {error.strerror or error}"
        ) from error


def _limit_waits(sock: socket.socket, seconds: float) -> None:
    limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))  # struct timeval
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, limit)
