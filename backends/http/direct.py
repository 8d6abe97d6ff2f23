"""HTTP/1.1 over connections of our own, plain or under TLS: the way of nearly every read.

h11 makes the request and reads the head of the response.  A body whose length the head tells is received straight into
the caller's memory; any other goes through h11 too.

Invariant: a connection is idle only after a whole response, with nothing of another one received; whoever leaves a
response before its end closes the connection.
"""

from __future__ import annotations

import functools
import ssl
import time
import urllib.parse
from collections import deque
from typing import NamedTuple

import h11
import trio

from nbdfs.backends.http.wire import (
    Headers,
    Response,
    UnreachableError,
    UntrustedError,
    Wire,
    WireError,
    target_of,
)
from nbdfs.nbd.channel import WOULD_BLOCK, Channel, dial
from nbdfs.nbd.uri import Tcp, Unix
from nbdfs.undo import unless_done

_KEEP_ALIVE = 30.0  # seconds an idle connection is kept
_MOST_HEAD = 64 << 10  # bytes
_CHUNK = 64 << 10  # bytes received at once for h11
_TURN = 16  # receives in a row, after which other tasks have their turn, and deadlines are seen
_PORTS = {"http": 80, "https": 443}


class _Place(NamedTuple):
    """Where a URL leads: an origin, and what to ask it for."""

    origin: tuple[str, str, int]  # scheme, host, port
    target: str


@functools.lru_cache(maxsize=16)
def _place(url: str) -> _Place:
    parts = urllib.parse.urlsplit(url)
    origin = (parts.scheme, parts.hostname or "", parts.port or _PORTS[parts.scheme])
    return _Place(origin, target_of(url))


class _Connection:
    """A connection to an origin; nothing of it waits longer than `stall` seconds for a byte."""

    def __init__(self, channel: Channel, origin: tuple[str, str, int], stall: float) -> None:
        self.origin = origin
        self.idle_since = 0.0
        self._channel = channel
        self._stall = stall
        self._came = 0  # receives in a row that did not wait
        self.close = channel.close

    @property
    def usable(self) -> bool:
        """Whether an idle connection is still there: a server that says anything now says goodbye."""
        if time.monotonic() - self.idle_since > _KEEP_ALIVE:
            return False
        try:
            return self._channel.recv_now(memoryview(bytearray(1))) == WOULD_BLOCK
        except OSError:
            return False

    async def send(self, data: bytes) -> None:
        with trio.move_on_after(self._stall) as scope:
            try:
                await self._channel.send_rest(memoryview(data))
            except OSError as error:
                raise WireError(error.strerror or str(error)) from error
        if scope.cancelled_caught:
            raise WireError("the server takes nothing")

    async def receive_into(self, buffer: memoryview) -> int:
        """What is here, or comes next; 0 at the end of the connection.

        Nothing is awaited once something has come: `buffer` may be one that tasks share, and a count must not be lost.
        """
        self._came += 1
        if self._came % _TURN == 0:  # a server may say more, and faster, than we can hear
            await trio.lowlevel.checkpoint()
        try:
            while (count := self._channel.recv_now(buffer)) == WOULD_BLOCK:
                with trio.move_on_after(self._stall) as scope:
                    await self._channel.readable()
                if scope.cancelled_caught:
                    raise WireError("the server went silent")
                self._came = 0
        except OSError as error:
            raise WireError(error.strerror or str(error)) from error
        return count


class DirectResponse(Response):
    """A response whose head `parser` has just given; `whole` if a length in it is that of a body which follows."""

    def __init__(
        self, wire: Direct, connection: _Connection, parser: h11.Connection, head: h11.Response, *, whole: bool
    ) -> None:
        super().__init__(head.status_code, head.headers)
        self._wire = wire
        self._connection = connection
        self._parser = parser
        self._early = memoryview(b"")  # of the body, received and not taken yet
        self._left: int | None = None  # of the body, where its length is known and h11 has no more to do
        self._ended = False  # nothing of the response is left
        if whole and "content-length" in self.headers and "transfer-encoding" not in self.headers:
            self._left = int(self.headers["content-length"])
            self._early = memoryview(parser.trailing_data[0])
            closes = "close" in self.headers.get("connection", "").lower()
            self._stays = head.http_version >= b"1.1" and not closes and len(self._early) <= self._left

    async def receive_into(self, buffer: memoryview) -> int:
        count = await self._receive_known(buffer) if self._left is not None else await self._receive_parsed(buffer)
        self._ended = self._ended or not count
        return count

    async def _receive_known(self, buffer: memoryview) -> int:
        assert self._left is not None
        wanted = buffer[: self._left]
        if self._early:
            return self._take(wanted)
        if not wanted:
            return 0
        count = await self._connection.receive_into(wanted)
        if not count:
            raise WireError(f"the connection ended {self._left} bytes before the body")
        self._left -= count
        return count

    def _take(self, buffer: memoryview) -> int:
        count = min(len(buffer), len(self._early))
        buffer[:count], self._early = self._early[:count], self._early[count:]
        if self._left is not None:
            self._left -= count
        return count

    async def _receive_parsed(self, buffer: memoryview) -> int:
        while not self._early:
            event = await self._wire.next_event(self._parser, self._connection)
            if not isinstance(event, h11.Data):
                return 0
            self._early = memoryview(bytes(event.data))
        return self._take(buffer)

    async def aclose(self) -> None:
        if self._whole():
            self._wire.keep(self._connection)
        else:
            self._connection.close()

    def _whole(self) -> bool:
        """Whether all of the response is here, and the connection good for another one."""
        if self._left is not None:
            return not self._left and self._stays
        try:
            while not self._ended and isinstance(event := self._parser.next_event(), h11.Data | h11.EndOfMessage):
                self._ended = isinstance(event, h11.EndOfMessage)
        except h11.RemoteProtocolError:
            return False
        done = self._parser.our_state is h11.DONE and self._parser.their_state is h11.DONE
        return self._ended and done and not self._parser.trailing_data[0]


