"""Handing pieces from one of a reader's two torrents to the other: what came from seeds to the circle, and back.

The torrent's own place needs what came from readers, to pass it on to peers that are none and for resume data.  Both
torrents write to the same files, so a piece is read from there, and libtorrent writes the same bytes once more.

Invariants: one piece at a time is in memory, and it is claimed meanwhile, so never dropped; a piece is owed until the
torrent tells that it has it, since libtorrent takes none while it looks at its files.
"""

from __future__ import annotations

import logging
from typing import Any

import trio

from nbdfs.backends.torrent.circle import Circle
from nbdfs.backends.torrent.layout import Layout
from nbdfs.backends.torrent.membership import Membership
from nbdfs.backends.torrent.pieces import Pieces
from nbdfs.errors import reason

log = logging.getLogger(__name__)

_POLLS = 50  # at the end,
_POLL = 0.01  # seconds apart
_AGAIN = 2  # ticks until a piece that was handed over but not taken is handed over again
_OVERWRITE_NOTHING = 0


class Handover:
    """Pieces of two torrents, each of which is to have what the other gets."""

    def __init__(self, main: Membership, circle: Circle, pieces: Pieces, layout: Layout, info: Any) -> None:
        self._places: tuple[Membership | Circle, ...] = (main, circle)
        self._owed: tuple[dict[int, int], ...] = ({}, {})  # pieces, and ticks until they are handed over; 0 is now
        self._pieces = pieces
        self._layout = layout
        self._info = info
        self._v1 = bool(main.metainfo.v1)
        self._cache = main.cache
        self._work = trio.Event()

    def finished(self, piece: int, in_circle: bool) -> None:
        """One of the torrents has the piece."""
        self._owed[in_circle].pop(piece, None)
        if not self._pieces.here[piece] and self._places[not in_circle].handle:
            self._owed[not in_circle][piece] = 0
            self._work.set()

    def tick(self) -> None:
        """A second has passed."""
        for owed in self._owed:
            for piece, ticks in owed.items():
                owed[piece] = max(ticks - 1, 0)
            if 0 in owed.values():
                self._work.set()

    async def finish(self) -> None:
        """Wait until nothing is owed, half a second at most: what is then is fetched again by the next run."""
        for _ in range(_POLLS):
            if not any(self._owed):
                return
            await trio.sleep(_POLL)

    def clear(self) -> None:
        """The torrents join anew, with all that is here."""
        for owed in self._owed:
            owed.clear()

    async def run(self) -> None:
        """Hand over what is owed, until cancelled."""
        while True:
            await self._work.wait()
            self._work = trio.Event()
            for place, owed in zip(self._places, self._owed, strict=True):
                for piece in [piece for piece, ticks in owed.items() if not ticks]:
                    if piece in owed and self._pieces.here[piece]:
                        owed[piece] = _AGAIN
                        await self._hand(piece, place, owed)

    async def _hand(self, piece: int, place: Membership | Circle, owed: dict[int, int]) -> None:
        with self._pieces.claimed(range(piece, piece + 1)):
            content = await trio.to_thread.run_sync(self._needed, piece, place.handle) if place.handle else b""
            if not content:
                owed.pop(piece, None)
            elif handle := place.handle:
                # In the thread that takes torrents out of the session: one that is out when libtorrent comes to
                # this call has no storage, and libtorrent does not look.
                handle.add_piece(piece, content, _OVERWRITE_NOTHING)

    def _needed(self, piece: int, handle: Any) -> bytes:
        """The content, if that torrent has it not; in a thread."""
        try:
            return b"" if handle.have_piece(piece) else self._content(piece)
        except (OSError, RuntimeError) as error:  # a file that cannot be read, a torrent that has just left
            log.info("torrent: piece %d is not handed over: %s", piece, reason(error))
            return b""

    def _content(self, piece: int) -> bytes:
        parts = list(self._layout.parts(piece))
        # In v2 alone a piece ends where its file does; v1 counts the padding behind it.
        size = self._info.piece_size(piece) if self._v1 else max(part.at + part.length for part in parts)
        content = bytearray(size)
        for part in parts:
            self._cache.read(part.file, memoryview(content)[part.at : part.at + part.length], part.offset)
        return bytes(content)
