"""The two ends of a copy: devices, the streams of a pipe, and nothing at all."""

from __future__ import annotations

import os
from collections import deque
from typing import Protocol

import trio

from nbdfs.checked import Checked
from nbdfs.copying.plain import BUFFER
from nbdfs.copying.plan import Kind, Piece, Planner
from nbdfs.copying.turns import Turns
from nbdfs.copying.zeroes import runs, zero_pieces
from nbdfs.fileio import write_whole
from nbdfs.ranges import pieces
from nbdfs.source import Caps


class Input(Protocol):
    """Where the bytes come from.  Many workers take pieces from it, each with a buffer of its own."""

    async def next(self, buffer: memoryview) -> Piece | None:
        """The next piece in order, None at the end."""

    async def read(self, offset: int, length: int, buffer: memoryview) -> memoryview:
        """The bytes of (a part of) a piece that `next` gave to the same buffer; valid until it is used again."""


class Output(Protocol):
    """Where the bytes go."""

    async def write(self, data: memoryview, offset: int) -> int:
        """Write; give how many of the bytes were zeroed instead."""

    async def zero(self, offset: int, length: int) -> None:
        """Make the range read as zero."""

    async def finish(self) -> None:
        """Return once all is where a power cut cannot reach it, as far as this end can tell."""


class DeviceInput:
    """A device, read by a plan.  With `resident` its bytes are used where they lie in memory."""

    def __init__(self, source: Checked, planner: Planner, resident: bool = False) -> None:
        self._source = source
        self._planner = planner
        self._resident = resident
        self._ready: deque[Piece] = deque()
        self._lock = trio.Lock()  # held while a window is planned: the pieces stay in order

    async def next(self, buffer: memoryview) -> Piece | None:
        while not self._ready:
            async with self._lock:
                if not self._ready:
                    if not (window := await self._planner.window()):
                        return None
                    self._ready.extend(window)
        return self._ready.popleft()

    async def read(self, offset: int, length: int, buffer: memoryview) -> memoryview:
        if self._resident and (view := self._source.view(offset, length)) is not None:
            return view
        part = buffer[:length]
        await self._source.pread_into(part, offset)
        return part


class StreamInput:
    """A pipe, read to its end."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._at = 0
        self._ended = False
        self._lock = trio.Lock()  # held while reading: pieces are taken in order

    async def next(self, buffer: memoryview) -> Piece | None:
        async with self._lock:
            if self._ended:
                return None
            length = await trio.to_thread.run_sync(_fill, self._fd, buffer, abandon_on_cancel=True)
            self._ended = length < len(buffer)
            piece = Piece(self._at, length, Kind.DATA)
            self._at += length
        return piece if length else None

    async def read(self, offset: int, length: int, buffer: memoryview) -> memoryview:
        return buffer[:length]


class DeviceOutput:
    """A device.  Blocks of `sparse` bytes that hold only zeroes are zeroed, not written; 0 looks for none.

    What is `blank` reads as zero before the copy, so zeroes need no request.  With `allocated` no hole is made.
    """

    def __init__(self, destination: Checked, *, sparse: int, allocated: bool, blank: bool) -> None:
        self._destination = destination
        self._sparse = sparse
        self._allocated = allocated
        self._blank = blank

    async def write(self, data: memoryview, offset: int) -> int:
        if not self._sparse:
            await self._destination.pwrite(data, offset)
            return 0
        zeroed = 0
        for start, stop, zero in runs(data, offset, self._sparse):
            if zero:
                zeroed += stop - start
                await self.zero(offset + start, stop - start)
            else:
                await self._destination.pwrite(data[start:stop], offset + start)
        return zeroed

    async def zero(self, offset: int, length: int) -> None:
        if not self._blank:
            await self._destination.zero(offset, length, may_trim=not self._allocated)

    async def finish(self) -> None:
        await self._destination.flush()


class StreamOutput:
    """A pipe, written in order."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._turns = Turns()

    async def write(self, data: memoryview, offset: int) -> int:
        async with self._turns.turn(offset, len(data)):
            await trio.to_thread.run_sync(_drain, self._fd, data, abandon_on_cancel=True)
        return 0

    async def zero(self, offset: int, length: int) -> None:
        async with self._turns.turn(offset, length):
            for data in zero_pieces(length):
                await trio.to_thread.run_sync(_drain, self._fd, data, abandon_on_cancel=True)

    async def finish(self) -> None:
        """Nothing: what a pipe's reader does with the bytes is its own business."""


class GrowingFile:
    """An output for a stream of unknown length: a regular file that grows as bytes come, holes for zeroes."""

    def __init__(self, fd: int, *, sparse: int) -> None:
        self._fd = fd
        self._sparse = sparse
        self._end = 0

    async def write(self, data: memoryview, offset: int) -> int:
        self._end = max(self._end, offset + len(data))
        return await trio.to_thread.run_sync(self._write, data, offset)

    async def zero(self, offset: int, length: int) -> None:
        self._end = max(self._end, offset + length)

    async def finish(self) -> None:
        os.ftruncate(self._fd, self._end)
        await trio.to_thread.run_sync(os.fsync, self._fd)

    def _write(self, data: memoryview, offset: int) -> int:
        zeroed = 0
        for start, stop, zero in runs(data, offset, self._sparse) if self._sparse else [(0, len(data), False)]:
            if zero:
                zeroed += stop - start
                continue
            for at, size in pieces(start, stop - start, BUFFER):
                write_whole(self._fd, data[at : at + size], offset + at)
        return zeroed


class NullOutput:
    """Everything is thrown away."""

    async def write(self, data: memoryview, offset: int) -> int:
        return 0

    async def zero(self, offset: int, length: int) -> None:
        """Nothing."""

    async def finish(self) -> None:
        """Nothing."""


def both_immediate(source: Checked, destination: Checked) -> bool:
    """Whether neither side ever waits, so that a view of the source stays valid while it is written."""
    return Caps.IMMEDIATE in source.info.caps and Caps.IMMEDIATE in destination.info.caps


def _fill(fd: int, buffer: memoryview) -> int:
    """Read until the buffer is full or the stream ends; give the bytes read."""
    at = 0
    while at < len(buffer) and (count := os.readv(fd, [buffer[at:]])):
        at += count
    return at


def _drain(fd: int, data: memoryview) -> None:
    while len(data):
        data = data[os.write(fd, data) :]
