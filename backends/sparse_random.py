"""The `sparse-random` source: runs of data in holes, as the disk of a virtual machine has, all of it from a seed.

The device is cut into cells of equal size.  Each has one run, of random length at a random place, of whichever is the
rarer of data and hole; the rest of it is the other.  So any place can be computed from the seed alone, and a device of
an exabyte opens at once.
"""

from __future__ import annotations

import errno
import functools
import itertools
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from nbdfs.backends.checkwrite import mismatch
from nbdfs.backends.random import Noise
from nbdfs.buffers import fill_zero, is_zero
from nbdfs.errors import SourceError, UsageError
from nbdfs.ranges import normalise
from nbdfs.records import Record
from nbdfs.registry import BOOLEAN, INTEGER, NUMBER, SIZE, OpenContext, SourceDriver, option
from nbdfs.source import ALLOCATION, HOLE, ZERO, Caps, Extent, Source, SourceInfo
from nbdfs.units import parse_size

if TYPE_CHECKING:
    from nbdfs.keystream import Keystream

_CAPS = (Caps.WRITE | Caps.FUA | Caps.TRIM | Caps.ZERO | Caps.FAST_ZERO | Caps.EXTENTS | Caps.MULTI_CONN
         | Caps.IMMEDIATE)  # fmt: skip
_MOST_RUNS = 8192  # in one answer to extents()
_AT_ONCE = 64  # cells computed together
_UNIT = 4096  # bytes; what a block of one repeated byte is made of
_VALUES = 1024  # units whose bytes are computed together
_TOLERANCE = 0.02  # how far the share of data may be from what was asked for
_CELLS = 8  # a device has as many or more, however small it is: each size shows runs and holes


class Content(Protocol):
    """What the data of a device is."""

    def fill(self, buffer: memoryview, offset: int) -> None:
        """Fill the buffer with what is at `offset`."""

    def differs(self, data: memoryview, offset: int) -> bool:
        """Whether `data` is anything but what is at `offset`."""


