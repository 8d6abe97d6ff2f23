"""The planner against a model: it covers all, in order, reads all data and zeroes only what is not zero already."""

from __future__ import annotations

import errno

import trio
from hypothesis import given
from hypothesis import strategies as st

from nbdfs.checked import Checked
from nbdfs.copying.plan import ZERO_STEP, Kind, Piece, Planner
from nbdfs.errors import SourceError
from nbdfs.ranges import RangeSet
from nbdfs.source import ALLOCATION, HOLE, ZERO, Caps, Extent, Source, SourceInfo

SECTOR = 64 << 10  # the grain of the model, so that short holes and long ones both occur


class Mapped(Source):
    """A source that is nothing but a map: `flags` for each sector, told `at_once` extents in one answer."""

    def __init__(self, flags: list[int], at_once: int = 1000, fails: bool = False) -> None:
        self.flags = flags
        self.at_once = at_once
        self.fails = fails
        self.info = SourceInfo(len(flags) * SECTOR, Caps.EXTENTS | Caps.WRITE | Caps.ZERO)

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        raise NotImplementedError

    async def extents(self, offset: int, length: int, *, context: str = ALLOCATION, one: bool = False) -> list[Extent]:
        if self.fails:
            raise SourceError(errno.EIO)
        first, last = offset // SECTOR, min((offset + length - 1) // SECTOR + 1, offset // SECTOR + self.at_once)
        result = [Extent(number * SECTOR, SECTOR, self.flags[number]) for number in range(first, last)]
        cut = offset - first * SECTOR
        return [Extent(offset, SECTOR - cut, result[0].flags), *result[1:]]


async def plan_all(planner: Planner) -> list[Piece]:
    found = []
    while window := await planner.window():
        found.extend(window)
    return found


maps = st.lists(st.sampled_from([0, 0, HOLE, ZERO, HOLE | ZERO, HOLE | ZERO]), min_size=12, max_size=12)


@given(maps, maps, st.integers(1, 12), st.sampled_from([1, 4096, 2 * SECTOR]), st.booleans(), st.booleans(),
       st.lists(st.tuples(st.integers(0, 11), st.integers(1, 4)), max_size=2))  # fmt: skip
def test_a_plan_is_complete_and_safe(
    source: list[int],
    destination: list[int],
    at_once: int,
    align: int,
    short_holes: bool,
    allocated: bool,
    done: list[tuple[int, int]],
) -> None:
    finished = RangeSet((start * SECTOR, min(start + length, 12) * SECTOR) for start, length in done)
    planner = Planner(
        Checked(Mapped(source, at_once)), Checked(Mapped(destination, at_once)), step=4 * SECTOR, align=align,
        short_holes=short_holes, allocated=allocated, done=finished,
    )  # fmt: skip
    pieces = trio.run(plan_all, planner)
    assert [piece.offset for piece in pieces] == [0, *(piece.offset + piece.length for piece in pieces[:-1])]
    assert pieces[-1].offset + pieces[-1].length == 12 * SECTOR
    for piece in pieces:
        assert piece.kind is not Kind.DATA or piece.length <= 4 * SECTOR
        for number in range(piece.offset // SECTOR, (piece.offset + piece.length) // SECTOR):
            right_already = destination[number] & ZERO and not (allocated and destination[number] & HOLE)
            is_done = finished.covers(number * SECTOR, (number + 1) * SECTOR)
            if piece.kind is Kind.SKIP:
                assert is_done or (source[number] & ZERO and right_already)
            elif piece.kind is Kind.ZERO:
                assert source[number] & ZERO and not right_already
            if not short_holes and align < SECTOR and source[number] & ZERO and not is_done:
                assert piece.kind is not Kind.DATA


def test_extents_that_cannot_be_read_make_all_of_it_data() -> None:
    planner = Planner(Checked(Mapped([HOLE | ZERO] * 4, fails=True)), None, step=SECTOR)
    assert {piece.kind for piece in trio.run(plan_all, planner)} == {Kind.DATA}


def test_what_the_destination_does_not_tell_is_zeroed() -> None:
    planner = Planner(Checked(Mapped([ZERO] * 4)), Checked(Mapped([ZERO] * 4, fails=True)), step=SECTOR)
    assert trio.run(plan_all, planner) == [Piece(0, 4 * SECTOR, Kind.ZERO)]


def test_a_blank_destination_is_not_zeroed() -> None:
    planner = Planner(Checked(Mapped([ZERO] * 4)), Checked(Mapped([0] * 4)), step=SECTOR, blank=True)
    assert trio.run(plan_all, planner) == [Piece(0, 4 * SECTOR, Kind.SKIP)]


def test_long_zeroes_are_cut() -> None:
    sectors = ZERO_STEP // SECTOR
    planner = Planner(Checked(Mapped([ZERO] * (sectors + 1), at_once=1 << 20)), None, step=SECTOR)
    assert trio.run(plan_all, planner) == [Piece(0, ZERO_STEP, Kind.ZERO), Piece(ZERO_STEP, SECTOR, Kind.ZERO)]


def test_without_extents_holes_are_read() -> None:
    planner = Planner(Checked(Mapped([ZERO] * 2)), None, step=SECTOR, extents=False)
    assert [piece.kind for piece in trio.run(plan_all, planner)] == [Kind.DATA] * 2
