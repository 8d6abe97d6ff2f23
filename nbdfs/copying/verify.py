"""Read a finished copy back and compare it with its source."""

from __future__ import annotations

import os

import trio

from nbdfs.buffers import is_zero
from nbdfs.checked import Checked
from nbdfs.copying.engine import CopyError
from nbdfs.ranges import pieces
from nbdfs.source import ZERO


class CompareOutput:
    """An output that writes nothing: what should have been written must be there already."""

    def __init__(self, destination: Checked, step: int) -> None:
        self._destination = destination
        self._step = step
        self._buffers: list[memoryview] = []  # of `step` bytes; as many as compare at the same time

    async def write(self, data: memoryview, offset: int) -> int:
        found = await self._read(offset, len(data))
        if bytearray(found) != data:  # compared by memcmp, which two memoryviews are not
            raise CopyError(f"the destination differs at byte {offset + _first_difference(found, data)}")
        self._release(found)
        return 0

    async def zero(self, offset: int, length: int) -> None:
        end = offset + length
        while offset < end:
            for extent in await self._destination.extents(offset, end - offset):
                if not extent.flags & ZERO:
                    await self._read_zero(extent.offset, extent.length)
                offset = extent.offset + extent.length
            await trio.lowlevel.checkpoint()

    async def finish(self) -> None:
        """Nothing."""

    async def _read_zero(self, offset: int, length: int) -> None:
        for at, size in pieces(offset, length, self._step):
            found = await self._read(at, size)
            if not is_zero(found):
                wrong = _first_difference(found, memoryview(bytes(size)))
                raise CopyError(f"the destination differs at byte {at + wrong}")
            self._release(found)

    async def _read(self, offset: int, length: int) -> memoryview:
        buffer = self._buffers.pop() if self._buffers else memoryview(bytearray(self._step))
        part = buffer[:length]
        await self._destination.pread_into(part, offset)
        return part

    def _release(self, part: memoryview) -> None:
        self._buffers.append(memoryview(part.obj))


def forget_cached(destination: Checked) -> None:
    """Have the kernel drop its cached pages of a plain file, so that reading back reads the device."""
    if backing := destination.backing():
        os.posix_fadvise(backing.fd, backing.offset, destination.info.size, os.POSIX_FADV_DONTNEED)


def _first_difference(one: memoryview, other: memoryview) -> int:
    return next(index for index, (left, right) in enumerate(zip(one, other, strict=True)) if left != right)
