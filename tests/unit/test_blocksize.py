"""The blocksize layer: which requests go down, and that read-modify-write never undoes a neighbour."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from nbdfs.backends.blocksize import Blocksize, BlocksizeOptions
from nbdfs.checked import Checked
from nbdfs.errors import UsageError
from nbdfs.records import replace
from nbdfs.source import BlockSize, Caps, Source, SourceInfo, read
from nbdfs.stack import open_stack

SIZE = 64 << 10
BLOCK = 4096


class Slow(Source):
    """Blocks in memory; each request takes a moment, and is noted."""

    def __init__(self, caps: Caps = Caps.WRITE | Caps.TRIM | Caps.ZERO | Caps.FUA) -> None:
        self.info = SourceInfo(SIZE, caps, BlockSize(BLOCK, BLOCK, 2 * BLOCK), description="slow")
        self.data = bytearray(SIZE)
        self.calls: list[tuple[object, ...]] = []

    async def note(self, *call: object) -> None:
        self.calls.append(call)
        await trio.sleep(0.001)

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        await self.note("read", offset, len(buffer))
        buffer[:] = self.data[offset : offset + len(buffer)]

    async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        await self.note("write", offset, len(data), fua)
        self.data[offset : offset + len(data)] = data

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        await self.note("trim", offset, length)

    async def zero(
        self, offset: int, length: int, *, may_trim: bool = True, fast: bool = False, fua: bool = False
    ) -> None:
        await self.note("zero", offset, length)
        self.data[offset : offset + length] = bytes(length)


def stacked(below: Source) -> Checked:
    return Checked(Blocksize(Checked(below)))


@pytest.mark.parametrize(
    "offset, length, calls",
    [
        (0, BLOCK, [("write", 0, BLOCK, False)]),
        (BLOCK, 4 * BLOCK,
         [("write", BLOCK, BLOCK, False), ("write", 2 * BLOCK, 2 * BLOCK, False), ("write", 4 * BLOCK, BLOCK, False)]),
        (10, 20, [("read", 0, BLOCK), ("write", 0, BLOCK, False)]),
        (BLOCK - 1, 2,
         [("read", 0, BLOCK), ("write", 0, BLOCK, False), ("read", BLOCK, BLOCK), ("write", BLOCK, BLOCK, False)]),
        (100, 2 * BLOCK,
         [("write", BLOCK, BLOCK, False), ("read", 0, BLOCK), ("write", 0, BLOCK, False), ("read", 2 * BLOCK, BLOCK),
          ("write", 2 * BLOCK, BLOCK, False)]),
        (0, BLOCK + 1, [("write", 0, BLOCK, False), ("read", BLOCK, BLOCK), ("write", BLOCK, BLOCK, False)]),
    ],
)  # fmt: skip
async def test_a_write_touches_each_block_once(offset: int, length: int, calls: list[tuple[object, ...]]) -> None:
    below = Slow()
    data = bytes(index % 255 + 1 for index in range(length))
    await stacked(below).pwrite(memoryview(data), offset)
    assert sorted(map(str, below.calls)) == sorted(map(str, calls))
    assert below.data == bytes(offset) + data + bytes(SIZE - offset - length)


async def test_fua_is_on_every_part() -> None:
    below = Slow()
    await stacked(below).pwrite(memoryview(bytes(2 * BLOCK)), 1, fua=True)
    assert [call[3] for call in below.calls if call[0] == "write"] == [True] * 3


async def test_neighbours_in_one_block_do_not_undo_each_other() -> None:
    below = Slow()
    door = stacked(below)
    async with trio.open_nursery() as nursery:
        for index in range(100):
            nursery.start_soon(door.pwrite, memoryview(bytes([index + 1])), 4000 + index)
            if index % 10 == 0:
                nursery.start_soon(door.zero, 5000 + index, 3)
    assert below.data[4000:4100] == bytes(range(1, 101))


async def test_zero_writes_only_the_edges() -> None:
    below = Slow()
    below.data[:] = b"x" * SIZE
    await stacked(below).zero(10, 3 * BLOCK)
    assert ("zero", BLOCK, 2 * BLOCK) in below.calls
    assert below.data == b"x" * 10 + bytes(3 * BLOCK) + b"x" * (SIZE - 10 - 3 * BLOCK)


async def test_a_fast_zero_of_part_of_a_block_is_refused() -> None:
    below = Slow(Caps.WRITE | Caps.ZERO | Caps.FAST_ZERO)
    door = stacked(below)
    with pytest.raises(OSError) as refusal:
        await door.zero(1, BLOCK, fast=True)
    assert refusal.value.errno == errno.ENOTSUP
    await door.zero(BLOCK, BLOCK, fast=True)
    assert below.calls == [("zero", BLOCK, BLOCK)]


async def test_a_trim_leaves_the_edges_alone() -> None:
    below = Slow()
    door = stacked(below)
    await door.trim(1, BLOCK)
    await door.trim(1, 3 * BLOCK)
    assert below.calls == [("trim", BLOCK, 2 * BLOCK)]


async def test_reads_of_any_range() -> None:
    below = Slow()
    below.data[:] = bytes(index * 7 % 256 for index in range(SIZE))
    door = stacked(below)
    for offset, length in (
        (0, SIZE),
        (1, 1),
        (BLOCK - 1, 2),
        (5, 3 * BLOCK),
        (BLOCK, 7),
        (BLOCK - 7, 7),
        (SIZE - 1, 1),
    ):
        assert await read(door, offset, length) == below.data[offset : offset + length]


async def test_limits_may_be_narrowed() -> None:
    below = Slow()
    below.info = replace(below.info, block=BlockSize())
    door = Checked(Blocksize(Checked(below), BlocksizeOptions(minimum=BLOCK, maximum=BLOCK)))
    await door.pwrite(memoryview(b"x" * (2 * BLOCK + 1)), 0)
    assert below.calls[:2] == [("write", 0, BLOCK, False), ("write", BLOCK, BLOCK, False)]
    assert below.calls[2:] == [("read", 2 * BLOCK, BLOCK), ("write", 2 * BLOCK, BLOCK, False)]
    assert below.data == b"x" * (2 * BLOCK + 1) + bytes(SIZE - 2 * BLOCK - 1)


async def test_a_part_of_a_block_at_the_end_is_out_of_reach(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(range(256)) * 8 + b"end")
    async with open_stack(f"blocksize,minimum=512::{image}") as door:
        assert door.info.size == 2048 and door.backing() is None
        assert door.info.missing == "the last 3 of 2051 bytes are less than a block of 512"
        assert await read(door, 2047, 1) == b"\xff"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("minimum=0", "minimum must be a power of two up to 64k, not 0"),
        ("minimum=1000", "minimum must be a power of two up to 64k, not 1000"),
        ("minimum=128k", "minimum must be a power of two up to 64k, not 131072"),
        ("maximum=0", "maximum must be a multiple of the minimum 1, not 0"),
        ("minimum=4k,maximum=2k", "maximum must be a multiple of the minimum 4096, not 2048"),
        ("minimum=4k,maximum=5k", "maximum must be a multiple of the minimum 4096, not 5120"),
    ],
)
async def test_limits_that_make_no_sense(options: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        async with open_stack(f"blocksize,{options}::null:1M"):
            pass


async def test_a_maximum_that_is_no_multiple_of_the_block() -> None:
    below = Slow()
    below.info = replace(below.info, block=BlockSize(512, 512, 1000))
    await stacked(below).pwrite(memoryview(b"x" * 2048), 0)
    assert [call[1:3] for call in below.calls] == [(0, 512), (512, 512), (1024, 512), (1536, 512)]


class Prompt(Slow):
    """Does batches at once."""

    batches = True

    def write_now(self, data: memoryview, length: int, offsets: Sequence[int]) -> int:
        for at, offset in enumerate(offsets):
            self.data[offset : offset + length] = data[at * length : (at + 1) * length]
        return len(offsets)


async def test_a_batch_is_of_whole_blocks_that_nobody_holds() -> None:
    source = Prompt()
    device = stacked(source)
    assert device.batches
    two = memoryview(b"x" * 2 * BLOCK)
    assert device.write_now(two, BLOCK, [0, 4 * BLOCK]) == 2
    assert device.write_now(two[:BLOCK], BLOCK // 2, [0, BLOCK // 2]) == 0
    assert device.write_now(two, BLOCK, [0, BLOCK + 1]) == 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.pwrite, memoryview(b"y"), 5)
        await trio.testing.wait_all_tasks_blocked()
        assert device.write_now(two, BLOCK, [0, 4 * BLOCK]) == 0  # the other has read the block, and will write it
    assert bytes(source.data[:6]) == b"xxxxxy"