class Repeated:
    """Each block is one byte, not zero, repeated."""

    def __init__(self, stream: Keystream, block: int) -> None:
        self._unit = min(block, _UNIT)
        self._units_of_block = block // self._unit
        self._stream = stream
        self._units = [bytearray([value]) * self._unit for value in range(256)]
        self._values = functools.lru_cache(maxsize=64)(self._compute)

    def fill(self, buffer: memoryview, offset: int) -> None:
        units = self._units
        for at, size, values in self._pieces(offset, len(buffer)):
            if size == self._unit:
                for value in values:
                    buffer[at : at + size] = units[value]
                    at += size
            else:
                buffer[at : at + size] = units[values[0]][:size]

    def differs(self, data: memoryview, offset: int) -> bool:
        units = self._units
        for at, size, values in self._pieces(offset, len(data)):
            if size == self._unit:
                for value in values:
                    if units[value] != data[at : at + size]:
                        return True
                    at += size
            elif units[values[0]][:size] != data[at : at + size]:
                return True
        return False

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[int, int, bytes]]:
        """A range in pieces: where in it, the size of each unit or of the part of one, the bytes that they repeat."""
        unit, at = self._unit, 0
        while at < length:
            index, skip = divmod(offset + at, unit)
            chunk, first = divmod(index, _VALUES)
            whole = 0 if skip else (length - at) // unit
            values = self._values(chunk)[first : first + max(whole, 1)]
            size = unit if whole else min(unit - skip, length - at)
            yield at, size, values
            at += size * len(values)

    def _compute(self, chunk: int) -> bytes:
        """The bytes of units chunk * _VALUES and on."""
        each = self._units_of_block
        first = chunk * _VALUES
        blocks = self._stream.read(first // each, (first + _VALUES - 1) // each - first // each + 1)
        values = blocks.translate(_NOT_ZERO)
        if each == 1:
            return bytes(values)
        return bytes(values[(first + index) // each - first // each] for index in range(_VALUES))


_NOT_ZERO = bytes([0xA5, *range(1, 256)])


class Shape(Record):
    """Where runs lie: in each cell of `cell` bytes one of `shortest` to `longest`, in multiples of `block`.

    `data` says what the runs are: data in holes or holes in data.
    """

    cell: int
    shortest: int
    longest: int
    block: int
    data: bool


class Runs:
    """The runs of a seed."""

    def __init__(self, stream: Keystream, shape: Shape) -> None:
        self._stream = stream
        self._shape = shape
        self._cells = functools.lru_cache(maxsize=64)(self._compute)

    def between(self, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """[start, end) cut into (start, stop, whether data), in order and without gaps."""
        size, inside = self._shape.cell, self._shape.data
        cell = start // size
        while start < end:
            group, index = divmod(cell, _AT_ONCE)
            first, last = self._cells(group)[index]
            cell += 1
            for stop, data in (first, not inside), (last, inside), (cell * size, not inside):
                if start < stop:
                    yield start, min(stop, end), data
                    start = stop
                    if start >= end:
                        return

    def _compute(self, group: int) -> list[tuple[int, int]]:
        """The first and last offset of the run of each cell of a group."""
        shape = self._shape
        cell = group * _AT_ONCE
        numbers = struct.unpack(f"<{2 * _AT_ONCE}Q", self._stream.read(cell * 16, _AT_ONCE * 16))
        choices = (shape.longest - shape.shortest) // shape.block + 1
        runs = []
        for at, (length, place) in enumerate(zip(numbers[::2], numbers[1::2], strict=True), cell):
            run = shape.shortest + length % choices * shape.block
            first = at * shape.cell + place % ((shape.cell - run) // shape.block + 1) * shape.block
            runs.append((first, first + run))
        return runs


class SparseRandom(Source):
    """`size` bytes; a write, trim or zero is accepted where it changes nothing."""

    def __init__(self, size: int, runs: Runs, content: Content, description: str, identity: str) -> None:
        self.info = SourceInfo(size, _CAPS, description=description, identity=identity)
        self._runs = runs
        self._content = content

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        for start, stop, data in self._runs.between(offset, offset + len(buffer)):
            piece = buffer[start - offset : stop - offset]
            if data:
                self._content.fill(piece, start)
            else:
                fill_zero(piece)

    async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        for start, stop, filled in self._runs.between(offset, offset + len(data)):
            piece = data[start - offset : stop - offset]
            if self._content.differs(piece, start) if filled else not is_zero(piece):
                raise mismatch(start, stop - start, self.info.description)

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        self._expect_hole(offset, length)

    async def zero(
        self, offset: int, length: int, *, may_trim: bool = True, fast: bool = False, fua: bool = False
    ) -> None:
        self._expect_hole(offset, length)

    async def extents(self, offset: int, length: int, *, context: str = ALLOCATION, one: bool = False) -> list[Extent]:
        runs = itertools.islice(self._runs.between(offset, offset + length), _MOST_RUNS)
        found = [Extent(start, stop - start, 0 if data else HOLE | ZERO) for start, stop, data in runs]
        return normalise(found, offset, length)

    def _expect_hole(self, offset: int, length: int) -> None:
        for start, _, data in self._runs.between(offset, offset + length):
            if data:
                raise SourceError(errno.EIO, f"at {start} is data, not a hole", where=self.info.description)


class SparseRandomOptions(Record):
    seed: int | None = option(None, INTEGER, "what repeats the content; without it the content is new at each opening")
    percent: float = option(10.0, NUMBER, "how much of the device is data: 0 none, 100 all")
    runlength: int = option(16 << 20, SIZE, "the mean length of a run of data")
    random_content: bool = option(False, BOOLEAN, "every byte is random; else each block repeats one byte")
    blocksize: int = option(4096, SIZE, "what runs are multiples of: a power of two, 1024 or more")


def plan_shape(size: int, percent: float, runlength: int, block: int) -> Shape:
    """The shape that gives so much data in runs of that mean length; small devices have shorter ones."""
    if percent in (0, 100):
        return Shape(max(size, 1), 0, 0, block, percent == 0)
    share = max(min(percent, 100 - percent) / 100, 1e-12)  # of a cell that is run
    mean = runlength if percent <= 50 else runlength * (100 - percent) / percent
    units = max(round(min(mean, size / _CELLS * share) / block), 1)
    while abs(units / round(units / share) / share - 1) > _TOLERANCE:  # few blocks make rough shares
        units += 1
    cell = round(units / share) * block
    return Shape(cell, (units - units // 2) * block, (units + units // 2) * block, block, percent <= 50)


def _open(argument: str, options: SparseRandomOptions, context: OpenContext) -> Source:
    from nbdfs.keystream import Keystream, new_seed

    size, block = parse_size(argument), options.blocksize
    if block < 1024 or block & (block - 1):
        raise UsageError(f"sparse-random: the blocksize {block} is not a power of two from 1024 on")
    if not 0 <= options.percent <= 100:
        raise UsageError(f"sparse-random: {options.percent:g} percent: write 0 to 100")
    if options.runlength <= 0:
        raise UsageError("sparse-random: a runlength of 0 leaves nothing to run")
    seed = new_seed() if options.seed is None else options.seed
    shape = plan_shape(size, options.percent, options.runlength, block)
    bytes_of = Keystream(seed, "sparse-random content")
    content: Content = Noise(bytes_of) if options.random_content else Repeated(bytes_of, block)
    runs = Runs(Keystream(seed, "sparse-random runs"), shape)
    identity = f"sparse-random {seed} {shape} {options.random_content}"
    return SparseRandom(size, runs, content, f"sparse-random, seed {seed}", identity)


DRIVER = SourceDriver(
    "sparse-random", "runs of data in holes, from a seed; writes must equal them", SparseRandomOptions, "random",
    open=_open, argument="SIZE",
)  # fmt: skip
