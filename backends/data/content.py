"""What a data string evaluates to: immutable contents that are combined without being written out.

A content knows its size and can fill a buffer from any offset, so a repeat of a terabyte costs as much memory as the
bytes it repeats.  Contents are shared freely: a name used twice is one object in two places.
"""

from __future__ import annotations

import abc
import bisect
import functools
import itertools
import re
from collections.abc import Iterator, Sequence

from nbdfs.buffers import fill_zero
from nbdfs.errors import SourceError, UserError
from nbdfs.fileio import data_runs, read_whole
from nbdfs.source import HOLE, MAX_SIZE, ZERO

Span = tuple[int, int, int]  # start, stop, flags

_FEW = 64  # spans
PAGE = 32 << 10  # bytes; where extents begin and end, and the unit in which a writer gets a copy
_MOST_DEPTH = 100  # contents inside each other: reading goes down as deep
_FLAT = 4096  # bytes; a layout of that size or less is written out when first read
_NOT_ZERO = re.compile(rb"[^\0]")


class ContentError(UserError):
    """Contents that cannot be combined that way."""


class Content(abc.ABC):
    """`size` bytes.

    `flags` (HOLE, ZERO; 0 is data) hold for every part of it, and `uniform` says that they are all there is to tell.
    `blocking`: reading may wait for a disk.  `depth` counts the contents inside each other.
    """

    size: int
    flags: int = 0
    uniform: bool = True
    blocking: bool = False
    depth: int = 1

    @abc.abstractmethod
    def read(self, buffer: memoryview, offset: int) -> None:
        """Fill the buffer, which is not empty, from `offset`; all of it lies inside."""

    def spans(self, start: int, stop: int) -> Iterator[Span]:
        """Ascending spans without gaps that cover [start, stop), which is not empty; computed as they are taken.

        A span may call data what has small holes, never the reverse.
        """
        yield start, stop, self.flags


class Bytes(Content):
    """Bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)
        self.flags = 0 if _NOT_ZERO.search(data) else ZERO

    def read(self, buffer: memoryview, offset: int) -> None:
        buffer[:] = memoryview(self.data)[offset : offset + len(buffer)]


class File(Content):
    """A file that is read when it is needed; the descriptor stays its opener's."""

    blocking = True
    uniform = False

    def __init__(self, fd: int, size: int, name: str) -> None:
        self.fd = fd
        self.size = size
        self.name = name

    def read(self, buffer: memoryview, offset: int) -> None:
        try:
            read_whole(self.fd, buffer, offset)
        except SourceError as error:
            error.where = self.name
            raise

    def spans(self, start: int, stop: int) -> Iterator[Span]:
        for first, last, data in data_runs(self.fd, start, stop):
            yield first, min(last, stop), 0 if data else HOLE | ZERO


class Repeat(Content):
    """`count` times `part`."""

    def __init__(self, part: Content, count: int) -> None:
        self.part = part
        self.count = count
        self.size = part.size * count
        self.flags = part.flags
        self.uniform = part.uniform or part.size <= PAGE
        self.blocking = part.blocking
        self.depth = part.depth + 1

    def read(self, buffer: memoryview, offset: int) -> None:
        period, length = self.part.size, len(buffer)
        phase = offset % period
        head = min(period - phase, length)
        self.part.read(buffer[:head], phase)
        done = min(period, length)
        if head < done:
            self.part.read(buffer[head:done], 0)
        while done < length:  # a whole number of periods is there
            more = min(done, length - done)
            buffer[done : done + more] = buffer[:more]
            done += more

    def spans(self, start: int, stop: int) -> Iterator[Span]:
        if self.uniform:
            yield start, stop, self.flags
            return
        period = self.part.size
        while start < stop:
            base = start - start % period
            entire = self._few if start == base and stop - base >= period else []
            for first, last, flags in entire or self.part.spans(start - base, min(stop - base, period)):
                yield base + first, base + last, flags
            start = base + period

    @functools.cached_property
    def _few(self) -> list[Span]:
        """All spans of the part if they are few, to be found out once and not for each period."""
        few = list(itertools.islice(self.part.spans(0, self.part.size), _FEW))
        return few if len(few) < _FEW else []


