"""The NBD client: an export over one or several connections, still usable once the server went away and came back.

Requests go to the connection with the least in flight.  A request whose connection is lost before its reply came is
sent again on another one (every command of NBD may be repeated); after `timeout` seconds without an answer it fails
with EIO.

Invariants
* A link has a `mux` exactly while its connection is in the transmission phase; only the link's own task changes it.
* A changing request that was given up while it may still be carried out is in `_doubtful` until its reply came or its
  connection ended; no other change of the same bytes is sent before, so it cannot undo a later one.
"""

from __future__ import annotations

import errno
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import trio

from nbdfs import eager
from nbdfs.captive import Captive
from nbdfs.eager import Signal
from nbdfs.errors import SourceError, UserError
from nbdfs.nbd.channel import Channel, dial
from nbdfs.nbd.handshake import Handshake, HandshakeError
from nbdfs.nbd.mux import ConnectionLostError, Mux
from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.proto.answers import RemoteExport, ServerFacts
from nbdfs.nbd.request import Request
from nbdfs.nbd.tls import client_context
from nbdfs.nbd.uri import Tcp, Uri
from nbdfs.nursery import serving_nursery
from nbdfs.source import ALLOCATION, Extent, Health
from nbdfs.undo import unless_done

log = logging.getLogger(__name__)

_HANDSHAKE_TIMEOUT = 15.0  # seconds to connect and shake hands
_FIRST_DELAY, _LONGEST_DELAY = 0.05, 2.0  # seconds between attempts in vain to reconnect; the first is made at once
_STALLED = 5.0  # seconds without an answer that are worth telling
_CHANGING = (nbd.CMD_WRITE, nbd.CMD_TRIM, nbd.CMD_WRITE_ZEROES)
# What a source may have relied on since it was opened: a server that comes back must have it still.
_KEPT_FLAGS = (nbd.FLAG_SEND_FLUSH | nbd.FLAG_SEND_FUA | nbd.FLAG_SEND_TRIM | nbd.FLAG_SEND_WRITE_ZEROES
               | nbd.FLAG_SEND_CACHE | nbd.FLAG_SEND_FAST_ZERO)  # fmt: skip


async def _never() -> str:
    return ""


@dataclass(frozen=True)
class Target:
    """Where an export is: what opens a connection to it, and what it takes to be let in.

    `gone` gives the reason why there will never be another connection, if that is so.
    """

    name: str
    export: str
    connect: Callable[[], Awaitable[Channel]]
    tls: ssl.SSLContext | None = None
    hostname: str = ""
    single: bool = False
    gone: Callable[[], Awaitable[str]] = _never


def target_of_uri(uri: Uri) -> Target:
    """The export that a URI names.  Raises UserError if its certificates cannot be used."""
    hostname = uri.tls_options.hostname or (uri.address.host if isinstance(uri.address, Tcp) else "localhost")
    tls = client_context(uri.tls_options) if uri.tls else None
    return Target(str(uri), uri.export, lambda: dial(uri.address), tls, hostname)


def target_of_captive(server: Captive, export: str = "") -> Target:
    """An export of a captive server."""

    async def connect() -> Channel:
        return Channel(await server.connect(), server.name)

    return Target(server.name, export, connect, single=server.single, gone=server.epitaph)


def target_of_descriptor(descriptor: int, export: str = "") -> Target:
    """An export at the other end of a connected socket that was inherited.  Raises UserError if it is none."""
    name = f"descriptor {descriptor}"
    try:
        connected_socket: socket.socket | None = socket.socket(fileno=descriptor)
    except OSError as error:
        raise UserError(f"{name} is no socket: {error.strerror}") from error

    async def connect() -> Channel:
        nonlocal connected_socket
        if connected_socket is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"{name} was one connection, and it is gone")
        taken, connected_socket = connected_socket, None
        return Channel(taken, name)

    return Target(name, export, connect, single=True)


