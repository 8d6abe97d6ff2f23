"""Cut a copy into pieces: what to read and write, what to zero, and what is right already."""

from __future__ import annotations

import enum
import logging
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from nbdfs.errors import reason
from nbdfs.ranges import RangeSet, align_down, align_up, pieces
from nbdfs.source import HOLE, ZERO, Caps, Extent, SourceInfo
from nbdfs.stride import Stride

log = logging.getLogger(__name__)

ZERO_STEP = 128 << 20  # bytes; the longest range zeroed by one request
_WINDOW = 1 << 30  # bytes whose extents are asked for at once, at first
_GAP = 64 << 10  # bytes; a hole shorter than that is read with the data around it, which takes one request less


class Kind(enum.Enum):
    """What a piece needs."""

    DATA = enum.auto()  # read it, write it
    ZERO = enum.auto()  # it reads as zero: zero it
    SKIP = enum.auto()  # the destination holds the right bytes already


class Piece(NamedTuple):
    """A range in bytes, and what to do with it."""

    offset: int
    length: int
    kind: Kind


class Mapped(Protocol):
    """What a plan is made from: an open source, or as much of one."""

    @property
    def info(self) -> SourceInfo: ...

    async def extents(self, offset: int, length: int) -> list[Extent]: ...


class Planner:
    """Gives the pieces of a copy in order of their offsets, a window at a time.

    `step` is the longest piece of data, in bytes.  `align` is what the edges of data are rounded to, outwards.  With
    `extents` the source's holes are not read; `short_holes` reads those not worth a request of their own.  Ranges in
    `done` are skipped.  What reads as zero at the `destination` already is not zeroed again; `blank` says that all of
    it does.  With `allocated` a hole there does not count as zero.
    """

    def __init__(
        self,
        source: Mapped,
        destination: Mapped | None,
        *,
        step: int,
        align: int = 1,
        extents: bool = True,
        short_holes: bool = True,
        done: RangeSet | None = None,
        blank: bool = False,
        allocated: bool = False,
    ) -> None:
        self._source = source
        # Its extents are fetched once, a window at a time: no piece changes what lies in another.
        self._destination = destination if destination and Caps.EXTENTS in destination.info.caps else None
        self._map: deque[Extent] = deque()
        self._size = source.info.size
        self._step = step
        self._align = align
        self._extents = extents and Caps.EXTENTS in source.info.caps
        self._short_holes = short_holes
        self._done = done if done is not None else RangeSet()
        self._blank = blank
        self._allocated = allocated
        self._at = 0  # what lies before was planned
        self._stride = Stride(_WINDOW)

    async def window(self) -> list[Piece]:
        """The pieces of the next window, none at the end.  One caller at a time."""
        start = self._at
        if start >= self._size:
            return []
        found = await self._source_extents(start)
        end = self._at = found[-1].offset + found[-1].length
        result: list[Piece] = []
        for at, stop, zero in self._data_and_zero(found, start, end):
            for first, last, done in self._done.runs(at, stop):
                if done:
                    result.append(Piece(first, last - first, Kind.SKIP))
                elif not zero:
                    result.extend(Piece(*piece, Kind.DATA) for piece in pieces(first, last - first, self._step))
                else:
                    result.extend(await self._zeroing(first, last))
        return result

    async def _source_extents(self, start: int) -> list[Extent]:
        """Extents from `start` to some aligned offset, or the end."""
        if not self._extents:
            return [Extent(start, min(_WINDOW, self._size - start), 0)]
        length = min(self._stride.length, self._size - start)
        try:
            found = await self._source.extents(start, length)
        except OSError as error:
            log.warning("the extents of the source cannot be read, all of it is taken as data: %s", reason(error))
            self._extents = False
            return await self._source_extents(start)
        self._stride.heard(found, start + length)
        end = found[-1].offset + found[-1].length
        cut = align_down(end, self._align)
        if end < self._size and start < cut < end:  # end on an aligned offset, so that the next window begins on one
            found = [*found[:-1], found[-1]._replace(length=cut - found[-1].offset)]
            while found[-1].length <= 0:
                found.pop()
                found[-1] = found[-1]._replace(length=cut - found[-1].offset)
        return found

    def _data_and_zero(self, found: Iterable[Extent], start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """Runs (start, stop, whether zero) of a window, data widened to `align` and over short holes."""
        at = start
        data = start  # [at, data) is the run of data under way
        for extent in found:
            if extent.flags & ZERO:
                continue
            left = max(align_down(extent.offset, self._align), at)
            right = min(align_up(extent.offset + extent.length, self._align), end)
            gap = left - data
            if gap > (_GAP if self._short_holes and data > at else 0):
                if data > at:
                    yield at, data, False
                yield data, left, True
                at = left
            data = right
        if data > at:
            yield at, data, False
        if end > data:
            yield data, end, True

    async def _zeroing(self, first: int, last: int) -> list[Piece]:
        """Pieces for a range that reads as zero."""
        if self._blank:
            return [Piece(first, last - first, Kind.SKIP)]
        result = []
        while first < last:
            extent = await self._destination_extent(first)
            stop = min(extent.offset + extent.length, last)
            if extent.flags & ZERO and not (self._allocated and extent.flags & HOLE):
                result.append(Piece(first, stop - first, Kind.SKIP))
            else:
                result.extend(Piece(*piece, Kind.ZERO) for piece in pieces(first, stop - first, ZERO_STEP))
            first = stop
        return result

    async def _destination_extent(self, at: int) -> Extent:
        """The extent of the destination that holds `at`.  What is not known to be zero is data."""
        known = self._map
        while known and known[0].offset + known[0].length <= at:
            known.popleft()
        if known and known[0].offset <= at:
            return known[0]
        if self._destination is not None:
            try:
                known.extend(await self._destination.extents(at, self._at - at))
                return known[0]
            except OSError as error:
                log.info("the extents of the destination cannot be read: %s", reason(error))
                self._destination = None
        return Extent(at, self._size - at, 0)
