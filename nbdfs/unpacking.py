"""A compressed image as a source: what the gzip, xz and zstd layers share.

A format cuts the image into *frames*, runs of it that can be unpacked without what lies before them.  Short frames are
unpacked when they are read, and the last few stay in memory.  A frame too long for that (an image packed in one piece)
is unpacked into a temporary file at opening.

Formats work in threads, with plain reads of the packed bytes.
"""

from __future__ import annotations

import bisect
import errno
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import trio

from nbdfs.errors import SourceError, UserError
from nbdfs.rangelock import RangeLock
from nbdfs.records import replace
from nbdfs.scratch import Scratch, temporary_directory, unnamed_scratch
from nbdfs.source import ALLOCATION, MAX_SIZE, BlockSize, Caps, Layer, Source, read

log = logging.getLogger(__name__)

_READ = 256 << 10  # bytes of packed data fetched at once
_LONGEST = 16 << 20  # bytes of a frame that is unpacked when read
_KEPT = 64 << 20  # bytes of unpacked frames in memory
_MOST_FRAMES = 1 << 21  # what a file may make us hold


@dataclass(frozen=True, slots=True)
class Frame:
    """Bytes [start, start + size) of the image, packed from `packed` on; `state` is the format's own."""

    start: int
    size: int
    packed: int
    state: Any = None


class DamagedError(Exception):
    """The packed data makes no sense; the message says where and why."""


def check_frames(count: int) -> None:
    """Raise DamagedError for more frames than are held in memory."""
    if count > _MOST_FRAMES:
        raise DamagedError(f"it is cut into more than {_MOST_FRAMES} pieces")


class Packed:
    """The packed bytes, read from a worker thread in order from `at` on."""

    def __init__(self, source: Source, at: int = 0) -> None:
        self._source = source
        self._buffer = b""
        self._next = at  # where what follows the buffer begins
        self.size = source.info.size

    def another(self, at: int) -> Packed:
        """The same bytes, read independently from `at` on."""
        return Packed(self._source, at)

    @property
    def at(self) -> int:
        """Where the next read begins."""
        return self._next - len(self._buffer)

    def seek(self, at: int) -> None:
        """Go on at another place."""
        if self.at <= at <= self._next:
            self._buffer = self._buffer[at - self.at :]
        else:
            self._buffer, self._next = b"", at

    def read(self, length: int = _READ) -> bytes:
        """Up to `length` bytes, fewer (or none) only at the end."""
        if not self._buffer and self._next < self.size:
            count = min(_READ, self.size - self._next)
            self._buffer = bytes(trio.from_thread.run(read, self._source, self._next, count))
            self._next += count
        found, self._buffer = self._buffer[:length], self._buffer[length:]
        return found

    def exactly(self, length: int) -> bytes:
        """`length` bytes; DamagedError if there are fewer."""
        parts = []
        while length:
            part = self.read(length)
            if not part:
                raise DamagedError(f"it ends at {self.at}, in the middle of something: it is truncated")
            parts.append(part)
            length -= len(part)
        return b"".join(parts)


class Format(Protocol):
    """What a compression format must be able to do, in a worker thread."""

    name: str

    def index(self, packed: Packed) -> list[Frame]:
        """All frames, in order.  Raises DamagedError for what is no such file, is truncated or damaged."""

    def unpack(self, packed: Packed, frame: Frame) -> Iterator[bytes | bytearray]:
        """The content of a frame in pieces of a MiB or so.  Raises DamagedError."""