@asynccontextmanager
async def shaking_hands(target: Target, *, extended: bool = True) -> AsyncIterator[tuple[Channel, Handshake]]:
    """A channel and its handshake, begun.  On an error the channel is closed.

    The block must end within _HANDSHAKE_TIMEOUT too.  Raises OSError that says what is wrong.
    """
    try:
        with trio.move_on_after(_HANDSHAKE_TIMEOUT) as scope:
            channel = await target.connect()
            with unless_done(channel.close):
                handshake = Handshake(channel)
                await handshake.begin(target.tls, target.hostname, extended=extended)
                yield channel, handshake
        if scope.cancelled_caught:
            raise HandshakeError(f"{target.name} does not answer: no handshake within {_HANDSHAKE_TIMEOUT:g} s")
    except ConnectionError as error:
        if reason := await target.gone():
            raise HandshakeError(reason) from error
        raise


async def list_exports(target: Target, *, all_of_them: bool = True) -> tuple[ServerFacts, list[RemoteExport]]:
    """What a server offers: all its exports, or the target's own.  Raises OSError."""
    async with shaking_hands(target) as (channel, handshake):
        named = await handshake.list_exports() if all_of_them else [(target.export, "")]
        exports = []
        for name, description in named:
            try:
                export = await handshake.info(name)
            except HandshakeError as error:
                if error.reply != nbd.REP_ERR_UNSUP:
                    raise
                export = RemoteExport(name, 0, 0)
            if not export.size:  # old servers find the size out for who enters only
                export = await _by_entering(target, name)
            exports.append(replace(export, description=export.description or description))
        await handshake.abort()
        channel.close()
    return handshake.facts, exports


async def _by_entering(target: Target, name: str) -> RemoteExport:
    """What the server says about an export to who enters it."""
    async with shaking_hands(target) as (channel, handshake):
        export = await handshake.go(name)
        _mux(channel, handshake).disconnect()
    return export


@dataclass(frozen=True)
class ClientOptions:
    """How a client behaves.  `timeout` is in seconds; `contexts` are asked for as far as the export has them."""

    connections: int = 4
    timeout: float = 30.0
    reconnect: bool = True
    readonly: bool = False
    extended: bool = True
    contexts: tuple[str, ...] = (ALLOCATION,)


class _Link:
    """A place for one connection, and since when it stands."""

    def __init__(self) -> None:
        self.mux: Mux | None = None


