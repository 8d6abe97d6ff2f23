"""The `blocksize` layer: requests of any offset and length over a source with limits.

Reads and writes are cut to the maximum and widened to the minimum, of what is below or as given; a write that begins
or ends inside a block reads that block first.  Invariant: whoever changes bytes holds the lock on all the blocks that
it touches, so no read-modify-write can undo a neighbour's completed write.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence

from nbdfs.errors import SourceError, UsageError
from nbdfs.rangelock import RangeLock
from nbdfs.ranges import align_down, align_up, pieces
from nbdfs.records import Record, replace
from nbdfs.registry import SIZE, LayerDriver, OpenContext, option
from nbdfs.source import ALLOCATION, Backing, BlockSize, Extent, Layer, Source

_MAXIMUM = 64 << 20  # bytes of one request from above
_LARGEST_MINIMUM = 64 << 10  # bytes; NBD protocol, "Block size constraints"


class BlocksizeOptions(Record):
    minimum: int = option(1, SIZE, "bytes that requests below are multiples of, if not of more already")
    maximum: int = option(_MAXIMUM, SIZE, "bytes of the longest read or write below, if the source takes so many")


_NO_LIMITS = BlocksizeOptions()


class Blocksize(Layer):
    """`below` without its block size limits, which are narrowed by `limits`.

    Content is unchanged, so fast paths pass through; but a part of a block at the end is out of reach.
    """

    def __init__(self, below: Source, limits: BlocksizeOptions = _NO_LIMITS) -> None:
        super().__init__(below)
        block = below.info.block
        self._block = max(block.minimum, limits.minimum)
        self._step = max(align_down(min(block.maximum, limits.maximum), self._block), self._block)
        self._lock = RangeLock()
        self._limited = limits != _NO_LIMITS
        self.eager = below.eager
        self.batches = below.batches
        self.info = replace(below.info, block=BlockSize(1, max(block.preferred, self._block), _MAXIMUM))
        if left := self.info.size % self._block:
            missing = f"the last {left} of {self.info.size} bytes are less than a block of {self._block}"
            self.info = replace(self.info, size=self.info.size - left, missing=missing)

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        length = len(buffer)
        first, last = align_down(offset, self._block), align_up(offset + length, self._block)
        if first == offset and last == offset + length:
            if length <= self._step:
                await self.below.pread_into(buffer, offset)
                return
            for at, size in pieces(offset, length, self._step):
                await self.below.pread_into(buffer[at - offset : at - offset + size], at)
            return
        head, tail = self._inside(offset, length)
        if head < tail:  # the whole blocks go straight into place
            await self.pread_into(buffer[head - offset : tail - offset], head)
        for at, start, stop in self._edges(offset, length):
            block = await self._read_block(at)
            buffer[start - offset : stop - offset] = block[start - at : stop - at]

    async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        length = len(data)
        async with self._lock.hold(*self._blocks(offset, length)):
            head, tail = self._inside(offset, length)
            for at, size in pieces(head, max(tail - head, 0), self._step):
                await self.below.pwrite(data[at - offset : at - offset + size], at, fua=fua)
            for at, start, stop in self._edges(offset, length):
                block = await self._read_block(at)
                block[start - at : stop - at] = data[start - offset : stop - offset]
                await self.below.pwrite(block, at, fua=fua)

    async def flush(self) -> None:
        await self.below.flush()

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        head, tail = self._inside(offset, length)
        if head < tail:  # a trim is a hint: the parts of blocks at its ends are left alone
            async with self._lock.hold(head, tail - head):
                await self.below.trim(head, tail - head, fua=fua)

    async def zero(
        self, offset: int, length: int, *, may_trim: bool = True, fast: bool = False, fua: bool = False
    ) -> None:
        head, tail = self._inside(offset, length)
        edges = list(self._edges(offset, length))
        if fast and edges:
            raise SourceError(errno.ENOTSUP, "no fast way to zero a part of a block", where=self.info.description)
        async with self._lock.hold(*self._blocks(offset, length)):
            if head < tail:
                await self.below.zero(head, tail - head, may_trim=may_trim, fast=fast, fua=fua)
            for at, start, stop in edges:
                block = await self._read_block(at)
                block[start - at : stop - at] = bytes(stop - start)
                await self.below.pwrite(block, at, fua=fua)

    async def extents(self, offset: int, length: int, *, context: str = ALLOCATION, one: bool = False) -> list[Extent]:
        first, size = self._blocks(offset, length)
        found = await self.below.extents(first, size, context=context, one=one)
        if not found or found[0].offset != first or found[0].length <= offset - first:
            raise SourceError(errno.EIO, f"extents do not begin at {first}", where=self.info.description)
        cut = offset - first
        return [Extent(offset, found[0].length - cut, found[0].flags), *found[1:]]

    async def cache(self, offset: int, length: int) -> None:
        await self.below.cache(*self._blocks(offset, length))

    def view(self, offset: int, length: int, *, writable: bool = False) -> memoryview | None:
        if (offset | length) & (self._block - 1):
            return None
        return self.below.view(offset, length, writable=writable)

    def read_now(self, buffer: memoryview, length: int, offsets: Sequence[int]) -> int:
        return self.below.read_now(buffer, length, offsets) if self._whole(length, offsets) else 0

    def write_now(self, data: memoryview, length: int, offsets: Sequence[int]) -> int:
        if not self._lock.free or not self._whole(length, offsets):
            return 0
        return self.below.write_now(data, length, offsets)

    def _whole(self, length: int, offsets: Sequence[int]) -> bool:
        """Whether these are requests of whole blocks, and not too long."""
        return length <= self._step and not any((offset | length) & (self._block - 1) for offset in offsets)

    def backing(self) -> Backing | None:
        return None if self._limited else self.below.backing()

    def poller(self) -> Callable[[], bool] | None:
        return self.below.poller()

    def _blocks(self, offset: int, length: int) -> tuple[int, int]:
        """The range widened to whole blocks."""
        first = align_down(offset, self._block)
        return first, align_up(offset + length, self._block) - first

    def _inside(self, offset: int, length: int) -> tuple[int, int]:
        """The whole blocks inside the range: [head, tail), empty if head >= tail."""
        return align_up(offset, self._block), align_down(offset + length, self._block)

    def _edges(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """The blocks the range only touches: (block's offset, start and stop of the range in it)."""
        end = offset + length
        first, last = align_down(offset, self._block), align_down(end, self._block)
        if first != offset:
            yield first, offset, min(end, first + self._block)
        if last != end and (last != first or first == offset):
            yield last, max(offset, last), end

    async def _read_block(self, offset: int) -> memoryview:
        block = memoryview(bytearray(self._block))
        await self.below.pread_into(block, offset)
        return block


def _open(below: Source, options: BlocksizeOptions, context: OpenContext) -> Source:
    minimum, maximum = options.minimum, options.maximum
    if not 1 <= minimum <= _LARGEST_MINIMUM or minimum & (minimum - 1):
        raise UsageError(f"blocksize: minimum must be a power of two up to 64k, not {minimum}")
    if maximum < minimum or maximum % minimum:
        raise UsageError(f"blocksize: maximum must be a multiple of the minimum {minimum}, not {maximum}")
    return Blocksize(below, options)


DRIVER = LayerDriver(
    "blocksize", "cut and align requests to what the source below accepts", BlocksizeOptions, open=_open
)
