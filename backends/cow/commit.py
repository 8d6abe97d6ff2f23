"""Write an overlay back into what it lies over.

It can be killed at any time and begun again: the overlay keeps every block until the base holds all of them durably.
"""

from __future__ import annotations

from collections.abc import Callable

from nbdfs.backends.cow.overlay import Base, Overlay
from nbdfs.checked import Checked
from nbdfs.ranges import pieces

_STEP = 1 << 20  # bytes of one request


def committed_bytes(overlay: Overlay) -> int:
    """How many bytes a commit has to write."""
    return sum(
        min(last * overlay.block, overlay.header.size) - first * overlay.block for first, last in overlay.present
    )


async def commit(overlay: Overlay, base: Checked, was: Base, advance: Callable[[int], None]) -> None:
    """Write all blocks to `base`, flush it, then empty the overlay.

    `was` describes the base as it is now; `advance` is called with the bytes done.
    """
    overlay.begin_commit(was)
    buffer = memoryview(bytearray(_STEP))
    for first, last in list(overlay.present):
        start = first * overlay.block
        end = min(last * overlay.block, overlay.header.size)
        for at, stop, data in overlay.content.data_runs(start, end - start):
            if not data:
                await base.zero(at, stop - at)
                advance(stop - at)
                continue
            for offset, length in pieces(at, stop - at, _STEP):
                await overlay.content.read_into(buffer[:length], offset)
                await base.pwrite(buffer[:length], offset)
                advance(length)
    await base.flush()
    overlay.clear()
