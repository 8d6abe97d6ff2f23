"""The connections of a client: as many as are wanted, made again when they are lost, given up when nothing answers.

Invariants
* A link has a `mux` exactly while its connection is in the transmission phase; only the link's own task changes it.
* A connection made later is to the export that was opened, as far as can be told.
"""

from __future__ import annotations

import errno
import logging
import time

import trio

from nbdfs import eager
from nbdfs.errors import SourceError, reason
from nbdfs.nbd.entering import shaking_hands, transmission
from nbdfs.nbd.handshake import HandshakeError
from nbdfs.nbd.mux import ConnectionLostError, Mux
from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.proto.answers import RemoteExport, ServerFacts
from nbdfs.nbd.target import Target
from nbdfs.records import Record
from nbdfs.source import ALLOCATION, Health

log = logging.getLogger(__name__)

_FIRST_DELAY, _LONGEST_DELAY = 0.05, 2.0  # seconds between attempts in vain to reconnect; the first is made at once
_STALLED = 5.0  # seconds without an answer that are worth telling
# What a source may have relied on since it was opened: a server that comes back must have it still.
_KEPT_FLAGS = (nbd.FLAG_SEND_FLUSH | nbd.FLAG_SEND_FUA | nbd.FLAG_SEND_TRIM | nbd.FLAG_SEND_WRITE_ZEROES
               | nbd.FLAG_SEND_CACHE | nbd.FLAG_SEND_FAST_ZERO)  # fmt: skip


class ClientOptions(Record):
    """How a client behaves.  `timeout` is in seconds; `contexts` are asked for as far as the export has them."""

    connections: int = 4
    timeout: float = 30.0
    reconnect: bool = True
    readonly: bool = False
    extended: bool = True
    contexts: tuple[str, ...] = (ALLOCATION,)


class _Link:
    """A place for one connection."""

    def __init__(self) -> None:
        self.mux: Mux | None = None


class Links:
    """The connections to an export that was entered; `server` and `export` are what the server said at first."""

    def __init__(self, target: Target, options: ClientOptions, server: ServerFacts, export: RemoteExport) -> None:
        self.reconnects = 0
        self._server = server
        self._export = export
        self._target = target
        self._options = options
        self._all: list[_Link] = []
        self._chosen: Mux | None = None  # for the latest request
        self._up = trio.Event()  # set while a link has a connection
        self._down_since: float | None = None
        self._ended: str = ""  # why there will be no connection any more

    @property
    def connections(self) -> int:
        """How many connections are up."""
        return sum(link.mux is not None and link.mux.lost is None for link in self._all)

    def health(self) -> Health:
        """Whether it is connected, and requests are answered."""
        if self._ended:
            return Health.FAILED
        if not self.connections:
            return Health.RECONNECTING
        before = time.monotonic() - _STALLED
        stalled = any(link.mux and link.mux.overdue(before) for link in self._all)
        return Health.STALLED if stalled else Health.OK

    def poll(self) -> bool:
        """Look, without waiting, for replies; True if something came."""
        came = False
        for link in self._all:
            if link.mux is not None and link.mux.busy:
                came = link.mux.poll() or came
        return came

    def least_loaded(self, *, small: bool = False) -> Mux | None:
        """The connection with the least in flight, if there is one; for a small request one where others gather."""
        if small and self._chosen is not None and self._chosen.gathering:
            return self._chosen
        best = None
        for link in self._all:
            mux = link.mux
            if mux is not None and mux.lost is None and (best is None or mux.load < best.load):
                best = mux
        self._chosen = best
        return best

    async def reconnected(self, deadline: float) -> Mux:
        """Wait for a connection, until the deadline by the monotonic clock (0: a whole timeout from now).

        Raises SourceError, EIO.
        """
        await eager.task()
        timeout = self._options.timeout
        with trio.move_on_after(max(deadline - time.monotonic(), 0) if deadline else timeout):
            while not self._ended:
                await self._up.wait()
                if mux := self.least_loaded():
                    return mux
                await trio.lowlevel.checkpoint()  # the link's task has yet to see that its connection is lost
        reason = self._ended or f"no connection for {timeout:g} s"
        raise SourceError(errno.EIO, reason, where=self._target.name, retryable=not self._ended)

    def start(self, first: Mux, nursery: trio.Nursery) -> None:
        """Keep `first` and the further connections in tasks of the nursery."""
        several = self._export.has(nbd.FLAG_CAN_MULTI_CONN) and not self._target.single
        for number in range(self._options.connections if several else 1):
            link = _Link()
            self._all.append(link)
            if number == 0:
                self._came_up(link, first)
            nursery.start_soon(self._keep, link, None if number else first)
        nursery.start_soon(self._watch)

    def close(self) -> None:
        """Say goodbye to the server."""
        self._ended = "the connection was closed"
        for link in self._all:
            if link.mux:
                link.mux.disconnect()

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
            log.info("%s: no further connection: %s", self._target.name, reason(error))
            return None

    async def _connect_again(self) -> Mux | None:
        try:
            mux = await self._enter()
            self.reconnects += 1
            return mux
        except OSError as error:
            log.debug("%s: %s", self._target.name, reason(error))
            if gone := await self._target.gone():
                self._end(gone)
            return None

    async def _enter(self) -> Mux:
        async with shaking_hands(self._target, extended=self._server.extended) as (channel, handshake):
            export = await handshake.go(self._target.export, self._options.contexts)
            self._check(handshake.facts, export)
            return transmission(channel, handshake)

    def _check(self, server: ServerFacts, export: RemoteExport) -> None:
        """Whether the export is still the one that was opened, as far as can be told."""
        known = self._export
        wrong = ""
        kept = _KEPT_FLAGS | (nbd.FLAG_CAN_MULTI_CONN if len(self._all) > 1 else 0)
        if export.size != known.size:
            wrong = f"its size was {known.size} and is {export.size}"
        elif export.has(nbd.FLAG_READ_ONLY) and not known.has(nbd.FLAG_READ_ONLY) and not self._options.readonly:
            wrong = "it has become read-only"
        elif known.flags & kept & ~export.flags or not set(known.contexts.items()) <= set(export.contexts.items()):
            wrong = "it can do less than before"
        elif export.block != known.block or server.extended != self._server.extended:
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
        if self._ended or any(other.mux for other in self._all):
            return
        self._up = trio.Event()
        assert mux.lost is not None
        why = reason(mux.lost)
        if self._target.single or not self._options.reconnect:
            self._end(why)
        elif self._down_since is None:
            self._down_since = trio.current_time()
            log.warning("%s: connection lost (%s), reconnecting", self._target.name, why)

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
            before = time.monotonic() - timeout
            for mux in [link.mux for link in self._all if link.mux]:
                overdue = mux.overdue(before)
                for request in overdue:
                    request.error = SourceError(errno.EIO, f"no answer within {timeout:g} s", where=self._target.name)
                if overdue:
                    mux.fail(ConnectionLostError(errno.ETIMEDOUT, f"no answer within {timeout:g} s"))
