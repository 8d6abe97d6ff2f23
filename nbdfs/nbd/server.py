"""The NBD server: connections of any number of clients to named exports.

`serving` runs one beside whatever its block does (a mount, a command), in the block's own trio run.  At the end of the
block it takes no more clients and requests, answers what is in flight, and closes.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from weakref import WeakKeyDictionary

import trio

from nbdfs.barrier import Barrier
from nbdfs.export import Export
from nbdfs.nbd.buffers import Buffers
from nbdfs.nbd.connection import Connection
from nbdfs.nbd.exports import ServedExports
from nbdfs.nbd.limits import Limits, Memory
from nbdfs.nbd.listen import Listener
from nbdfs.nbd.proto.handshake import Policy
from nbdfs.nbd.stream import Stream
from nbdfs.nursery import serving_nursery

log = logging.getLogger(__name__)

_ACCEPT_PAUSE = 0.2  # seconds without accepting when descriptors have run out


def _dropped(peer: str, number: int) -> None:
    log.error("%s: dropped: %s", peer, os.strerror(number))


class Server:
    """What all connections share.  `tls` is the context that `policy` needs unless it says no TLS."""

    def __init__(
        self,
        exports: ServedExports,
        policy: Policy | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.exports = exports
        self.tls = tls
        self.policy = policy or Policy()
        self.limits = limits or Limits()
        self.memory = Memory(self.limits.memory)
        self._shares: WeakKeyDictionary[Export, Memory] = WeakKeyDictionary()
        self.buffers = Buffers()
        self.served = trio.Event()  # set once the first client has left
        self._connections: set[Connection] = set()
        self._last: Connection | None = None
        self._stop = trio.Event()

    def memory_of(self, export: Export) -> Memory:
        """The memory that the clients of an export share, for one more client."""
        share = self._shares.setdefault(export, Memory(self.limits.export_memory, self.memory))
        return Memory(self.limits.client_memory, share)

    def alone(self, connection: Connection) -> bool:
        """Whether this connection was also the last one to ask: no other waits while it looks for more."""
        last, self._last = self._last, connection
        return last is connection

    async def handle(self, stream: Stream) -> None:
        """Serve one client to its end.  A client above the limit is turned away."""
        if len(self._connections) >= self.limits.clients:
            log.warning("%s: turned away: there are %d clients already", stream.peer, len(self._connections))
            stream.close()
            return
        connection = Connection(self, stream)
        self._connections.add(connection)
        try:
            with Barrier(stream.peer, partial(_dropped, stream.peer)):
                await connection.run()
        finally:
            self._connections.discard(connection)
            self.served.set()

    async def run(self, listeners: Iterable[Listener]) -> None:
        """Accept clients until `stop`; returns when the last reply is out, or its time is up.  Not to be cancelled."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as clients:
                async with trio.open_nursery() as accepting:
                    for listener in listeners:
                        accepting.start_soon(self._accept, listener, clients)
                    await self._stop.wait()
                    accepting.cancel_scope.cancel()
                self.finish()
                clients.cancel_scope.deadline = trio.current_time() + self.limits.stop

    def stop(self) -> None:
        self._stop.set()

    def finish(self) -> None:
        """Take no more requests of the clients that there are; each ends once what is in flight is answered."""
        for connection in self._connections:
            connection.stop()

    async def _accept(self, listener: Listener, clients: trio.Nursery) -> None:
        told = False
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                if not told:
                    log.warning("%s: cannot accept clients: %s", listener, error.strerror or error)
                told = True
                await trio.sleep(_ACCEPT_PAUSE)
                continue
            if told:
                log.warning("%s: clients can be accepted again", listener)
            told = False
            if stream is not None:
                log.info("%s: connected", stream.peer)
                clients.start_soon(self.handle, stream)


@asynccontextmanager
async def serving(server: Server, listeners: Iterable[Listener]) -> AsyncIterator[None]:
    """Serve on `listeners` while the block runs."""
    async with serving_nursery() as nursery:
        nursery.start_soon(server.run, listeners)
        try:
            yield
        finally:
            server.stop()
