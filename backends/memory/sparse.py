"""A disk in a memfd: holes where nothing was written, one memory for every reader, writer and mapping.

Reads and writes are system calls on the memfd.  Its mapping serves only `view`, and only for pages that are there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from collections.abc import Mapping, Sequence
from typing import Self

import trio

from nbdfs import eager, libc
from nbdfs.backends.memory.present import Present
from nbdfs.budget import Budget, fits, missing
from nbdfs.errors import SourceError, UserError
from nbdfs.fileio import data_runs, read_whole, write_whole
from nbdfs.pages import LARGEST_VIEW, Pages
from nbdfs.ranges import align_down, align_up, pieces
from nbdfs.source import ALLOCATION, HOLE, ZERO, Backing, Caps, Extent, Source, SourceInfo
from nbdfs.undo import unless_done
from nbdfs.units import format_size

_CAPS = (Caps.WRITE | Caps.FUA | Caps.TRIM | Caps.ZERO | Caps.FAST_ZERO | Caps.EXTENTS | Caps.MULTI_CONN
         | Caps.IMMEDIATE)  # fmt: skip
_PAGE = mmap.PAGESIZE
_LARGEST_MAP = 16 << 40  # bytes; the address space holds a few of these
_SMALLEST_ASKED = 32 << 10  # bytes; below, asking for the pages costs more than the copy that a view saves
_MOST_EXTENTS = 1024  # in one answer
_ZEROES = memoryview(bytes(1 << 20))
_ZERO_SLICE = 64 << 20  # bytes written before others get a turn
_COPY_SLICE = 4 << 20  # bytes copied before others get a turn
_MADV_POPULATE_READ, _MADV_POPULATE_WRITE = 22, 23  # Linux 5.14


class Memory(Source):
    """`size` bytes; with `locked` what is stored is never swapped out."""

    eager = True

    def __init__(self, size: int, *, locked: bool = False) -> None:
        self.info = SourceInfo(size, _CAPS, description=f"memory:{format_size(size)}")
        self._locked = locked
        self._budget = Budget()
        self._pages: Pages | None = None  # without: there are no views
        self._present: Present | None = None  # there if `_pages` is
        self._data = range(0)  # a run known to be data: it spares walking it again for each small question

    async def __aenter__(self) -> Self:
        self._fd = os.memfd_create("nbdfs-memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with unless_done(lambda: os.close(self._fd)):
            os.ftruncate(self._fd, self.info.size)
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
            self._map_pages()
        # The kernel would let passthrough take all memory; only a disk that fits is handed out for it.
        self._fits = fits(self.info.size)
        return self

    def _map_pages(self) -> None:
        size = self.info.size
        if 0 < size <= _LARGEST_MAP:
            with contextlib.suppress(OSError):  # a limit on address space
                present = Present(size)
                with unless_done(present.close):
                    self._pages = Pages(self._fd, size)
                self._present = present
        if self._locked:
            self._lock()

    def _lock(self) -> None:
        if self._pages is None:
            raise UserError(f"memory: {format_size(self.info.size)} cannot be locked in memory: leave out mlock")
        try:
            libc.mlock_on_fault(self._pages.address, align_up(self.info.size, _PAGE))
        except OSError as error:
            raise UserError(
                f"memory: cannot lock {format_size(self.info.size)} in memory: {error.strerror}; "
                "raise the limit (ulimit -l, LimitMEMLOCK= of a unit) or leave out mlock"
            ) from error

    async def aclose(self) -> None:
        if self._pages is not None:
            self._pages.close()
        if self._present is not None:
            self._present.close()
        os.close(self._fd)
        self._fd = -1  # the number may soon be another file's

    def statistics(self) -> Mapping[str, int]:
        return {"resident_bytes": min(os.fstat(self._fd).st_blocks * 512, self.info.size)}

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        read_whole(self._fd, buffer, offset)

    async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        self._write(data, offset)

    def _write(self, data: memoryview, offset: int) -> None:
        length = len(data)
        if not self._budget.take(self._fd, offset, length):
            raise self._used_up()
        try:
            write_whole(self._fd, data, offset)
            if self._pages is not None and self._locked:
                first = align_down(offset, _PAGE)
                self._pages.map.madvise(_MADV_POPULATE_READ, first, align_up(offset + length, _PAGE) - first)
        except OSError as error:
            raise self._no_space(error) from error
        if self._present is not None:
            self._present.add(offset, length)

    def _used_up(self) -> SourceError:
        return SourceError(errno.ENOSPC, "the memory of the machine is used up", where=self.info.description)

    def _no_space(self, error: OSError) -> OSError:
        return self._used_up() if error.errno in (errno.ENOMEM, errno.ENOSPC, errno.EFAULT) else error

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        self._punch(offset, length)

    async def zero(
        self, offset: int, length: int, *, may_trim: bool = True, fast: bool = False, fua: bool = False
    ) -> None:
        if may_trim:
            self._punch(offset, length)
            return
        if fast:
            raise SourceError(errno.ENOTSUP, "zeroes that take space are written", where=self.info.description)
        if not self._budget.spend(missing(self._fd, offset, length)):
            raise self._used_up()
        if length > _ZERO_SLICE:
            await eager.task()
        for start, size in pieces(offset, length, _ZERO_SLICE):
            for at, step in pieces(start, size, len(_ZEROES)):
                self._write(_ZEROES[:step], at)
            if start + size < offset + length:
                await trio.lowlevel.checkpoint()

    async def resize(self, size: int) -> None:
        """The size of a sealed memfd is fixed for good, so the content moves to another one."""
        async with Memory(size, locked=self._locked) as other:  # at the end this closes whichever memfd it has then
            await self._copy_to(other)
            for name in ("info", "_fd", "_pages", "_present", "_data", "_fits"):
                ours, theirs = getattr(self, name), getattr(other, name)
                setattr(self, name, theirs)
                setattr(other, name, ours)

    async def _copy_to(self, other: Memory) -> None:
        end = min(self.info.size, other.info.size)
        buffer = memoryview(bytearray(_COPY_SLICE))
        data = ((first, min(last, end)) for first, last, is_data in data_runs(self._fd, 0, end) if is_data)
        for first, last in data:
            for at, size in pieces(first, last - first, _COPY_SLICE):
                read_whole(self._fd, buffer[:size], at)
                other._write(buffer[:size], at)
                await trio.lowlevel.checkpoint()

    def _punch(self, offset: int, length: int) -> None:
        self._data = range(0)
        if self._present is not None:
            self._present.discard(offset, length)
        libc.punch_hole(self._fd, offset, length)

    async def extents(self, offset: int, length: int, *, context: str = ALLOCATION, one: bool = False) -> list[Extent]:
        end = offset + length
        if offset in self._data:
            start = min(self._data.stop, end)
            found = [Extent(offset, start - offset, 0)]
        else:
            start, found = offset, []
        if start < end and not (found and one):
            for first, last, is_data in data_runs(self._fd, start, end):
                found.append(Extent(first, last - first, 0 if is_data else HOLE | ZERO))
                if is_data:
                    self._data = range(first, last)
                if one or len(found) == _MOST_EXTENTS:
                    break
        return found

    def view(self, offset: int, length: int, *, writable: bool = False) -> memoryview | None:
        pages, present = self._pages, self._present
        if pages is None or present is None:
            return None
        if present.covers(offset, length) or (writable and self._populate(pages, present, offset, length)):
            view: memoryview | None = pages.whole[offset : offset + length]
        elif writable or length < _SMALLEST_ASKED:
            return None
        else:
            view = pages.view(offset, length)
        return view if writable or view is None else view.toreadonly()

    def views(self, length: int, offsets: Sequence[int], *, writable: bool = False) -> Sequence[memoryview | None]:
        pages, present = self._pages, self._present
        if pages is None or present is None:
            return [None] * len(offsets)
        whole = pages.whole if writable else pages.readable
        lost = present.missing(offsets, length)
        if lost and writable:
            lost = [offset for offset in lost if not self._populate(pages, present, offset, length)]
        if not lost:
            return [whole[offset : offset + length] for offset in offsets]
        return [None if offset in lost else whole[offset : offset + length] for offset in offsets]

    def _populate(self, pages: Pages, present: Present, offset: int, length: int) -> bool:
        """Take the memory for a range that is about to be written; whether there is enough."""
        if length > LARGEST_VIEW or not self._budget.spend(length):
            return False
        beyond = offset & (_PAGE - 1)  # the first page begins so much before; the kernel itself looks after the last
        try:
            pages.map.madvise(_MADV_POPULATE_WRITE, offset - beyond, length + beyond)
        except OSError:  # writing it the other way tells why
            return False
        present.add(offset, length)
        return True

    def backing(self) -> Backing | None:
        """The memfd, unless writes to it must go by us: to be locked, or to be refused when memory runs out."""
        return Backing(self._fd, 0, fixed_size=True) if self._fits and not self._locked else None
