"""The hex dump: its layout, what it leaves out, and that extents change nothing."""

from __future__ import annotations

import re

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from nbdfs.checked import Checked
from nbdfs.dump import Dumper, dump
from nbdfs.source import ALLOCATION, HOLE, ZERO, Caps, Extent, Source, SourceInfo


class Chunks(Source):
    """Data given as (bytes, whether it is reported as a hole)."""

    def __init__(self, chunks: list[tuple[bytes, bool]], told: bool) -> None:
        self.data = b"".join(data for data, _ in chunks)
        self.chunks = chunks
        self.info = SourceInfo(len(self.data), Caps.EXTENTS if told else Caps.NONE)

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        buffer[:] = self.data[offset : offset + len(buffer)]

    async def extents(self, offset: int, length: int, *, context: str = ALLOCATION, one: bool = False) -> list[Extent]:
        result, at = [], 0
        for data, hole in self.chunks:
            start = max(at, offset)
            at += len(data)
            if start < at:
                result.append(Extent(start, at - start, HOLE | ZERO if hole else 0))
        return result


def dumped(chunks: list[tuple[bytes, bool]], told: bool = True) -> str:
    source = Checked(Chunks(chunks, told))
    lines: list[str] = []
    trio.run(dump, source, 0, source.info.size, Dumper(lines.append))
    return "".join(lines)


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"hello", ["0000000000: 68 65 6c 6c 6f                                   |hello           |"]),
        (bytes(16), ["0000000000: 00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00 |................|"]),
    ],
)
def test_the_layout_of_a_row(data: bytes, lines: list[str]) -> None:
    assert dumped([(data, False)]).splitlines() == lines


ROWS = {"A": b"A" * 16, "B": b"B" * 16, "0": bytes(16)}


@pytest.mark.parametrize(
    ("rows", "shown"),
    [("AA", "AA"), ("AAA", "A*A"), ("AAAA", "A*A"), ("AB", "AB"), ("AAB", "A*B"), ("AABB", "A*BB"), ("0000A", "0*A"),
     ("A0000", "A0*0")],
)  # fmt: skip
def test_repeated_rows_are_left_out_but_the_last_is_shown(rows: str, shown: str) -> None:
    lines = dumped([(b"".join(ROWS[row] for row in rows), False)]).splitlines()
    names = {"41": "A", "42": "B", "00": "0"}
    assert "".join("*" if line == "*" else names[line[12:14]] for line in lines) == shown


@given(st.lists(st.one_of(st.tuples(st.binary(min_size=1, max_size=40), st.just(False)),
                          st.tuples(st.integers(1, 100).map(bytes), st.booleans())), max_size=8))  # fmt: skip
def test_what_is_told_to_be_a_hole_looks_like_zeroes_that_were_read(chunks: list[tuple[bytes, bool]]) -> None:
    assert dumped(chunks, told=True) == dumped(chunks, told=False)


def test_colours_are_the_only_difference() -> None:
    lines: list[str] = []
    source = Checked(Chunks([(bytes(range(64)), False)], True))
    trio.run(dump, source, 0, 64, Dumper(lines.append, colour=True))
    text = "".join(lines)
    assert "\033[1;34m30\033[0m" in text
    assert re.sub("\033\\[[0-9;]*m", "", text) == dumped([(bytes(range(64)), False)])