class Slice(Content):
    """`size` bytes of `whole` from `start`."""

    def __init__(self, whole: Content, start: int, size: int) -> None:
        self.whole = whole
        self.start = start
        self.size = size
        self.flags = whole.flags
        self.uniform = whole.uniform
        self.blocking = whole.blocking
        self.depth = whole.depth + 1

    def read(self, buffer: memoryview, offset: int) -> None:
        self.whole.read(buffer, self.start + offset)

    def spans(self, start: int, stop: int) -> Iterator[Span]:
        for first, last, flags in self.whole.spans(self.start + start, self.start + stop):
            yield first - self.start, last - self.start, flags


class Layout(Content):
    """Contents at ascending offsets that do not overlap; between them and after them are holes."""

    def __init__(self, starts: Sequence[int], parts: Sequence[Content], size: int) -> None:
        self.starts = starts
        self.parts = parts
        self.size = size
        full = sum(part.size for part in parts) == size
        first = parts[0].flags if parts else HOLE | ZERO
        self.flags = HOLE | ZERO if not full else first
        for part in parts:
            self.flags &= part.flags
        self.uniform = not parts or (full and all(part.uniform and part.flags == first for part in parts))
        self.blocking = any(part.blocking for part in parts)
        self.depth = 1 + max((part.depth for part in parts), default=0)
        self._flat: Bytes | None = None

    def read(self, buffer: memoryview, offset: int) -> None:
        if self.size <= _FLAT and not self.blocking:
            if self._flat is None:
                data = bytearray(self.size)
                self._fill(memoryview(data), 0)
                self._flat = Bytes(bytes(data))
            self._flat.read(buffer, offset)
        else:
            self._fill(buffer, offset)

    def _fill(self, buffer: memoryview, offset: int) -> None:
        for start, stop, part, base in self._pieces(offset, offset + len(buffer)):
            if part is None:
                fill_zero(buffer[start - offset : stop - offset])
            else:
                part.read(buffer[start - offset : stop - offset], start - base)

    def spans(self, start: int, stop: int) -> Iterator[Span]:
        if self.uniform:
            yield start, stop, self.flags
            return
        for first, last, part, base in self._pieces(start, stop):
            if part is None:
                yield first, last, HOLE | ZERO
            else:
                for low, high, flags in part.spans(first - base, last - base):
                    yield base + low, base + high, flags

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, Content | None, int]]:
        """[start, stop) cut into what lies in one part, with the part's offset, and holes (None)."""
        index = max(bisect.bisect_right(self.starts, start) - 1, 0)
        while start < stop and index < len(self.starts):
            base, part = self.starts[index], self.parts[index]
            if base >= stop:
                break
            if start < base:
                yield start, base, None, 0
                start = base
            last = min(base + part.size, stop)
            if start < last:
                yield start, last, part, base
                start = last
            index += 1
        if start < stop:
            yield start, stop, None, 0


