"""The data plane: read requests from /dev/fuse, answer those that move data, pass the others on.

One task reads the device.  A request to a source that never waits (`Caps.IMMEDIATE`), or whose bytes are in memory
(`view`), is answered at once by that task; any other gets a task of its own under a deadline, which FUSE_INTERRUPT
cancels.  Requests of the control plane go through `ControlLink` to pyfuse3.

Invariants: every request is answered exactly once, whatever its handler does (see `Barrier`); the request
buffer belongs to the reading task until a handler that waits takes it over (`Request.detach`).
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Awaitable, Callable

import trio

from nbdfs.fuse import wire
from nbdfs.fuse.barrier import Barrier
from nbdfs.fuse.buffers import BufferPool
from nbdfs.fuse.control_link import ControlLink
from nbdfs.fuse.operations import Operations
from nbdfs.fuse.request import Request
from nbdfs.fuse.tree import File, Tree
from nbdfs.fuse.wire import Opcode

log = logging.getLogger(__name__)

_POLL_NS = 50_000  # how long to look for the next request before sleeping
_SLICE_NS = 2_000_000  # how long to go on without letting other tasks run
_MOST_TASKS = 512  # requests in flight; the rest waits in the kernel

_GONE = (errno.ENODEV, errno.ENOTCONN)  # the file system was unmounted, or its connection aborted
_RETRY = (errno.EINTR, errno.ENOENT)  # ENOENT: the request was taken back before we read it


class DataPlane:
    """Serves one FUSE connection until it is unmounted.

    `timeout` is the deadline of each request in seconds; `poll` switches adaptive polling.
    """

    def __init__(self, device: int, tree: Tree, link: ControlLink, *, timeout: float, poll: bool = True) -> None:
        self._device = device
        self._tree = tree
        self._link = link
        self._timeout = timeout
        self._buffers = BufferPool(wire.REQUEST_SIZE, keep=8)
        self._operations = Operations(tree, self._buffers)
        self._running: dict[int, _Flight] = {}
        self._reading = trio.CancelScope()
        self._room = trio.Semaphore(_MOST_TASKS)
        self._poll_ns = _POLL_NS if poll else 0
        self._handlers: dict[int, Callable[[Request, File], Awaitable[None]]] = {
            Opcode.READ: self._operations.read,
            Opcode.WRITE: self._operations.write,
            Opcode.LSEEK: self._operations.seek,
            Opcode.FALLOCATE: self._operations.fallocate,
            Opcode.FSYNC: self._operations.flush,
            Opcode.FLUSH: self._operations.flush,
            Opcode.COPY_FILE_RANGE: self._operations.copy_range,
            Opcode.COPY_FILE_RANGE_64: self._operations.copy_range,
        }

    async def run(self) -> None:
        """Serve until the mount is gone (what is in flight is cancelled) or until `finish` (it is answered)."""
        async with trio.open_nursery() as nursery:
            with self._reading:
                await self._loop(nursery)
                nursery.cancel_scope.cancel()

    def finish(self) -> None:
        """Take no more requests, so that clients of a detached mount do not keep it going."""
        self._reading.cancel()

    async def _loop(self, nursery: trio.Nursery) -> None:
        buffer = self._buffers.take()
        slice_end = time.monotonic_ns() + _SLICE_NS
        poll_until = 0
        while True:
            try:
                length = os.readv(self._device, [buffer])
            except BlockingIOError:
                now = time.monotonic_ns()
                if now < poll_until and not self._running:
                    os.sched_yield()  # whoever makes the next request may need this CPU for it
                    continue
                await trio.lowlevel.wait_readable(self._device)
                slept = time.monotonic_ns() - now
                # Requests that come in quick succession make polling worth its while; a long sleep ends it.
                poll_until = now + slept + self._poll_ns if slept < 4 * self._poll_ns else 0
                slice_end = now + slept + _SLICE_NS
                continue
            except OSError as error:
                if error.errno in _RETRY:
                    continue
                if error.errno in _GONE:
                    return
                raise
            if await self._dispatch(buffer, length, nursery):
                buffer = self._buffers.take()
            now = time.monotonic_ns()
            if poll_until:
                poll_until = now + self._poll_ns
            if now > slice_end:
                await trio.lowlevel.checkpoint()
                slice_end = time.monotonic_ns() + _SLICE_NS

    async def _dispatch(self, buffer: memoryview, length: int, nursery: trio.Nursery) -> bool:
        """Answer or pass on one request; True if its buffer was taken over."""
        _, opcode, unique, inode, *_ = wire.IN_HEADER.unpack_from(buffer)
        handler = self._handlers.get(opcode)
        if handler is None:
            if opcode == Opcode.INTERRUPT:
                self._interrupt(wire.INTERRUPT_IN.unpack_from(buffer, wire.BODY)[0])
            else:
                self._link.forward(opcode, unique, buffer[:length])
            return False
        request = Request(self._device, opcode, unique, buffer[:length])
        try:
            file = self._tree.file(inode)
        except OSError as error:
            request.fail(error.errno or errno.EIO)
            return False
        if file.immediate or (opcode == Opcode.READ and self._operations.read_resident(request, file)):
            if not request.answered:
                with Barrier(request, request.fail):
                    await handler(request, file)
            return False
        await self._room.acquire()
        taken = request.detach()
        nursery.start_soon(self._fly, handler, request, file, buffer if taken else None)
        return taken

    async def _fly(
        self,
        handler: Callable[[Request, File], Awaitable[None]],
        request: Request,
        file: File,
        buffer: memoryview | None,
    ) -> None:
        """Answer one request in a task of its own, under its deadline."""
        flight = _Flight(trio.CancelScope(deadline=trio.current_time() + self._timeout))
        self._running[request.unique] = flight
        try:
            with flight.scope:
                request.progress = lambda: setattr(flight.scope, "deadline", trio.current_time() + self._timeout)
                with Barrier(request, request.fail):
                    await handler(request, file)
            if not request.answered:
                request.fail(errno.EINTR if flight.interrupted else errno.EIO)
                if not flight.interrupted:
                    log.error("%s: no answer to %s within %g s", file.source.info.description,
                              request, self._timeout)  # fmt: skip
        finally:
            del self._running[request.unique]
            self._room.release()
            if buffer is not None:
                self._buffers.give(buffer)

    def _interrupt(self, unique: int) -> None:
        # What is not in flight was answered already, or is with the control plane, which does not wait.
        flight = self._running.get(unique)
        if flight:
            flight.interrupted = True
            flight.scope.cancel()


class _Flight:
    """A request that waits for its source."""

    __slots__ = ("interrupted", "scope")

    def __init__(self, scope: trio.CancelScope) -> None:
        self.scope = scope
        self.interrupted = False
