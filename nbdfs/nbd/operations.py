"""Requests of NBD carried out on an export, their replies put into the connection's output.

The order that keeps two front ends coherent is in `nbdfs.export`.  `Operations.perform` is the server's one barrier:
whatever goes wrong in a request is that request's error reply.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable
from typing import ClassVar

from nbdfs.errors import to_nbd
from nbdfs.export import Export
from nbdfs.nbd.output import FilePart, Output
from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.proto.events import Request
from nbdfs.nbd.proto.transmission import ServerTransmission
from nbdfs.source import ZERO, Caps, Extent

log = logging.getLogger(__name__)

_LEAST_HOLES = 32 << 10  # bytes; below, a reply with its zeroes is cheaper than asking where they are
_LEAST_RUN = 32 << 10  # bytes; where a peer is near, zeroes in runs that are shorter on average are cheaper sent
_UNASKED = 15  # reads that are then carried out without asking where zeroes are
_LEAST_FILE = 128 << 10  # bytes; below, sendfile costs more than a copy


class Operations:
    """One connection's way to its export.

    `borrows`: replies may lie in the source's memory, since whoever asks for them sends or copies them before its next
    checkpoint.
    """

    def __init__(self, export: Export, machine: ServerTransmission, output: Output, *, borrows: bool) -> None:
        self._export = export
        self._source = export.source
        self._machine = machine
        self._output = output
        self._borrows = borrows
        self._finds_holes = machine.structured and Caps.EXTENTS in export.source.info.caps
        self._least_run = _LEAST_RUN if output.stream.near else 0
        self._unasked = 0
        # A file on disk could make sendfile wait, and all clients with it; one in memory cannot.
        in_memory = output.stream.can_sendfile and Caps.IMMEDIATE in export.source.info.caps
        self._backing = export.source.backing() if in_memory else None

    async def perform(self, request: Request, buffer: memoryview | None) -> None:
        """Carry out a request and queue its reply.  `buffer` has the payload of a WRITE or takes that of a READ."""
        try:
            await self._HANDLERS[request.command](self, request, buffer)
        except OSError as error:
            self.refuse(request, to_nbd(error.errno or errno.EIO), error.strerror or str(error))
        except Exception:
            log.exception("unexpected error in a request")
            self.refuse(request, nbd.EIO, "internal error")

    def refuse(self, request: Request, error: int, message: str) -> None:
        """Queue an error reply."""
        log.info("command %d, %d bytes at %d: %s", request.command, request.length, request.offset, message)
        self._output.put(self._machine.error(request, error, message))

    def view(self, request: Request) -> memoryview | None:
        """The bytes of a READ, where they are in memory and go out as they are."""
        if self._export.before_access:
            return None
        return self._source.view(request.offset, request.length)

    def place(self, request: Request, done: int) -> memoryview | None:
        """Where the payload of a WRITE goes from `done` on, if it can be received there; it is done then."""
        if request.flags & nbd.CMD_FLAG_FUA and Caps.FLUSH in self._source.info.caps:
            return None
        try:
            return self._source.view(request.offset + done, request.length - done, writable=True)
        except OSError:
            return None  # writing the other way gives the error reply

    async def read(self, request: Request, buffer: memoryview | None) -> None:
        assert buffer is not None
        if self._export.before_access:
            await self._export.before_access(request.offset, request.length)
        extents = await self._holes(request) if request.length >= _LEAST_HOLES else []
        if extents:
            await self._read_sparse(request, buffer, extents)
        elif self._backing and request.length >= _LEAST_FILE:
            fd, start, _ = self._backing
            part = FilePart(fd, start + request.offset, request.length)
            self._output.put_file(self._machine.whole(request), part)
        else:
            data = buffer[: request.length]
            await self._source.pread_into(data, request.offset)
            self._output.put(self._machine.whole(request), data)

    async def _holes(self, request: Request) -> list[Extent]:
        """The extents of a READ, if some of them need not be sent."""
        if not self._finds_holes or request.flags & nbd.CMD_FLAG_DF:
            return []
        if self._unasked:
            self._unasked -= 1
            return []
        extents = await self._source.extents(request.offset, request.length)
        if len(extents) * self._least_run > request.length:
            self._unasked = _UNASKED
            return []
        if not any(extent.flags & ZERO for extent in extents):
            return []
        known = extents[-1].offset + extents[-1].length
        end = request.offset + request.length
        return extents if known == end else [*extents, Extent(known, end - known, 0)]

    async def _read_sparse(self, request: Request, buffer: memoryview, extents: list[Extent]) -> None:
        """A READ in pieces.  All is read before the first piece is sent, so that an error is the only reply."""
        replies: list[bytes | memoryview] = []
        for at, (offset, length, flags) in enumerate(extents, 1):
            if flags & ZERO:
                replies.append(self._machine.hole(request, offset, length, at == len(extents)))
            else:
                data = self._source.view(offset, length) if self._borrows else None
                if data is None:
                    data = buffer[offset - request.offset : offset - request.offset + length]
                    await self._source.pread_into(data, offset)
                replies += (self._machine.data(request, offset, length, at == len(extents)), data)
        self._output.put(*replies)

    async def write(self, request: Request, buffer: memoryview | None) -> None:
        assert buffer is not None
        export, offset, length = self._export, request.offset, request.length
        if export.before_access:
            await export.before_access(offset, length)
        await self._source.pwrite(buffer[:length], offset, fua=bool(request.flags & nbd.CMD_FLAG_FUA))
        if export.after_write:
            await export.after_write(offset, length)
        self._output.put(self._machine.success(request))

    async def _flush(self, request: Request, buffer: memoryview | None) -> None:
        await self._source.flush()
        self._output.put(self._machine.success(request))

    async def _trim(self, request: Request, buffer: memoryview | None) -> None:
        await self._before(request)
        await self._source.trim(request.offset, request.length, fua=bool(request.flags & nbd.CMD_FLAG_FUA))
        await self._changed(request)

    async def _zero(self, request: Request, buffer: memoryview | None) -> None:
        await self._before(request)
        await self._source.zero(
            request.offset,
            request.length,
            may_trim=not request.flags & nbd.CMD_FLAG_NO_HOLE,
            fast=bool(request.flags & nbd.CMD_FLAG_FAST_ZERO),
            fua=bool(request.flags & nbd.CMD_FLAG_FUA),
        )
        await self._changed(request)

    async def _cache(self, request: Request, buffer: memoryview | None) -> None:
        await self._source.cache(request.offset, request.length)
        self._output.put(self._machine.success(request))

    async def _block_status(self, request: Request, buffer: memoryview | None) -> None:
        one = bool(request.flags & nbd.CMD_FLAG_REQ_ONE)
        await self._before(request)
        replies = []
        for at, number in enumerate(request.contexts, 1):
            context = self._machine.contexts[number]
            extents = await self._source.extents(request.offset, request.length, context=context, one=one)
            pairs = [(extent.length, extent.flags) for extent in extents]
            replies.append(self._machine.status(request, number, pairs, at == len(request.contexts)))
        self._output.put(*replies)

    async def _before(self, request: Request) -> None:
        if self._export.before_access:
            await self._export.before_access(request.offset, request.length)

    async def _changed(self, request: Request) -> None:
        if self._export.after_write:
            await self._export.after_write(request.offset, request.length)
        self._output.put(self._machine.success(request))

    _HANDLERS: ClassVar[dict[int, Callable[[Operations, Request, memoryview | None], Awaitable[None]]]] = {
        nbd.CMD_READ: read,
        nbd.CMD_WRITE: write,
        nbd.CMD_FLUSH: _flush,
        nbd.CMD_TRIM: _trim,
        nbd.CMD_WRITE_ZEROES: _zero,
        nbd.CMD_CACHE: _cache,
        nbd.CMD_BLOCK_STATUS: _block_status,
    }
