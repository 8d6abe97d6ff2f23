"""The record of the pages that are there never names one that is not."""

from __future__ import annotations

import mmap

from hypothesis import given
from hypothesis import strategies as st

from nbdfs.backends.memory.present import Present
from nbdfs.source import HOLE
from nbdfs.stack import open_stack

PAGE = mmap.PAGESIZE
PAGES = 3 * PAGE  # of the disk, so that a range can hold whole pages of the record

_ranges = st.tuples(st.integers(0, PAGES * PAGE - 1), st.integers(1, PAGES * PAGE)).map(
    lambda pair: (pair[0], min(pair[1], PAGES * PAGE - pair[0]))
)
_near = st.tuples(st.integers(0, 40 * PAGE), st.integers(1, 20 * PAGE))


def _pages(offset: int, length: int) -> set[int]:
    return set(range(offset // PAGE, (offset + length - 1) // PAGE + 1))


@given(st.lists(st.tuples(st.booleans(), _ranges | _near), max_size=12), st.lists(_ranges | _near, max_size=12))
def test_it_is_the_set_of_pages_added_and_not_discarded(
    steps: list[tuple[bool, tuple[int, int]]], questions: list[tuple[int, int]]
) -> None:
    record, model = Present(PAGES * PAGE), set[int]()
    for add, place in steps:
        if add:
            record.add(*place)
            model |= _pages(*place)
        else:
            record.discard(*place)
            model -= _pages(*place)
    for place in questions:
        assert record.covers(*place) == (_pages(*place) <= model)
    record.close()


@given(st.lists(st.tuples(st.sampled_from(["write", "trim", "zero"]), _near), max_size=16))
async def test_a_view_never_shows_a_hole(steps: list[tuple[str, tuple[int, int]]]) -> None:
    async with open_stack("memory:1M") as door:
        for operation, (offset, length) in steps:
            if operation == "write":
                await door.pwrite(memoryview(bytes([7]) * length), offset)
            else:
                await getattr(door, operation)(offset, length)
        for page in range(60):
            (extent,) = await door.extents(page * PAGE, PAGE, one=True)
            shown = door.view(page * PAGE, PAGE) is not None
            assert not (shown and extent.flags & HOLE)