class Unpacked(Layer):
    """The unpacked image; frames longer than `_LONGEST` are in `spool`, at their own offsets."""

    def __init__(self, below: Source, format: Format, frames: list[Frame], spool: Scratch | None) -> None:
        super().__init__(below)
        self._format = format
        self._frames = frames
        self._starts = [frame.start for frame in frames]
        self._spool = spool
        self._kept: OrderedDict[int, memoryview] = OrderedDict()  # by index of the frame, least recently used first
        self._kept_bytes = 0
        self._unpacking = RangeLock()  # by index, so that a frame is unpacked once for all who wait for it
        identity = f"{format.name} of {below.info.identity}" if below.info.identity else ""
        self.info = replace(
            below.info,
            size=frames[-1].start + frames[-1].size if frames else 0,
            caps=Caps.MULTI_CONN,
            block=BlockSize(1, 64 << 10, 64 << 20),
            description=f"{format.name} of {below.info.description}",
            identity=identity,
            contexts=(ALLOCATION,),
        )

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        end = offset + len(buffer)
        index = self._index(offset)
        while index < len(self._frames) and self._frames[index].start < end:
            frame = self._frames[index]
            first, last = max(frame.start, offset), min(frame.start + frame.size, end)
            part = buffer[first - offset : last - offset]
            if frame.size > _LONGEST:
                assert self._spool is not None
                await self._spool.read_into(part, first)
            else:
                content = await self._content(index)
                part[:] = content[first - frame.start : last - frame.start]
            index += 1

    def view(self, offset: int, length: int, *, writable: bool = False) -> memoryview | None:
        index = self._index(offset)
        content = self._kept.get(index)
        if writable or content is None:
            return None
        start = offset - self._frames[index].start
        return content[start : start + length] if start + length <= len(content) else None

    def _index(self, offset: int) -> int:
        return bisect.bisect_right(self._starts, offset) - 1

    async def _content(self, index: int) -> memoryview:
        if index not in self._kept:
            async with self._unpacking.hold(index, 1):
                if index not in self._kept:
                    content = await trio.to_thread.run_sync(self._unpack, self._frames[index])
                    self._keep(index, content)
                    return content
        self._kept.move_to_end(index)
        return self._kept[index]

    def _keep(self, index: int, content: memoryview) -> None:
        self._kept[index] = content
        self._kept_bytes += len(content)
        while self._kept_bytes > _KEPT:
            _, gone = self._kept.popitem(last=False)
            self._kept_bytes -= len(gone)

    def _unpack(self, frame: Frame) -> memoryview:
        content = bytearray()
        try:
            for piece in self._format.unpack(Packed(self.below, frame.packed), frame):
                content += piece
                if len(content) > frame.size:
                    break
        except DamagedError as error:
            raise SourceError(errno.EIO, f"damaged: {error}", where=self.info.description) from error
        if len(content) != frame.size:
            raise SourceError(errno.EIO, "the content is not as long as its index says", where=self.info.description)
        return memoryview(content).toreadonly()


@asynccontextmanager
async def open_unpacked(below: Source, format: Format) -> AsyncIterator[Source]:
    """Find the frames, unpack the long ones, offer the image.  Raises UserError for a file that is not whole."""
    spool: Scratch | None = None
    try:
        try:
            frames = await trio.to_thread.run_sync(format.index, Packed(below))
            frames = [frame for frame in frames if frame.size]
            if frames and frames[-1].start + frames[-1].size > MAX_SIZE:
                raise DamagedError("its content would be larger than a file can be")
            long = [frame for frame in frames if frame.size > _LONGEST]
            if long:
                log.info("%s: packed in one piece: unpacking it into a temporary file", below.info.description)
                spool = unnamed_scratch(temporary_directory(), frames[-1].start + frames[-1].size)
                for frame in long:
                    await trio.to_thread.run_sync(_spool, format, Packed(below, frame.packed), frame, spool)
        except DamagedError as error:
            raise UserError(f"{below.info.description} is no {format.name} file, or it is damaged: {error}") from error
        yield Unpacked(below, format, frames, spool)
    finally:
        if spool:
            spool.close()


def _spool(format: Format, packed: Packed, frame: Frame, spool: Scratch) -> None:
    at = frame.start
    end = frame.start + frame.size
    for piece in format.unpack(packed, frame):
        if at + len(piece) > end:
            raise DamagedError("the content is longer than its index says")
        if piece.count(0) != len(piece):  # zeroes stay a hole
            spool.write_now(memoryview(piece), at)
        at += len(piece)
    if at != end:
        raise DamagedError("the content is shorter than its index says")
