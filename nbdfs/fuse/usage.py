"""How many bytes of a source are allocated, for st_blocks.

Where the source is a plain file its own count is taken.  Else the extents are added up in the
background for a bounded time, and what has not been looked at counts as allocated.  Asking for the
figure never waits.
"""

from __future__ import annotations

import logging
import os
import time

import trio

from nbdfs.barrier import Barrier
from nbdfs.export import Export
from nbdfs.source import HOLE, Caps

log = logging.getLogger(__name__)

_SECONDS = 0.2  # how long one count may take
_EVERY = 1.0  # seconds between counts while the content changes
_STEP = 1 << 40  # bytes asked about at once


class Usage:
    """The allocated size of one export."""

    def __init__(self, export: Export) -> None:
        self._export = export
        self._source = export.source
        self._allocated = self._source.info.size
        self._countable = Caps.EXTENTS in self._source.info.caps and not self._source.backing()
        self._stale = self._countable
        self._counting = False
        self._counted = -_EVERY

    def changed(self) -> None:
        """The content changed, so the last count may be wrong."""
        self._stale = self._countable

    def _failed(self, number: int) -> None:
        self._stale = True  # the next count may do better; until then the rest counts as allocated

    def allocated(self) -> int:
        """Allocated bytes as last known."""
        backing = self._source.backing()
        if backing:
            return min(os.fstat(backing.fd).st_blocks * 512, self._source.info.size)
        return self._allocated

    def due(self) -> bool:
        """Whether `count` should run."""
        return self._stale and not self._counting and time.monotonic() - self._counted > _EVERY

    async def count(self) -> None:
        """Add up the extents anew."""
        if not self._countable:
            return
        self._counting = True
        size = self._source.info.size
        holes = offset = 0
        self._stale = False
        try:
            with (
                self._export.held(),
                Barrier(f"counting what is allocated of {self._source.info.description}", self._failed),
                trio.move_on_after(_SECONDS),
            ):
                while offset < size:
                    for extent in await self._source.extents(offset, min(size - offset, _STEP)):
                        holes += extent.length if extent.flags & HOLE else 0
                        offset = extent.offset + extent.length
                    await trio.lowlevel.checkpoint()
        finally:
            self._counting = False
            self._counted = time.monotonic()
            self._allocated = size - holes
