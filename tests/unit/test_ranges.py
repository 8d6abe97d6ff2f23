"""Range arithmetic, against sets of integers."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from nbdfs.ranges import RangeSet, align_down, align_up, normalise, pieces
from nbdfs.source import Extent

TOP = 40
small = st.integers(0, TOP)
changes = st.lists(st.tuples(st.booleans(), small, small))


def built(changes: list[tuple[bool, int, int]]) -> tuple[RangeSet, set[int]]:
    """A RangeSet and the set that it must equal."""
    ranges, model = RangeSet(), set[int]()
    for adding, start, end in changes:
        if adding:
            ranges.add(start, end)
            model |= set(range(start, end))
        else:
            ranges.remove(start, end)
            model -= set(range(start, end))
    return ranges, model


@given(changes)
def test_range_set_is_a_set(changes: list[tuple[bool, int, int]]) -> None:
    ranges, model = built(changes)
    assert {index for start, end in ranges for index in range(start, end)} == model
    assert ranges.total == len(model)
    parts = list(ranges)
    assert len(ranges) == len(parts)
    assert all(start < end for start, end in parts)
    assert all(one[1] < other[0] for one, other in itertools.pairwise(parts)), "neighbours are joined"
    assert list(RangeSet(parts)) == parts


@given(changes, small, small)
def test_covers(changes: list[tuple[bool, int, int]], start: int, end: int) -> None:
    ranges, model = built(changes)
    assert ranges.covers(start, end) == (set(range(start, end)) <= model)


@given(changes, small, small)
def test_runs_tile_the_range(changes: list[tuple[bool, int, int]], start: int, end: int) -> None:
    ranges, model = built(changes)
    at, last = start, None
    for first, stop, inside in ranges.runs(start, end):
        assert first == at < stop
        assert inside != last
        assert all((index in model) == inside for index in range(first, stop))
        at, last = stop, inside
    assert at == max(start, end) or (start >= end and at == start)


@given(st.integers(0, 1 << 70), st.integers(0, 64))
def test_alignment(offset: int, bits: int) -> None:
    step = 1 << bits
    assert align_down(offset, step) % step == align_up(offset, step) % step == 0
    assert offset - step < align_down(offset, step) <= offset <= align_up(offset, step) < offset + step


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(1, 300))
def test_pieces_tile_the_range_at_multiples(offset: int, length: int, step: int) -> None:
    at = offset
    for first, size in pieces(offset, length, step):
        assert first == at
        assert size > 0
        assert first // step == (first + size - 1) // step
        at += size
    assert at == offset + length


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 3))), small, small)
def test_normalise_clips_and_joins(runs: list[tuple[int, int]], offset: int, length: int) -> None:
    extents, at = [], 0
    for size, flags in runs:
        extents.append(Extent(at, size, flags))
        at += size
    flags_of = {
        index: extent.flags for extent in extents for index in range(extent.offset, extent.offset + extent.length)
    }
    result = normalise(extents, offset, length)
    assert {
        index: extent.flags for extent in result for index in range(extent.offset, extent.offset + extent.length)
    } == {index: flags for index, flags in flags_of.items() if offset <= index < offset + length}
    assert all(one.flags != other.flags for one, other in itertools.pairwise(result))
