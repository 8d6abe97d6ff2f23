"""A file as a source.

What is in the page cache is read at once (RWF_NOWAIT); what must come from the disk is read by a thread, so
that it delays nobody else.  A write into the page cache of a local file system is a copy and needs no thread either,
unless writes have just been slow: the kernel then makes writers wait for the disk.  On tmpfs nothing ever waits.

A thread that reads does so into memory of its own, so a cancelled read is over at once.  A cancelled write waits for
its thread: otherwise it could overwrite what is written later.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Self, TypeVar

import trio

from nbdfs import eager, libc
from nbdfs.backends.file.opening import Opened, open_path
from nbdfs.errors import SourceError
from nbdfs.fileio import data_runs, read_whole, version, write_whole
from nbdfs.records import replace
from nbdfs.source import ALLOCATION, HOLE, ZERO, Backing, BlockSize, Caps, Extent, Source, SourceInfo
from nbdfs.throttle import Throttle

if TYPE_CHECKING:
    from nbdfs.backends.file import Options

Result = TypeVar("Result")

_CAPS = Caps.FLUSH | Caps.EXTENTS | Caps.CACHE | Caps.MULTI_CONN
_WRITING = Caps.WRITE | Caps.FUA | Caps.ZERO | Caps.FAST_ZERO
_MOST_THREADS = 32
_MOST_EXTENTS = 1024  # in one answer
_SPARE = 1 << 20  # bytes; longer requests get memory of their own
_MOST_SPARES = 16
_BLKDISCARD = 0x1277  # linux/fs.h
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV)


class File(Source):
    """The file at `path`, all of it, with the size it has when it is opened."""

    eager = True
    batches = True

    def __init__(self, path: str, options: Options, *, readonly: bool) -> None:
        self._path = path
        self._options = options
        self._readonly = readonly
        self._threads = trio.CapacityLimiter(_MOST_THREADS)
        self._spares = _Spares()
        self._throttle = Throttle()
        self._lost = 0  # errno of the first sync that failed

    async def __aenter__(self) -> Self:
        self._file = await trio.to_thread.run_sync(self._open)
        self._fd = self._file.fd
        self._read_flags = 0 if self._file.resident else os.RWF_NOWAIT  # which tmpfs refuses, having no need of it
        caps = _CAPS
        if not self._readonly:
            caps |= _WRITING | (Caps.TRIM if self._options.discard else Caps.NONE)
        if self._options.direct:
            caps &= ~Caps.CACHE
        elif self._file.resident:
            caps |= Caps.IMMEDIATE
        block = self._file.block
        self.info = SourceInfo(
            self._file.size,
            caps,
            BlockSize(block, max(block, 4096)),
            description=self._path,
            identity=self._identity(),
            missing=self._missing(),
        )
        return self

    def _open(self) -> Opened:
        options = self._options
        return open_path(self._path, readonly=self._readonly, direct=options.direct, lock=options.lock)

    def _identity(self) -> str:
        """What names the content: nothing does that of a file we may write to."""
        return version(self._fd) if self._readonly else ""

    def _missing(self) -> str:
        file = self._file
        left = file.whole - file.size
        why = f"direct access is by blocks of {file.block}"
        return f"the last {left} of {file.whole} bytes cannot be reached, for {why}" if left else ""

    async def aclose(self) -> None:
        os.close(self._fd)
        self._fd = -1  # the number may soon be another file's

    def statistics(self) -> Mapping[str, int]:
        facts = os.fstat(self._fd)
        on_device = stat.S_ISBLK(facts.st_mode)  # where nothing tells what is allocated
        return {"resident_bytes": self.info.size if on_device else min(facts.st_blocks * 512, self.info.size)}

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        done = 0
        if not self._options.direct:
            try:
                done = os.preadv(self._fd, [buffer], offset, self._read_flags)
            except OSError:  # not in the page cache, or a file system that cannot tell: a thread will see
                done = 0
        if done < len(buffer):
            await self._read_in_thread(buffer[done:], offset + done)

    def read_now(self, buffer: memoryview, length: int, offsets: Sequence[int]) -> int:
        fd, flags, start, done = self._fd, self._read_flags, 0, 0
        if self._options.direct:
            return 0
        try:
            for offset in offsets:
                if os.preadv(fd, [buffer[start : start + length]], offset, flags) < length:
                    break
                start += length
                done += 1
        except OSError:  # not in the page cache, or what is wrong shows again the other way
            pass
        return done

    async def _read_in_thread(self, buffer: memoryview, offset: int) -> None:
        own = self._spares.take(len(buffer))
        await self._thread(lambda: read_whole(self._fd, own, offset), abandon=True)
        buffer[:] = own
        self._spares.give(own)  # not after a failure: a thread that was left alone may still write into it

    async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        if self._options.direct:
            own = self._spares.take(len(data))
            own[:] = data
            await self._thread(lambda: self._write(own, offset, fua))
            self._spares.give(own)
            return
        if fua or not self._file.local or self._throttle.waits():
            await self._thread(lambda: self._write(data, offset, fua))
        else:
            self._throttle.watch(lambda: self._write(data, offset, fua))

    def write_now(self, data: memoryview, length: int, offsets: Sequence[int]) -> int:
        if self._options.direct or not self._file.local or self._throttle.waits():
            return 0
        done = 0

        def write() -> None:
            nonlocal done
            self._check_length()
            for offset in offsets:
                write_whole(self._fd, data[done * length : (done + 1) * length], offset)
                done += 1

        with contextlib.suppress(OSError):  # which shows again the other way
            self._throttle.watch(write)
        return done

    def _write(self, data: memoryview, offset: int, fua: bool) -> None:
        self._check_length()
        try:
            write_whole(self._fd, data, offset, os.RWF_DSYNC if fua else 0)
        except OSError as error:
            if fua and error.errno == errno.EIO:
                self._lost = errno.EIO
            raise

    def _check_length(self) -> None:
        """Raises SourceError if the file has become shorter: writing would make the part that is gone read as zero."""
        if os.lseek(self._fd, 0, os.SEEK_END) < self.info.size:
            raise SourceError(errno.EIO, "another program has made the file shorter", where=self._path)

    async def flush(self) -> None:
        await self._thread(self._sync, abandon=True)

    def _sync(self) -> None:
        # The kernel tells a failure once and forgets what it could not write, so no later sync may succeed.
        if not self._lost:
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                self._lost = error.errno or errno.EIO
        if self._lost:
            raise SourceError(self._lost, "what was written may not have reached the disk", where=self._path)

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        def work() -> None:
            try:
                if self._file.device:
                    fcntl.ioctl(self._fd, _BLKDISCARD, struct.pack("QQ", offset, length))
                else:
                    libc.punch_hole(self._fd, offset, length)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
            if fua:
                self._sync()

        await self._thread(work)

    async def zero(
        self, offset: int, length: int, *, may_trim: bool = True, fast: bool = False, fua: bool = False
    ) -> None:
        def work() -> None:
            self._check_length()
            if not any(self._zero_by(mode, offset, length) for mode in self._zero_modes(may_trim, fast)):
                raise SourceError(errno.ENOTSUP, "the file system cannot zero a range", where=self._path)
            if fua:
                self._sync()

        await self._thread(work)

    def _zero_modes(self, may_trim: bool, fast: bool) -> list[int]:
        """The ways of fallocate(2) that zero, the cheapest first."""
        punch = [libc.FALLOC_FL_PUNCH_HOLE] if may_trim and self._options.discard else []
        # On a block device without such a command the kernel writes the zeroes for ZERO_RANGE: right, but not fast.
        return punch if fast and self._file.device else [*punch, libc.FALLOC_FL_ZERO_RANGE]

    def _zero_by(self, mode: int, offset: int, length: int) -> bool:
        try:
            libc.fallocate(self._fd, mode | libc.FALLOC_FL_KEEP_SIZE, offset, length)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            return False
        return True

    async def extents(self, offset: int, length: int, *, context: str = ALLOCATION, one: bool = False) -> list[Extent]:
        if self._file.device:
            return [Extent(offset, length, 0)]
        return await self._thread(
            lambda: self._extents(offset, offset + length, 1 if one else _MOST_EXTENTS), abandon=True
        )

    def _extents(self, start: int, end: int, most: int) -> list[Extent]:
        there = min(end, os.fstat(self._fd).st_size)
        found = []
        for first, last, is_data in data_runs(self._fd, start, there):
            found.append(Extent(first, last - first, 0 if is_data else HOLE | ZERO))
            start = last
            if len(found) == most:
                return found
        if start < end:  # what another program has cut off is no hole: reading it fails
            found.append(Extent(start, end - start, 0))
        return found

    async def resize(self, size: int) -> None:
        if self._file.device:
            raise SourceError(errno.ENOTSUP, "a block device has the size that it has", where=self._path)
        await self._thread(lambda: self._truncate(size))
        self.info = replace(self.info, size=size, missing="")

    def _truncate(self, size: int) -> None:
        self._check_length()
        os.ftruncate(self._fd, size)

    async def cache(self, offset: int, length: int) -> None:
        await self._thread(lambda: os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_WILLNEED), abandon=True)

    def backing(self) -> Backing | None:
        if self._options.direct:
            return None
        return Backing(self._fd, 0, fixed_size=self._readonly or self._file.device)

    async def _thread(self, work: Callable[[], Result], *, abandon: bool = False) -> Result:
        if Caps.IMMEDIATE in self.info.caps:
            return work()
        await eager.task()
        return await trio.to_thread.run_sync(work, limiter=self._threads, abandon_on_cancel=abandon)


class _Spares:
    """Memory aligned to a page, as direct access needs, that was used before: fresh pages are dear."""

    def __init__(self) -> None:
        self._free: list[memoryview] = []

    def take(self, length: int) -> memoryview:
        whole = self._free.pop() if self._free and length <= _SPARE else memoryview(mmap.mmap(-1, max(length, _SPARE)))
        return whole[:length]

    def give(self, part: memoryview) -> None:
        whole = memoryview(part.obj)
        if len(self._free) < _MOST_SPARES and len(whole) == _SPARE:
            self._free.append(whole)
