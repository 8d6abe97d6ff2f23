"""The source made of a content, with what was written to it kept in memory.

Writes are kept in pages.  Invariant: `_written` holds exactly the pages that `_pages` has, as byte ranges; `_cleared`
those that read as holes; the two are disjoint, and everything else is the content's.  The three change together, with
no wait between.  A content of files is read in a thread; whoever changes a page that is still the content's holds the
lock on it.
"""

from __future__ import annotations

import trio

from nbdfs.backends.data.content import PAGE, Content, page_spans
from nbdfs.buffers import fill_zero
from nbdfs.rangelock import RangeLock
from nbdfs.ranges import RangeSet, align_down, align_up, normalise, pieces
from nbdfs.source import ALLOCATION, HOLE, ZERO, Caps, Extent, Source, SourceInfo

_CAPS = Caps.WRITE | Caps.FUA | Caps.TRIM | Caps.ZERO | Caps.FAST_ZERO | Caps.EXTENTS | Caps.MULTI_CONN
_MOST_SPANS = 4096  # of a content looked at for one answer


class DataSource(Source):
    """A content as a device of its size; memory grows by the pages that are written."""

    def __init__(self, content: Content, description: str = "data") -> None:
        caps = _CAPS if content.blocking else _CAPS | Caps.IMMEDIATE
        self.info = SourceInfo(content.size, caps, description=description)
        self._content = content
        self._pages: dict[int, bytearray] = {}  # by offset
        self._written = RangeSet()
        self._cleared = RangeSet()
        self._lock = RangeLock()

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        if not self._covered(offset, offset + len(buffer)):
            await self._read_content(buffer, offset)
        end = offset + len(buffer)
        for start, stop, written in self._written.runs(offset, end):
            if written:
                for at, size in pieces(start, stop - start, PAGE):
                    page = align_down(at, PAGE)
                    data = memoryview(self._pages[page])[at - page : at - page + size]
                    buffer[at - offset : at - offset + size] = data
        for start, stop, cleared in self._cleared.runs(offset, end):
            if cleared:
                fill_zero(buffer[start - offset : stop - offset])

    async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        end = offset + len(data)
        first, last = align_down(offset, PAGE), align_up(end, PAGE)
        async with self._lock.hold(first, last - first):
            await self._own(offset, end)
            for at, size in pieces(offset, len(data), PAGE):
                page = align_down(at, PAGE)
                self._page(page)[at - page : at - page + size] = data[at - offset : at - offset + size]

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        await self.zero(offset, length)

    async def zero(
        self, offset: int, length: int, *, may_trim: bool = True, fast: bool = False, fua: bool = False
    ) -> None:
        """Whole pages become holes, also without `may_trim`: no write to memory can lack space that was kept for it."""
        end = offset + length
        head = min(align_up(offset, PAGE), end)
        tail = self.info.size if end == self.info.size else max(align_down(end, PAGE), head)
        async with self._lock.hold(align_down(offset, PAGE), align_up(end, PAGE) - align_down(offset, PAGE)):
            for start, stop in (offset, head), (tail, end):
                if start < stop:
                    await self._own(start, stop)
                    page = align_down(start, PAGE)
                    fill_zero(memoryview(self._page(page))[start - page : stop - page])
            if head < tail:
                self._clear(head, align_up(tail, PAGE))

    async def extents(self, offset: int, length: int, *, context: str = ALLOCATION, one: bool = False) -> list[Extent]:
        found: list[Extent] = []
        end = offset + length
        for start, stop, written in self._written.runs(offset, end):
            if written:
                found.append(Extent(start, stop - start, 0))
                continue
            for low, high, cleared in self._cleared.runs(start, stop):
                if cleared:
                    found.append(Extent(low, high - low, HOLE | ZERO))
                    continue
                spans = page_spans(self._content, low, high, _MOST_SPANS)
                found += normalise(((a, b - a, flags) for a, b, flags in spans), low, high)
                if len(found) > _MOST_SPANS or found[-1].offset + found[-1].length < high:
                    return found
        return found

    def _covered(self, start: int, stop: int) -> bool:
        """Whether nothing of [start, stop) is the content's."""
        return self._written.covers(start, stop) or self._cleared.covers(start, stop)

    async def _read_content(self, buffer: memoryview, offset: int) -> None:
        if not self._content.blocking:
            self._content.read(buffer, offset)
            return
        data = bytearray(len(buffer))  # not the caller's buffer: the thread may outlive the request
        await trio.to_thread.run_sync(self._content.read, memoryview(data), offset, abandon_on_cancel=True)
        buffer[:] = data

    async def _own(self, start: int, stop: int) -> None:
        """Make the pages at the edges of [start, stop) our own where a part of them is to stay as it is."""
        for edge in {align_down(start, PAGE), align_down(stop - 1, PAGE)}:
            length = min(PAGE, self.info.size - edge)
            inside = start <= edge and edge + length <= stop
            if not inside and not self._covered(edge, edge + length):
                page = bytearray(PAGE)
                await self._read_content(memoryview(page)[:length], edge)
                self._pages[edge] = page
                self._written.add(edge, edge + PAGE)

    def _page(self, offset: int) -> bytearray:
        """Our own page there; one that is not there yet is about to be overwritten whole, or reads as zero."""
        if offset not in self._pages:
            self._pages[offset] = bytearray(PAGE)
            self._cleared.remove(offset, offset + PAGE)
            self._written.add(offset, offset + PAGE)
        return self._pages[offset]

    def _clear(self, start: int, stop: int) -> None:
        """Make whole pages read as holes."""
        for first, last, written in list(self._written.runs(start, stop)):
            if written:
                for page in range(first, last, PAGE):
                    del self._pages[page]
        self._written.remove(start, stop)
        self._cleared.add(start, stop)
