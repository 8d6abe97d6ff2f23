"""Maps joined, cut and set side by side; the pictures of them."""

from __future__ import annotations

import struct
import zlib
from itertools import pairwise

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from nbdfs.backends.null import Null
from nbdfs.checked import Checked
from nbdfs.dump import Dumper, dump
from nbdfs.errors import UserError
from nbdfs.info import chart, maps
from nbdfs.source import ALLOCATION, HOLE, RESIDENT, ZERO, Caps, Extent, Source, SourceInfo

DIRTY = "qemu:dirty-bitmap:b0"


class Mapped(Source):
    """One byte of flags for each byte of the device and context, told `at_once` bytes in one answer."""

    def __init__(self, flags: dict[str, bytes], at_once: int = 1 << 20) -> None:
        self.flags = flags
        self.at_once = at_once
        size = len(next(iter(flags.values())))
        self.info = SourceInfo(size, Caps.EXTENTS, contexts=tuple(flags))

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        raise NotImplementedError

    async def extents(self, offset: int, length: int, *, context: str = ALLOCATION, one: bool = False) -> list[Extent]:
        flags = self.flags[context]
        return [Extent(at, 1, flags[at]) for at in range(offset, offset + min(length, self.at_once))]


def rows_of(source: Mapped, contexts: list[str], offset: int = 0, length: int | None = None) -> list[maps.Row]:
    async def collect() -> list[maps.Row]:
        checked = Checked(source)
        size = source.info.size - offset if length is None else length
        return [row async for row in maps.rows(checked, contexts, offset, size)]

    return trio.run(collect)


flags = st.binary(min_size=1, max_size=60).map(lambda data: bytes(value & 3 for value in data))


@given(flags, st.integers(1, 7), st.data())
def test_rows_cover_the_range_and_join_what_is_equal(data: bytes, at_once: int, draw: st.DataObject) -> None:
    offset = draw.draw(st.integers(0, len(data) - 1))
    rows = rows_of(Mapped({ALLOCATION: data}, at_once), [ALLOCATION], offset)
    assert b"".join(bytes(row.flags) * row.length for row in rows) == data[offset:]
    assert [row.offset for row in rows] == [offset, *(row.offset + row.length for row in rows[:-1])]
    assert all(left.flags != right.flags for left, right in pairwise(rows))


class Vast(Null):
    """Counts how often it is asked for extents."""

    asked = 0

    async def extents(self, offset: int, length: int, *, context: str = ALLOCATION, one: bool = False) -> list[Extent]:
        self.asked += 1
        return await super().extents(offset, length, context=context, one=one)


async def test_an_exabyte_of_hole_takes_few_requests() -> None:
    source = Vast(7 << 60)
    assert await maps.totals(Checked(source), ALLOCATION, 0, 7 << 60) == {HOLE | ZERO: 7 << 60}
    assert source.asked < 10_000
    source.asked = 0
    lines: list[str] = []
    await dump(Checked(source), 0, 7 << 60, Dumper(lines.append))
    assert len(lines) == 3
    assert source.asked < 10_000


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1)), min_size=1, max_size=60), st.integers(1, 7))
def test_two_contexts_go_in_step(pairs: list[tuple[int, int]], at_once: int) -> None:
    source = Mapped({ALLOCATION: bytes(one for one, _ in pairs), DIRTY: bytes(two for _, two in pairs)}, at_once)
    rows = rows_of(source, [ALLOCATION, DIRTY])
    assert [row.flags for row in rows for _ in range(row.length)] == pairs


def test_an_empty_range_has_no_rows() -> None:
    assert rows_of(Mapped({ALLOCATION: b"\0"}), [ALLOCATION], 0, 0) == []


def test_an_unknown_context_is_named_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"'x'.*base:allocation"):
        rows_of(Mapped({ALLOCATION: b"\0"}), ["x"])


@pytest.mark.parametrize(
    ("context", "value", "text"),
    [(ALLOCATION, 0, "data"), (ALLOCATION, 3, "hole,zero"), (ALLOCATION, 9, ""), (RESIDENT, 1, "absent"),
     (DIRTY, 1, "dirty"), ("qemu:allocation-depth", 1, "local"), ("qemu:allocation-depth", 4, "backing depth 4"),
     ("x:y", 0, "")],
)  # fmt: skip
def test_flags_in_words(context: str, value: int, text: str) -> None:
    assert maps.describe(context, value) == text


def test_totals() -> None:
    async def sums() -> dict[int, int]:
        return await maps.totals(Checked(Mapped({ALLOCATION: bytes([3, 3, 0, 3])})), ALLOCATION, 0, 4)

    assert trio.run(sums) == {0: 1, 3: 3}


def cells_of(data: bytes, count: int) -> chart.Cells:
    cells = chart.Cells(0, len(data), count)
    for row in rows_of(Mapped({ALLOCATION: data}), [ALLOCATION]):
        if maps.is_set(ALLOCATION, row.flags[0]):
            cells.add(cells.full, row.offset, row.length)
        elif row.flags[0] == 2:
            cells.add(cells.zero, row.offset, row.length)
    return cells


@given(flags, st.integers(1, 80))
def test_cells_hold_the_share_of_what_is_full(data: bytes, count: int) -> None:
    cells = cells_of(data, count)
    assert cells.count == min(count, len(data))
    assert sum(cells.full) * len(data) / cells.count == pytest.approx(sum(not value & 2 for value in data))
    assert all(-1e-9 < share < 1 + 1e-9 for share in cells.full)


def test_the_chart_of_a_known_map() -> None:
    cells = cells_of(bytes([0, 0, 0, 0, 0, 3, 3, 3, 0, 0, 3, 3, 2, 2, 3, 3]), 4)
    assert list(chart.text(cells, 80, colour=False, fancy=True)) == [
        "█░▒·", "█ full  ○ zero  · hole  one cell is 4",
    ]  # fmt: skip
    assert next(chart.text(cells, 80, colour=False, fancy=False)) == "#-+."
    assert next(chart.text(cells, 80, colour=True, fancy=True)) == "\033[32m█░▒\033[90m·\033[0m"
    assert len(list(chart.text(cells, 3, colour=False, fancy=True))) == 3


def test_the_png_is_one_that_a_decoder_reads() -> None:
    picture = chart.png(cells_of(bytes([0] * 4 + [3] * 4 + [2] * 4), 12), 5)
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(picture):
        length, kind = struct.unpack_from(">I4s", picture, at)
        body = picture[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", picture, at + 8 + length)[0] == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + length
    assert struct.unpack(">IIBBBBB", chunks[b"IHDR"]) == (5, 3, 8, 2, 0, 0, 0)
    image = zlib.decompress(chunks[b"IDAT"])
    assert len(image) == 3 * (1 + 5 * 3)
    pixels = [image[row * 16 + 1 + at : row * 16 + 4 + at] for row in range(3) for at in range(0, 15, 3)]
    assert len({bytes(pixel) for pixel in pixels[:4]}) == 1
    assert len({bytes(pixels[at]) for at in (0, 4, 8, 12)}) == 4
