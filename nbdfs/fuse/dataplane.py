"""The data plane: read requests from /dev/fuse, answer those that move data, pass the others on.

One task reads the device.  It answers at once what a source that never waits is asked (`Caps.IMMEDIATE`), or what is
in memory (`view`).  Any other request is a run of `nbdfs.eager`: begun on the spot where the source can do that, else
a task; FUSE_INTERRUPT and the deadline cancel it.  Requests of the control plane go through `ControlLink` to pyfuse3.

Invariants: every request is answered exactly once, whatever its handler does (see `barrier`); a `Request` and its
memory belong to the reading task until it becomes a flight, and are used again only when that has ended; flights are
in the order of their deadlines, as long as none makes progress before its end.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable

import trio

from nbdfs import eager
from nbdfs.barrier import failure
from nbdfs.flights import Flight, Flights
from nbdfs.fuse import wire
from nbdfs.fuse.control_link import ControlLink
from nbdfs.fuse.operations import Operations
from nbdfs.fuse.patience import Patience
from nbdfs.fuse.request import Request
from nbdfs.fuse.tree import File, Tree
from nbdfs.fuse.wire import Opcode

log = logging.getLogger(__name__)

_POLL_NS = 50_000  # how long to look for the next request before sleeping
_SLICE_NS = 2_000_000  # how long to go on without letting other tasks run
_MOST_FLIGHTS = 512  # requests in flight; the rest waits in the kernel
_SPARE_REQUESTS = 64  # kept with their memory for the next flights

_GONE = (errno.ENODEV, errno.ENOTCONN)  # the file system was unmounted, or its connection aborted
_RETRY = (errno.EINTR, errno.ENOENT)  # ENOENT: the request was taken back before we read it
_COPIES = frozenset((Opcode.COPY_FILE_RANGE, Opcode.COPY_FILE_RANGE_64))  # of two files: one of them may wait
_WRITING = frozenset((Opcode.WRITE, Opcode.FALLOCATE, Opcode.FSYNC, Opcode.FLUSH))  # what may wait for a write-back

Handler = Callable[[Request, File], Awaitable[None]]


class DataPlane:
    """Serves one FUSE connection until it is unmounted.

    A request has `timeout` seconds from when it last got on, and `limit` in all; `poll` switches adaptive polling.
    """

    def __init__(
        self,
        device: int,
        tree: Tree,
        link: ControlLink,
        *,
        timeout: float,
        limit: float = math.inf,
        poll: bool = True,
    ) -> None:
        self._device = device
        self._tree = tree
        self._link = link
        self._timeout = timeout
        self._limit = limit
        self._operations = operations = Operations(tree)
        self._spare: list[Request] = []
        self._flights: Flights[_Flight] = Flights()  # by the kernel's number of the request
        self._reading = trio.CancelScope()
        self._poller: Callable[[], bool] | None = None  # of the source that was asked last and has not answered yet
        self._patience = Patience(_POLL_NS if poll else 0)
        self._handlers: dict[int, Handler] = {
            Opcode.READ: operations.read,
            Opcode.WRITE: operations.write,
            Opcode.LSEEK: operations.seek,
            Opcode.FALLOCATE: operations.fallocate,
            Opcode.FSYNC: operations.flush,
            Opcode.FLUSH: operations.flush,
            Opcode.COPY_FILE_RANGE: operations.copy_range,
            Opcode.COPY_FILE_RANGE_64: operations.copy_range,
        }

    async def run(self) -> None:
        """Serve until the mount is gone (what is in flight is cancelled) or until `finish` (it is answered)."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._flights.watch, self._timeout, self._overdue, self._limit)
            async with trio.open_nursery() as flights:
                try:
                    with self._reading:
                        await self._loop(flights)
                        self._cancel_flights()
                    eager.uncork()
                    await self._flights.fewer_than(1)
                finally:
                    self._cancel_flights()
            nursery.cancel_scope.cancel()

    def _cancel_flights(self) -> None:
        eager.uncork()
        self._flights.cancel()

    def finish(self) -> None:
        """Take no more requests, so that clients of a detached mount do not keep it going."""
        self._reading.cancel()

    async def _loop(self, nursery: trio.Nursery) -> None:
        request = Request(self._device)
        patience = self._patience
        slice_end = time.monotonic_ns() + _SLICE_NS
        while True:
            try:
                length = os.readv(self._device, request.vector)
            except BlockingIOError:
                eager.uncork()
                if (self._poller or not self._flights) and patience.look_again(self._poller):
                    continue
                await patience.sleep(self._device)
                slice_end = time.monotonic_ns() + _SLICE_NS
                continue
            except OSError as error:
                if error.errno in _RETRY:
                    continue
                if error.errno in _GONE:
                    return
                raise
            request.parse()
            request = await self._dispatch(request, length, nursery)
            now = time.monotonic_ns()
            patience.answered(now)
            if now > slice_end:
                eager.uncork()
                await trio.lowlevel.checkpoint()
                slice_end = time.monotonic_ns() + _SLICE_NS

    async def _dispatch(self, request: Request, length: int, nursery: trio.Nursery) -> Request:
        """Answer, begin or pass on one request; gives the one to read the next into."""
        handler = self._handlers.get(request.opcode)
        if handler is None:
            self._control(request, length)
            return request
        try:
            file = self._tree.file(request.inode)
            if file.immediate and request.opcode not in _COPIES:
                await handler(request, file)
                return request
            if request.opcode == Opcode.READ and self._operations.read_resident(request, file):
                return request
        except Exception as error:  # noqa: BLE001 - the barrier
            request.fail(failure(request, error))
            return request
        if len(self._flights) >= _MOST_FLIGHTS:
            eager.uncork()
            await self._flights.fewer_than(_MOST_FLIGHTS)
        self._begin(_Flight(self, handler, request, file, nursery))
        return self._spare.pop() if self._spare else Request(self._device)

    def _control(self, request: Request, length: int) -> None:
        """A request that is not for a source."""
        message = request.message[:length]
        if request.opcode in (Opcode.FORGET, Opcode.BATCH_FORGET):
            for inode, count in wire.forgotten(request.opcode, message):
                self._tree.forget(inode, count)
            return
        if request.opcode != Opcode.INTERRUPT:
            self._link.forward(request.opcode, request.unique, message)
            return
        # What is not in flight was answered already, or is with the control plane, which does not wait.
        flight = self._flights.get(wire.INTERRUPT_IN.unpack_from(message, wire.BODY)[0])
        if flight:
            flight.interrupted = True
            flight.cancel()

    def _begin(self, flight: _Flight) -> None:
        if self._flights:
            eager.cork()  # others follow: what they send can go together
        self._flights.add(flight.request.unique, flight)
        self._poller = flight.file.poller
        if flight.file.eager:
            flight.start()
        else:
            flight.start_task()

    def land(self, flight: _Flight) -> None:
        """A flight has ended: answer it if nobody has, and take its memory back."""
        request = flight.request
        self._flights.remove(request.unique)
        if not self._flights:
            self._poller = None
        if not request.answered:
            request.fail(errno.EINTR if flight.interrupted else errno.EIO)
        if len(self._spare) < _SPARE_REQUESTS:
            self._spare.append(request)

    def _overdue(self, flight: _Flight) -> None:
        if not flight.interrupted:
            log.error("%s: no answer to %s within %g s", flight.file.source.info.description,
                      flight.request, self._timeout)  # fmt: skip


class _Flight(Flight):
    """A request that waits for its source."""

    __slots__ = ("_plane", "file", "interrupted", "request")

    def __init__(self, plane: DataPlane, handler: Handler, request: Request, file: File, nursery: trio.Nursery) -> None:
        writes_to = file.source if request.opcode in _WRITING else None
        super().__init__(self._answer(handler), nursery, self._land, writes_to)
        self._plane = plane
        self.request = request
        self.file = file
        self.interrupted = False
        request.progress = self._progress

    def _progress(self) -> None:
        self.progressed = time.monotonic()

    def _land(self) -> None:
        self._plane.land(self)

    async def _answer(self, handler: Handler) -> None:
        try:
            await handler(self.request, self.file)
        except Exception as error:  # noqa: BLE001 - the barrier
            self.request.fail(failure(self.request, error))