class Direct(Wire):
    """At most `connections` idle connections.

    `stall` are the seconds without a byte after which an attempt has failed; `unix` is the path of a socket that takes
    the place of the network.
    """

    def __init__(self, *, context: ssl.SSLContext, connections: int, stall: float, unix: str) -> None:
        context.set_alpn_protocols(["http/1.1"])
        self._context = context
        self._stall = stall
        self._unix = unix
        self._idle: deque[_Connection] = deque()  # the one used last comes last
        self._most = connections
        self._buffer = memoryview(bytearray(_CHUNK))

    async def aclose(self) -> None:
        for connection in self._idle:
            connection.close()

    async def send(self, method: str, url: str, headers: Headers, content: bytes | None = None) -> Response:
        origin, target = _place(url)
        parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MOST_HEAD)
        connection = self._idle_to(origin) or await self._connect(origin)
        with unless_done(connection.close):
            await connection.send(_message(parser, method, target, headers, content))
            event = await self.next_event(parser, connection)
            while isinstance(event, h11.InformationalResponse):
                event = await self.next_event(parser, connection)
            if not isinstance(event, h11.Response):
                raise WireError("the server sends something else than a response")
            return DirectResponse(
                self, connection, parser, event, whole=method == "GET" and event.status_code in (200, 206)
            )

    def keep(self, connection: _Connection) -> None:
        """A connection has nothing to do."""
        connection.idle_since = time.monotonic()
        self._idle.append(connection)
        if len(self._idle) > self._most:
            self._idle.popleft().close()

    async def next_event(self, parser: h11.Connection, connection: _Connection) -> object:
        """What h11 makes of what the server sends."""
        try:
            while (event := parser.next_event()) is h11.NEED_DATA:
                count = await connection.receive_into(self._buffer)
                if not count and parser.their_state is h11.SEND_RESPONSE:
                    raise WireError("the server closed the connection without an answer")
                parser.receive_data(bytes(self._buffer[:count]))
        except h11.RemoteProtocolError as error:
            raise WireError(str(error)) from error
        return event

    def _idle_to(self, origin: tuple[str, str, int]) -> _Connection | None:
        for index in range(len(self._idle) - 1, -1, -1):
            connection = self._idle[index]
            if connection.origin == origin:
                del self._idle[index]
                if connection.usable:
                    return connection
                connection.close()
        return None

    async def _connect(self, origin: tuple[str, str, int]) -> _Connection:
        scheme, host, port = origin
        with trio.move_on_after(self._stall):
            try:
                channel = await dial(Unix(self._unix) if self._unix else Tcp(host, port))
                if scheme == "https":
                    with unless_done(channel.close):
                        await channel.start_tls(self._context, host)
            except OSError as error:
                if isinstance(error.__cause__, ssl.SSLCertVerificationError):
                    raise UntrustedError(error.__cause__.verify_message or str(error)) from error
                raise UnreachableError(error.strerror or str(error)) from error
            return _Connection(channel, origin, self._stall)
        raise UnreachableError(f"no connection within {self._stall:g} s")


def _message(parser: h11.Connection, method: str, target: str, headers: Headers, content: bytes | None) -> bytes:
    """A whole request as bytes.  Raises WireError for a header that HTTP cannot carry."""
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    try:
        request = parser.send(h11.Request(method=method, target=target, headers=encoded)) or b""
        body = parser.send(h11.Data(content)) or b"" if content else b""
        parser.send(h11.EndOfMessage())
        return request + body
    except h11.LocalProtocolError as error:
        raise WireError(str(error)) from error
