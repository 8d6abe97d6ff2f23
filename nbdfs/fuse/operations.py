"""What each request of the data plane means for a source (docs/semantics.md)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from nbdfs import eager
from nbdfs.errors import SourceError
from nbdfs.fuse import wire
from nbdfs.fuse.request import Request
from nbdfs.fuse.tree import File, Tree
from nbdfs.ranges import pieces
from nbdfs.source import ZERO

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16  # FALLOC_FL_*
_VIEW_LEAST = 64 << 10  # bytes: copying less costs no more than asking where they lie
_ZERO_STEP = 1 << 30  # bytes zeroed under one deadline
_COPY_MOST = 16 << 20  # bytes one COPY_FILE_RANGE may do; the caller asks again for the rest
_EXTENTS_STEP = 1 << 40  # bytes asked about at once


class Operations:
    """The handlers of the data plane: each answers its request, or raises an OSError with the errno to answer."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def read_resident(self, request: Request, file: File) -> bool:
        """Answer a READ if its bytes are in memory, without waiting."""
        offset = request.offset
        size = min(request.size, file.size - offset)
        view = file.source.view(offset, size) if size > 0 else None
        if view is not None:
            request.reply(view)
        return view is not None

    async def read(self, request: Request, file: File) -> None:
        offset, size = request.offset, request.size
        if offset + size > file.size:
            size = max(file.size - offset, 0)
        if not size:
            request.reply()
            return
        view = file.source.view(offset, size) if size >= _VIEW_LEAST else None
        if view is not None:
            request.reply(view)
            return
        await file.source.pread_into(request.payload[:size], offset)
        request.reply_payload(size)

    async def write(self, request: Request, file: File) -> None:
        offset, size = request.offset, request.size
        if offset + size > file.size:
            size = file.size - offset
            if size <= 0:
                raise SourceError(errno.ENOSPC, "write at the end of the device")
        try:
            await file.source.pwrite(request.payload[:size], offset, fua=bool(request.flags & os.O_DSYNC))
        finally:
            file.touch()
        request.reply_written(size)

    async def flush(self, request: Request, file: File) -> None:
        """FSYNC, and FLUSH at each close."""
        if file.source.writable:
            await file.source.flush()
        request.reply()

    async def seek(self, request: Request, file: File) -> None:
        """SEEK_DATA and SEEK_HOLE; the kernel does the other kinds itself."""
        _, offset, whence, _ = wire.LSEEK_IN.unpack_from(request.message, wire.BODY)
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise SourceError(errno.EINVAL)
        if offset >= file.size:
            raise SourceError(errno.ENXIO)
        hole = whence == os.SEEK_HOLE
        at = offset
        while at < file.size:
            for extent in await file.source.extents(at, min(file.size - at, _EXTENTS_STEP)):
                if bool(extent.flags & ZERO) == hole:
                    request.reply(wire.LSEEK_OUT.pack(extent.offset))
                    return
                at = extent.offset + extent.length
            request.progress()
        if not hole:
            raise SourceError(errno.ENXIO)
        request.reply(wire.LSEEK_OUT.pack(file.size))

    async def fallocate(self, request: Request, file: File) -> None:
        _, offset, length, mode, _ = wire.FALLOCATE_IN.unpack_from(request.message, wire.BODY)
        if mode & ~(_KEEP_SIZE | _PUNCH_HOLE | _ZERO_RANGE):
            raise SourceError(errno.EOPNOTSUPP)
        if not file.source.writable:
            raise SourceError(errno.EROFS)
        if offset + length > file.size:
            if not mode & _KEEP_SIZE or not mode & ~_KEEP_SIZE:
                raise SourceError(errno.ENOSPC, "the size of a device is fixed")
            length = file.size - offset  # past the end there is nothing to punch or zero
        if mode & ~_KEEP_SIZE and length > 0:
            await zero(file, offset, length, punch=bool(mode & _PUNCH_HOLE), progress=request.progress)
        request.reply()

    async def copy_range(self, request: Request, file: File) -> None:
        """COPY_FILE_RANGE inside the mount; it may do less than asked, as copy_file_range(2) may."""
        await eager.task()  # the source of the other file may wait otherwise than that of `file`
        _, source_at, target_inode, _, target_at, length, _ = wire.COPY_FILE_RANGE_IN.unpack_from(
            request.message, wire.BODY
        )
        target = self._tree.file(target_inode)
        length = min(length, _COPY_MOST, file.size - source_at)
        if length > 0 and target_at >= target.size:
            raise SourceError(errno.ENOSPC, "copy to the end of the device")
        length = max(min(length, target.size - target_at), 0)
        try:
            for at, size in pieces(0, length, wire.MAX_WRITE):
                await file.source.pread_into(request.payload[:size], source_at + at)
                await target.source.pwrite(request.payload[:size], target_at + at)
                request.progress()
        finally:
            target.touch()
        if request.opcode == wire.Opcode.COPY_FILE_RANGE:
            request.reply(wire.WRITE_OUT.pack(length, 0))
        else:
            request.reply(wire.COPY_OUT.pack(length))


async def zero(file: File, offset: int, length: int, *, punch: bool, progress: Callable[[], None]) -> None:
    """Make a range of a file read as zero, whatever its source can do; `progress` is told that it got on."""
    try:
        for at, size in pieces(offset, length, _ZERO_STEP):
            await file.source.zero(at, size, may_trim=punch)
            progress()
    finally:
        file.touch()