class Builder:
    """Puts contents at offsets, one over the other, into a layout."""

    def __init__(self) -> None:
        self.offset = 0  # where the next content goes
        self._size = 0
        self._starts: list[int] = []
        self._parts: list[Content] = []

    def seek(self, offset: int) -> None:
        """Go on at another offset; the layout is at least that long."""
        if offset < 0:
            raise ContentError("the offset is before the beginning")
        if offset > MAX_SIZE:
            raise ContentError("the offset is beyond the largest size, 2^63 - 1 bytes")
        self.offset = offset
        self._size = max(self._size, offset)

    def add(self, content: Content) -> None:
        """Put it at the offset, over whatever is there, and go on behind it."""
        if content.size:
            start, stop = self.offset, self.offset + content.size
            if self._starts and start < self._starts[-1] + self._parts[-1].size:
                self._clear(start, stop)
            index = bisect.bisect_left(self._starts, start)
            if not (isinstance(content, Layout) and not content.parts):  # nothing but a hole
                self._starts.insert(index, start)
                self._parts.insert(index, content)
            self.seek(stop)

    def _clear(self, start: int, stop: int) -> None:
        first = max(bisect.bisect_right(self._starts, start) - 1, 0)
        last = bisect.bisect_left(self._starts, stop)
        kept = []
        for base, part in zip(self._starts[first:last], self._parts[first:last], strict=True):
            if base < start:
                kept.append((base, cut(part, 0, min(start - base, part.size))))
            if base + part.size > stop:
                kept.append((stop, cut(part, stop - base, part.size)))
        self._starts[first:last] = [base for base, _ in kept]
        self._parts[first:last] = [part for _, part in kept]

    def content(self) -> Content:
        """All that was put, as one content."""
        if self._size == 0:
            return EMPTY
        if len(self._parts) == 1 and self._parts[0].size == self._size:
            return self._parts[0]
        return _shallow(Layout(self._starts, self._parts, self._size))


EMPTY = Bytes(b"")


def repeat(part: Content, count: int) -> Content:
    """`count` times `part`."""
    if count == 0 or part.size == 0:
        return EMPTY
    if part.size * count > MAX_SIZE:
        raise ContentError(f"{part.size} bytes times {count} is more than the largest size, 2^63 - 1 bytes")
    if isinstance(part, Repeat):
        return repeat(part.part, part.count * count)
    return part if count == 1 else _shallow(Repeat(part, count))


def cut(whole: Content, start: int, stop: int) -> Content:
    """The bytes from `start` up to `stop` (exclusive)."""
    if not 0 <= start <= stop <= whole.size:
        raise ContentError(f"the slice [{start}:{stop}] does not lie in the {whole.size} bytes it is taken from")
    if start == stop:
        return EMPTY
    if stop - start == whole.size:
        return whole
    if isinstance(whole, Bytes):
        return Bytes(whole.data[start:stop])
    if isinstance(whole, Slice):
        return Slice(whole.whole, whole.start + start, stop - start)
    return _shallow(Slice(whole, start, stop - start))


def resize(content: Content, size: int) -> Content:
    """Cut to `size` bytes, or made as long by a hole."""
    if size <= content.size:
        return cut(content, 0, size)
    builder = Builder()
    builder.add(content)
    builder.seek(size)
    return builder.content()


def _shallow(content: Content) -> Content:
    if content.depth > _MOST_DEPTH:
        raise ContentError(f"more than {_MOST_DEPTH} contents inside each other")
    return content


def page_spans(content: Content, start: int, stop: int, most: int) -> Iterator[Span]:
    """Spans of `content` from `start` on, rounded out to pages, made from no more than `most` of its own.

    A page is what all parts of it are: data as soon as one is data.  The first span begins at the page of `start`, the
    last may reach past `stop` or, if there are too many, end before it.
    """
    start -= start % PAGE
    target = min(-(-stop // PAGE) * PAGE, content.size)
    pending, seen = (start, start, 0), start
    for low, seen, flags in itertools.islice(content.spans(start, target), most):
        first, last, before = pending
        if low < last:  # begins in the last page of the one before
            if before & flags != before and first < last - PAGE:
                yield first, last - PAGE, before
                first = last - PAGE
            pending = first, last, before & flags
            low = last
        if low < seen:
            if pending[0] < pending[1]:
                yield pending
            pending = low, -(-seen // PAGE) * PAGE, flags
    first, last, flags = pending
    if seen < target:  # what is not seen of the last page may be data
        if first < last - PAGE:
            yield first, last - PAGE, flags
        first, flags = last - PAGE, 0
    yield first, last, flags
