"""The NBD client: an export over one or several connections, still usable once the server went away and came back.

Requests go to the connection with the least in flight (`links`).  A request whose connection is lost before its reply
came is sent again on another one (every command of NBD may be repeated); after `timeout` seconds without an answer it
fails with EIO.

Invariant
* A changing request that was given up while it may still be carried out is in `_doubtful` until its reply came or its
  connection ended; no other change of the same bytes is sent before, so it cannot undo a later one.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from nbdfs.eager import Signal
from nbdfs.errors import SourceError
from nbdfs.nbd.entering import shaking_hands, transmission
from nbdfs.nbd.handshake import HandshakeError
from nbdfs.nbd.links import ClientOptions, Links
from nbdfs.nbd.mux import ConnectionLostError
from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.proto.answers import RemoteExport, ServerFacts
from nbdfs.nbd.request import Request
from nbdfs.nbd.target import Target
from nbdfs.nursery import serving_nursery
from nbdfs.source import Extent
from nbdfs.undo import unless_done

_SMALL = 64 << 10  # bytes: a request that costs a server no more than the call that brings it


class Client:
    """An export, entered.  `server` and `export` are what the server said at first.

    Its operations raise SourceError; offsets and lengths are within the server's block size limits.
    """

    def __init__(self, target: Target, options: ClientOptions, server: ServerFacts, export: RemoteExport) -> None:
        self.server = server
        self.export = export
        self.links = Links(target, options, server, export)
        self._target = target
        self._timeout = options.timeout
        self._doubtful: list[Request] = []

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

    # Requests

    async def _perform(self, request: Request) -> None:
        deadline = 0.0
        small = request.length <= _SMALL
        while True:
            mux = self.links.least_loaded(small=small) or await self.links.reconnected(deadline)
            try:
                await mux.perform(request)
            except ConnectionLostError:
                deadline = deadline or request.sent + self._timeout
            except SourceError as error:
                if error.errno != errno.ESHUTDOWN:
                    error.where = error.where or self._target.name
                    raise
                deadline = deadline or request.sent + self._timeout
                mux.fail(ConnectionLostError(errno.ESHUTDOWN, "the server is shutting down"))
            else:
                return
            request.restart()

    async def _change(self, request: Request) -> None:
        while self._doubtful and (clash := [other for other in self._doubtful if _overlap(other, request)]):
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


def _overlap(one: Request, other: Request) -> bool:
    return one.offset < other.offset + other.length and other.offset < one.offset + one.length


@asynccontextmanager
async def connected(target: Target, options: ClientOptions) -> AsyncIterator[Client]:
    """The export, entered for the block.  Raises OSError that says what is wrong."""
    async with shaking_hands(target, extended=options.extended) as (channel, handshake):
        if handshake.facts.protocol == "oldstyle":
            raise HandshakeError(f"{target.name} speaks the oldstyle protocol of NBD: start it with the newstyle one")
        export = await handshake.go(target.export, options.contexts)
        client = Client(target, options, handshake.facts, export)
        first = transmission(channel, handshake)
    async with serving_nursery() as nursery:
        client.links.start(first, nursery)
        try:
            yield client
        finally:
            client.links.close()
