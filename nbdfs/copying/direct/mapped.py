"""What a plan is made from where the source is a file."""

from __future__ import annotations

from nbdfs.fileio import data_runs
from nbdfs.source import HOLE, ZERO, Caps, Extent, SourceInfo


class MappedFile:
    """An open file as the plan sees it."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self.info = SourceInfo(size, Caps.EXTENTS)

    async def extents(self, offset: int, length: int) -> list[Extent]:
        runs = data_runs(self._fd, offset, offset + length)
        return [Extent(start, end - start, 0 if data else HOLE | ZERO) for start, end, data in runs]
