"""How much of a source to ask the extents of at once."""

from __future__ import annotations

from collections.abc import Sequence

from nbdfs.source import Extent

_LARGEST = 1 << 50  # bytes
_FEW = 256  # extents in an answer that is short


class Stride:
    """`length` bytes, `least` at first: more while answers are short, so that a huge sparse device takes few."""

    def __init__(self, least: int) -> None:
        self.length = self._least = least

    def heard(self, found: Sequence[Extent], end: int) -> None:
        """Learn from the answer to a request that reached up to `end`."""
        if len(found) > _FEW:
            self.length = max(self.length // 2, self._least)
        elif found[-1].offset + found[-1].length == end:
            self.length = min(self.length * 2, _LARGEST)