class Client:
    """An export, entered.  `server` and `export` are what the server said at first.

    Its operations raise SourceError; offsets and lengths are within the server's block size limits.
    """

    def __init__(self, target: Target, options: ClientOptions, server: ServerFacts, export: RemoteExport) -> None:
        self.server = server
        self.export = export
        self._target = target
        self._options = options
        self._links: list[_Link] = []
        self._up = trio.Event()  # set while a link has a connection
        self._down_since: float | None = None
        self._ended: str = ""  # why there will be no connection any more
        self._doubtful: list[Request] = []
        self.reconnects = 0

    # Operations

    async def read_into(self, buffer: memoryview, offset: int) -> None:
        await self._perform(Request(nbd.CMD_READ, offset, len(buffer), buffer=buffer))

    async def write(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        await self._change(Request(nbd.CMD_WRITE, offset, len(data), nbd.CMD_FLAG_FUA if fua else 0, payload=data))

    async def flush(self) -> None:
        await self._perform(Request(nbd.CMD_FLUSH))

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        await self._change(Request(nbd.CMD_TRIM, offset, length, nbd.CMD_FLAG_FUA if fua else 0))

    async def write_zeroes(
        self, offset: int, length: int, *, no_hole: bool = False, fast: bool = False, fua: bool = False
    ) -> None:
        flags = nbd.CMD_FLAG_FUA if fua else 0
        flags |= nbd.CMD_FLAG_NO_HOLE if no_hole else 0
        flags |= nbd.CMD_FLAG_FAST_ZERO if fast else 0
        await self._change(Request(nbd.CMD_WRITE_ZEROES, offset, length, flags))

    async def cache(self, offset: int, length: int) -> None:
        await self._perform(Request(nbd.CMD_CACHE, offset, length))

    async def block_status(self, offset: int, length: int, context: str, *, one: bool = False) -> list[Extent]:
        """The extents of one negotiated context; they may stop short of the range, the last may pass its end."""
        request = Request(nbd.CMD_BLOCK_STATUS, offset, length, nbd.CMD_FLAG_REQ_ONE if one else 0)
        await self._perform(request)
        found = request.extents.get(self.export.contexts[context])
        if not found:
            raise SourceError(errno.EIO, f"the server told nothing about {context}", where=self._target.name)
        extents, at = [], offset
        for size, flags in found:
            extents.append(Extent(at, size, flags))
            at += size
        return extents

    # How it fares

    @property
    def connections(self) -> int:
        """How many connections are up."""
        return sum(link.mux is not None and link.mux.lost is None for link in self._links)

    def health(self) -> Health:
        """Whether it is connected, and requests are answered."""
        if self._ended:
            return Health.FAILED
        if not self.connections:
            return Health.RECONNECTING
        before = trio.current_time() - _STALLED
        stalled = any(link.mux and link.mux.overdue(before) for link in self._links)
        return Health.STALLED if stalled else Health.OK

    # Requests

    async def _perform(self, request: Request) -> None:
        deadline = 0.0
        while True:
            mux = self._least_loaded() or await self._reconnected(deadline)
            try:
                await mux.perform(request)
            except ConnectionLostError:
                deadline = deadline or request.sent + self._options.timeout
            except SourceError as error:
                if error.errno != errno.ESHUTDOWN:
                    error.where = error.where or self._target.name
                    raise
                deadline = deadline or request.sent + self._options.timeout
                mux.fail(ConnectionLostError(errno.ESHUTDOWN, "the server is shutting down"))
            else:
                return
            request.restart()

    def poll(self) -> bool:
        """Look, without waiting, for replies; True if something came."""
        came = False
        for link in self._links:
            if link.mux is not None and link.mux.busy:
                came = link.mux.poll() or came
        return came

    def _least_loaded(self) -> Mux | None:
        best = None
        for link in self._links:
            mux = link.mux
            if mux is not None and mux.lost is None and (best is None or mux.load < best.load):
                best = mux
        return best

    async def _reconnected(self, deadline: float) -> Mux:
        """Wait for a connection, until the deadline (0: a whole timeout from now)."""
        await eager.task()
        timeout = self._options.timeout
        with trio.move_on_at(deadline or trio.current_time() + timeout):
            while not self._ended:
                await self._up.wait()
                if mux := self._least_loaded():
                    return mux
                await trio.lowlevel.checkpoint()  # the link's task has yet to see that its connection is lost
        reason = self._ended or f"no connection for {timeout:g} s"
        raise SourceError(errno.EIO, reason, where=self._target.name, retryable=not self._ended)

    async def _change(self, request: Request) -> None:
        while clash := [other for other in self._doubtful if _overlap(other, request)]:
            await self._settled(clash[0])
        with unless_done(lambda: self._doubt(request)):
            await self._perform(request)

    def _doubt(self, request: Request) -> None:
        if request.orphan and not request.done:
            self._doubtful.append(request)
            request.settled = lambda: self._doubtful.remove(request)

    async def _settled(self, request: Request) -> None:
        signal = Signal()
        before = request.settled

        def settled() -> None:
            if before:
                before()
            signal.set()

        request.settled = settled
        await signal.wait()

    # Connections

    async def _keep(self, link: _Link, first: Mux | None) -> None:
        """A link's task: keep a connection, as long as that makes sense."""
        delay = 0.0
        mux = first or await self._connect_more()
        while mux:
            self._came_up(link, mux)
            try:
                await mux.run()
            finally:
                mux.disconnect()
            self._went_down(link, mux)
            if not self._options.reconnect or self._target.single or self._ended:
                break
            if mux.answered:
                delay = 0.0
            mux = None
            while mux is None and not self._ended:
                await trio.sleep(delay)
                delay = min(max(delay * 2, _FIRST_DELAY), _LONGEST_DELAY)
                mux = await self._connect_again()

    async def _connect_more(self) -> Mux | None:
        """A further connection at the start; a server that does not let it in goes on with those it has."""
        try:
            return await self._enter()
        except OSError as error:
            log.info("%s: no further connection: %s", self._target.name, error)
            return None

    async def _connect_again(self) -> Mux | None:
        try:
            mux = await self._enter()
            self.reconnects += 1
            return mux
        except OSError as error:
            log.debug("%s: %s", self._target.name, error)
            if reason := await self._target.gone():
                self._end(reason)
            return None

    async def _enter(self) -> Mux:
        async with shaking_hands(self._target, extended=self.server.extended) as (channel, handshake):
            export = await handshake.go(self._target.export, self._options.contexts)
            self._check(handshake.facts, export)
            return _mux(channel, handshake)

    def _check(self, server: ServerFacts, export: RemoteExport) -> None:
        """Whether the export is still the one that was opened, as far as can be told."""
        known = self.export
        wrong = ""
        if export.size != known.size:
            wrong = f"its size was {known.size} and is {export.size}"
        elif export.has(nbd.FLAG_READ_ONLY) and not known.has(nbd.FLAG_READ_ONLY) and not self._options.readonly:
            wrong = "it has become read-only"
        elif known.flags & _KEPT_FLAGS & ~export.flags or not set(known.contexts.items()) <= set(
            export.contexts.items()
        ):
            wrong = "it can do less than before"
        elif export.block != known.block or server.extended != self.server.extended:
            wrong = "it has other limits than before"
        if wrong:
            log.error("%s: the export is not the one it was: %s", self._target.name, wrong)
            raise HandshakeError(wrong)

    def _came_up(self, link: _Link, mux: Mux) -> None:
        link.mux = mux
        self._up.set()
        if self._down_since is not None:
            log.warning("%s: connected again after %.1f s", self._target.name, trio.current_time() - self._down_since)
            self._down_since = None

    def _went_down(self, link: _Link, mux: Mux) -> None:
        link.mux = None
        if self._ended or any(other.mux for other in self._links):
            return
        self._up = trio.Event()
        reason = str(mux.lost)
        if self._target.single or not self._options.reconnect:
            self._end(reason)
        elif self._down_since is None:
            self._down_since = trio.current_time()
            log.warning("%s: connection lost (%s), reconnecting", self._target.name, reason)

    def _end(self, reason: str) -> None:
        if not self._ended:
            log.error("%s: %s; there will be no other connection", self._target.name, reason)
            self._ended = reason
            self._up.set()

    async def _watch(self) -> None:
        """Give up what was not answered in time, and the connection it was sent on: it may be dead."""
        timeout = self._options.timeout
        while True:
            await trio.sleep(timeout / 8)
            before = trio.current_time() - timeout
            for mux in [link.mux for link in self._links if link.mux]:
                overdue = mux.overdue(before)
                for request in overdue:
                    request.error = SourceError(errno.EIO, f"no answer within {timeout:g} s", where=self._target.name)
                if overdue:
                    mux.fail(ConnectionLostError(errno.ETIMEDOUT, f"no answer within {timeout:g} s"))

    async def _run(self, first: Mux, nursery: trio.Nursery) -> None:
        several = self.export.has(nbd.FLAG_CAN_MULTI_CONN) and not self._target.single
        for number in range(self._options.connections if several else 1):
            link = _Link()
            self._links.append(link)
            if number == 0:
                self._came_up(link, first)
            nursery.start_soon(self._keep, link, None if number else first)
        nursery.start_soon(self._watch)

    def _goodbye(self) -> None:
        self._ended = "the connection was closed"
        for link in self._links:
            if link.mux:
                link.mux.disconnect()


def _overlap(one: Request, other: Request) -> bool:
    return one.offset < other.offset + other.length and other.offset < one.offset + one.length


def _mux(channel: Channel, handshake: Handshake) -> Mux:
    facts = handshake.facts
    return Mux(channel, structured=facts.structured, extended=facts.extended)


@asynccontextmanager
async def connected(target: Target, options: ClientOptions) -> AsyncIterator[Client]:
    """The export, entered for the block.  Raises OSError that says what is wrong."""
    async with shaking_hands(target, extended=options.extended) as (channel, handshake):
        if handshake.facts.protocol == "oldstyle":
            raise HandshakeError(f"{target.name} speaks the oldstyle protocol of NBD: start it with the newstyle one")
        export = await handshake.go(target.export, options.contexts)
        client = Client(target, options, handshake.facts, export)
        first = _mux(channel, handshake)
    async with serving_nursery() as nursery:
        await client._run(first, nursery)
        try:
            yield client
        finally:
            client._goodbye()
