"""The map of a source: its extents in one or several contexts, their totals, and what the flags mean."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import NamedTuple

from nbdfs.checked import Checked
from nbdfs.errors import UserError
from nbdfs.source import ALLOCATION, RESIDENT, ZERO, Extent
from nbdfs.stride import Stride

_WINDOW = 1 << 40  # bytes whose extents are asked for at once, at first; a source answers for less where there are many

_NAMES: Mapping[str, Mapping[int, str]] = {
    ALLOCATION: {0: "data", 1: "hole", 2: "zero", 3: "hole,zero"},
    RESIDENT: {0: "resident", 1: "absent"},
    "qemu:dirty-bitmap": {0: "clean", 1: "dirty"},
    "qemu:allocation-depth": {0: "absent", 1: "local"},
}


class Row(NamedTuple):
    """A range in which no context changes: its flags in each of them, in the order they were asked for."""

    offset: int
    length: int
    flags: tuple[int, ...]


def describe(context: str, flags: int) -> str:
    """What the flags mean in a context; the empty string where nobody knows."""
    family = context if context in _NAMES else context.rpartition(":")[0]  # qemu:dirty-bitmap:NAME
    if context == "qemu:allocation-depth" and flags > 1:
        return f"backing depth {flags}"
    return _NAMES.get(family, {}).get(flags, "")


def is_set(context: str, flags: int) -> bool:
    """Whether a picture shows the extent as full: data, here, or marked."""
    if context == ALLOCATION:
        return not flags & ZERO
    return (flags == 0) == (context == RESIDENT)


async def rows(source: Checked, contexts: Sequence[str], offset: int, length: int) -> AsyncIterator[Row]:
    """Several contexts side by side.  Raises UserError for a context that the source does not have."""
    for context in contexts:
        if context not in source.info.contexts:
            there = ", ".join(source.info.contexts) or "none"
            raise UserError(f"the source has no map '{context}'; it has: {there}")
    walks = [_Walk(source, context, offset, length) for context in contexts]
    at, end = offset, offset + length
    while at < end:
        current = [await walk.extent(at) for walk in walks]
        stop = min(extent.offset + extent.length for extent in current)
        yield Row(at, stop - at, tuple(extent.flags for extent in current))
        at = stop


class _Walk:
    """The extents of a range in one context, in order, neighbours with equal flags joined."""

    def __init__(self, source: Checked, context: str, offset: int, length: int) -> None:
        self._source = source
        self._context = context
        self._at = offset  # what lies before was fetched
        self._end = offset + length
        self._stride = Stride(_WINDOW)
        self._fetched: deque[Extent] = deque()
        self._current = Extent(offset, 0, 0)

    async def extent(self, at: int) -> Extent:
        """The one that holds `at`, which never goes back."""
        while self._current.offset + self._current.length <= at:
            self._current = await self._joined()
        return self._current

    async def _joined(self) -> Extent:
        joined = await self._next()
        while (following := await self._peek()) is not None and following.flags == joined.flags:
            await self._next()
            joined = Extent(joined.offset, joined.length + following.length, joined.flags)
        return joined

    async def _peek(self) -> Extent | None:
        if not self._fetched and self._at < self._end:
            length = min(self._stride.length, self._end - self._at)
            found = await self._source.extents(self._at, length, context=self._context)
            self._stride.heard(found, self._at + length)
            self._fetched.extend(found)
            self._at = found[-1].offset + found[-1].length
        return self._fetched[0] if self._fetched else None

    async def _next(self) -> Extent:
        await self._peek()
        return self._fetched.popleft()


async def totals(source: Checked, context: str, offset: int, length: int) -> dict[int, int]:
    """Bytes for each value of the flags, in order of the values."""
    found: dict[int, int] = {}
    async for row in rows(source, [context], offset, length):
        found[row.flags[0]] = found.get(row.flags[0], 0) + row.length
    return dict(sorted(found.items()))
