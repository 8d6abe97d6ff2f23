"""How dirty blocks get below.

Invariants: write-backs are one after the other, so an older content never arrives below after a newer one; a block's
dirty mark goes before its content is read, and comes back if writing it fails: a write that comes in between marks it
again.
"""

from __future__ import annotations

import trio

from nbdfs.backends.cache.blocks import Blocks, joined
from nbdfs.ranges import pieces
from nbdfs.source import Source
from nbdfs.undo import unless_done

_AT_ONCE = 1 << 20  # bytes
_WRITERS = 8  # under way at once


class WriteBack:
    """Brings what is dirty of `blocks` to `below`."""

    def __init__(self, below: Source, blocks: Blocks) -> None:
        self._below = below
        self._blocks = blocks
        self._running = trio.Lock()
        self.written = 0  # runs of blocks

    async def run(self, first: int = 0, last: int | None = None) -> None:
        """Write what is dirty in blocks [first, last), by default all, to what is below."""
        async with self._running:
            dirty = self._blocks.dirty
            step = max(_AT_ONCE, self._blocks.block)
            chosen = sorted(dirty if last is None else (block for block in dirty if first <= block < last))
            runs = [
                (at // self._blocks.block, (at + size) // self._blocks.block)
                for start, stop in joined(chosen)
                for at, size in pieces(start * self._blocks.block, (stop - start) * self._blocks.block, step)
            ]
            if not runs:
                return
            await self._write_runs(runs)

    async def _write_runs(self, runs: list[tuple[int, int]]) -> None:
        waiting = iter(runs)
        errors: list[OSError] = []

        async def writer() -> None:
            for start, stop in waiting:
                try:
                    await self._write_run(start, stop)
                except OSError as error:
                    errors.append(error)  # the others are tried all the same

        async with trio.open_nursery() as nursery:
            for _ in range(min(_WRITERS, len(runs))):
                nursery.start_soon(writer)
        if errors:
            raise errors[0]

    async def _write_run(self, first: int, last: int) -> None:
        start, end = self._blocks.bounds(first, last)
        with self._blocks.pinned(first, last):
            self._blocks.dirty.difference_update(range(first, last))
            self._blocks.leaving.update(range(first, last))
            try:
                with unless_done(lambda: self._blocks.dirty.update(range(first, last))):
                    content = memoryview(bytearray(end - start))
                    await self._blocks.storage.scratch.read_into(content, start)
                    await self._below.pwrite(content, start)
                self.written += 1
            finally:
                self._blocks.leaving.difference_update(range(first, last))
