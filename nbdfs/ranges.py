"""Arithmetic on byte ranges, all half-open: alignment, splitting, sets of ranges."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator

from nbdfs.source import Extent


def align_down(offset: int, step: int) -> int:
    """The largest multiple of `step` (a power of two) that is not above `offset`."""
    return offset & -step


def align_up(offset: int, step: int) -> int:
    """The smallest multiple of `step` (a power of two) that is not below `offset`."""
    return (offset + step - 1) & -step


def pieces(offset: int, length: int, step: int) -> Iterator[tuple[int, int]]:
    """Cut a range at the multiples of `step` (any positive number): (offset, length) of each piece."""
    end = offset + length
    while offset < end:
        size = min(step - offset % step, end - offset)
        yield offset, size
        offset += size


def normalise(extents: Iterable[tuple[int, int, int]], offset: int, length: int) -> list[Extent]:
    """Clip ascending (offset, length, flags) to a range and join neighbours with equal flags."""
    end = offset + length
    result: list[Extent] = []
    start = stop = offset
    present = -1  # the flags of the run from start to stop
    for first, size, flags in extents:
        last = first + size
        if first < offset:
            first = offset
        if last > end:
            last = end
        if first >= last:
            continue
        if flags != present:
            if start < stop:
                result.append(Extent(start, stop - start, present))
            start, present = first, flags
        stop = last
    if start < stop:
        result.append(Extent(start, stop - start, present))
    return result


class RangeSet:
    """A set of integers kept as disjoint, non-touching ranges [start, end), in order.

    Operations cost the logarithm of the number of ranges, plus the ranges they join or cut.
    """

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in ranges:
            self.add(start, end)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._starts, self._ends, strict=True))

    def __len__(self) -> int:
        """The number of ranges."""
        return len(self._starts)

    def __repr__(self) -> str:
        return f"RangeSet({list(self)})"

    @property
    def total(self) -> int:
        """How many integers are in the set."""
        return sum(self._ends) - sum(self._starts)

    def add(self, start: int, end: int) -> None:
        """Put [start, end) in."""
        if start >= end:
            return
        first = bisect.bisect_left(self._ends, start)  # touching ranges are joined
        last = bisect.bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def update(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Add each [start, end)."""
        for start, end in ranges:
            self.add(start, end)

    def remove(self, start: int, end: int) -> None:
        """Take [start, end) out."""
        if start >= end:
            return
        first = bisect.bisect_right(self._ends, start)
        last = bisect.bisect_left(self._starts, end)
        if first >= last:
            return
        starts, ends = [], []
        if self._starts[first] < start:
            starts.append(self._starts[first])
            ends.append(start)
        if self._ends[last - 1] > end:
            starts.append(end)
            ends.append(self._ends[last - 1])
        self._starts[first:last] = starts
        self._ends[first:last] = ends

    def covers(self, start: int, end: int) -> bool:
        """Whether all of [start, end) is in the set."""
        if start >= end:
            return True
        index = bisect.bisect_right(self._starts, start) - 1
        return index >= 0 and self._ends[index] >= end

    def runs(self, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """Cut [start, end) into runs (start, end, whether in the set), in order and without gaps."""
        index = bisect.bisect_right(self._ends, start)
        while start < end:
            if index == len(self._starts) or self._starts[index] >= end:
                yield start, end, False
                return
            if self._starts[index] > start:
                yield start, self._starts[index], False
                start = self._starts[index]
            stop = min(self._ends[index], end)
            yield start, stop, True
            start = stop
            index += 1
