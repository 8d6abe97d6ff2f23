"""Requests to a source that never waits (`Caps.IMMEDIATE`), carried out by the task that reads them.

Where the source can show its memory, reads are sent from there and writes received there; runs of small requests ask
for all their places at once.  Other reads go through one buffer.

Invariants
* What borrows memory (views, the room) is sent or copied before the reading task's next checkpoint.
* The room is used again only when all that was queued has been sent or copied.
* A small request, or a run, is carried out without a checkpoint: who is cancelled has answered all or none.
"""

from __future__ import annotations

import mmap
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import cast

from nbdfs.barrier import Barrier
from nbdfs.nbd.buffers import Buffers
from nbdfs.nbd.limits import Memory
from nbdfs.nbd.operations import Operations
from nbdfs.nbd.output import Output
from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.proto.events import Request, Run
from nbdfs.nbd.proto.transmission import ServerTransmission
from nbdfs.nbd.reception import Reception
from nbdfs.nbd.stream import WOULD_BLOCK, Buffer
from nbdfs.source import Source

_ROOM = 256 << 10  # bytes of small reads that are read into one buffer and sent together
_VIEWS = 1 << 20  # bytes of replies that are sent together where they lie
_LARGE = 64 << 10  # bytes: after a payload that long the next header comes alone, so that what follows can go in place


class Immediate:
    """The requests of one client.  `flush` calls `release` and sends all replies."""

    def __init__(
        self,
        buffers: Buffers,
        memory: Memory,
        source: Source,
        machine: ServerTransmission,
        operations: Operations,
        output: Output,
        reception: Reception,
        flush: Callable[[], Awaitable[None]],
    ) -> None:
        self._buffers = buffers
        self._memory = memory
        self._most = memory.limit
        self._source = source
        self._machine = machine
        self._operations = operations
        self._output = output
        self._reception = reception
        self._input = reception.input
        self._flush = flush
        self._room = memoryview(b"")
        self._used = 0  # bytes of the room
        self._borrowing = 0  # bytes of replies queued that may lie in the source's memory or in the room

    @property
    def crowded(self) -> bool:
        """Whether to flush before anything more is carried out: much is borrowed, or somebody else sends."""
        return self._borrowing >= _VIEWS or self._output.busy

    async def request(self, request: Request) -> bool:
        """Carry out a request, unless it is too large; whether it was done.  If not, nothing is borrowed any more."""
        if request.length > self._most:
            await self._flush()
            return False
        if request.command == nbd.CMD_READ:
            await self._read(request)
        elif request.command != nbd.CMD_WRITE:
            await self._operations.perform(request, None)
        elif not self._write_received(request):
            await self._write(request)
        return True

    async def run(self, run: Run) -> None:
        """Carry out a run."""
        if run.command == nbd.CMD_READ:
            await self._read_run(run)
        else:
            await self._write_run(run)

    def release(self) -> int:
        """What the replies queued borrow is about to be sent or copied; how many bytes that may be."""
        borrowed = self._borrowing
        self._borrowing = self._used = 0
        return borrowed

    def rest(self) -> None:
        """Give back the memory."""
        self._room = memoryview(b"")

    # Runs

    async def _read_run(self, run: Run) -> None:
        here, views, left = self._resident(run)
        parts: list[Buffer] = [b""] * (2 * len(views))
        parts[::2] = self._machine.wholes(here)
        parts[1::2] = views
        self._output.put(*parts)
        self._borrowing += len(views) * run.length
        for index in left:
            await self._copied(run.request(index))

    async def _write_run(self, run: Run) -> None:
        here, views, left = self._resident(run, writable=True)
        for view, payload in zip(views, here.payloads, strict=True):
            view[:] = payload
        self._output.put(self._machine.successes(here))
        for index in left:
            await self._operations.perform(run.request(index), run.payloads[index])

    def _resident(self, run: Run, *, writable: bool = False) -> tuple[Run, Sequence[memoryview], Sequence[int]]:
        """Those requests of a run whose memory the source can show, that memory, and which are left.

        What goes wrong here must be no more than that requests go the ordinary way, which gives the error reply.
        """
        views: Sequence[memoryview | None] = [None] * len(run.offsets)
        with Barrier("looking for the memory of requests", lambda _: None):
            views = self._source.views(run.length, run.offsets, writable=writable)
        if all(views):  # none is empty
            return run, cast("Sequence[memoryview]", views), ()
        left = [index for index, view in enumerate(views) if view is None]
        here = run.some(index for index, view in enumerate(views) if view is not None)
        return here, [view for view in views if view is not None], left

    # Single requests

    async def _read(self, request: Request) -> None:
        try:
            view = self._operations.view(request)
        except OSError:
            view = None  # reading it the other way gives the error reply
        if view is not None:
            self._output.put(self._machine.whole(request), view)
            self._borrowing += request.length
        elif request.length <= _ROOM:
            await self._copied(request)
        else:
            async with self._buffer(request.length) as buffer:
                await self._operations.perform(request, buffer)
                try:
                    await self._output.flush()
                finally:
                    self._output.own()  # nothing, unless it was cancelled

    async def _copied(self, request: Request) -> None:
        """Carry out a small READ, through the room."""
        if request.length > _ROOM - self._used:
            self._output.own()
            self._used = 0
        if not self._room:
            self._room = memoryview(mmap.mmap(-1, _ROOM))
        start = self._used
        self._used += request.length
        await self._operations.perform(request, self._room[start : self._used])
        self._borrowing += request.length

    def _write_received(self, request: Request) -> bool:
        """A WRITE whose payload is here already, if it goes into memory of the source; whether it was done."""
        self._reception.header_alone = request.length >= _LARGE
        if len(self._input) < request.length or (place := self._operations.place(request, 0)) is None:
            return False
        place[:] = self._reception.payload_here(request.length)
        self._output.put(self._machine.success(request))
        return True

    async def _write(self, request: Request) -> None:
        length = request.length
        if len(self._input) >= length:
            await self._operations.perform(request, self._reception.payload_here(length))
            return
        done = await self._receive_in_place(request)
        if done == length:
            self._output.put(self._machine.success(request))
            return
        async with self._buffer(length - done) as buffer:
            await self._reception.payload(buffer[: length - done])
            rest = request._replace(offset=request.offset + done, length=length - done)
            await self._operations.perform(rest, buffer)

    async def _receive_in_place(self, request: Request) -> int:
        """Receive the payload of a WRITE straight into the source's memory; give how much went there.

        The view is asked for anew after each wait.  A client that hangs up leaves a part of its write behind, as a disk
        does whose power fails.
        """
        await self._flush()
        done = 0
        place: memoryview | None = None  # where the rest goes
        while done < request.length:
            place = place or self._operations.place(request, done)
            if place is None:
                break
            count = self._reception.part(place, look=True)
            if count == WOULD_BLOCK:
                place = None
                await self._reception.rest_to_come()
            else:
                done += count
                place = place[count:]
        return done

    @asynccontextmanager
    async def _buffer(self, length: int) -> AsyncIterator[memoryview]:
        """A buffer, before which all replies went out: they wait for nobody's memory, and borrow none meanwhile."""
        await self._flush()
        await self._memory.reserve(length)
        buffer = self._buffers.take(length)
        try:
            yield buffer
        finally:
            self._buffers.give(buffer)
            self._memory.release(length)
