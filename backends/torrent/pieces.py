"""The pieces of a torrent: which are here, who wants which, and who waits.

Strictly on demand: every piece has priority 0 until somebody *claims* it, and again when the last claim goes.  A claim
on a missing piece gives it a deadline with libtorrent, a claim on a piece that is here keeps it from being dropped.
In a crowd (`company`) a claim gives no deadline, and a read insists on one only after a while.

Invariants: `here[p]` is set only after libtorrent has found the piece's hash right and its data is in the file;
`claims` holds positive counts.  While the torrent is out of the session libtorrent is told nothing; `insist` does so
when it is back.
"""

from __future__ import annotations

import errno
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import trio

from nbdfs.backends.torrent.company import Company
from nbdfs.backends.torrent.membership import Membership
from nbdfs.backends.torrent.metainfo import File, Metainfo
from nbdfs.backends.torrent.room import Room
from nbdfs.errors import SourceError

_STEP = 10  # milliseconds between the deadlines of pieces wanted together
_POLITE = 4  # libtorrent's default priority


class _Arrival:
    """That of a piece: `settled` once it is here, or will not come for now because of `trouble`."""

    def __init__(self) -> None:
        self.settled = trio.Event()
        self.trouble = ""


class Pieces:
    """The pieces of a torrent, for those who read them."""

    def __init__(self, membership: Membership, company: Company, room: Room, metainfo: Metainfo, options: Any) -> None:
        self.here = bytearray(metainfo.pieces)
        self.background = bytearray(metainfo.pieces)  # priorities of pieces that nobody claims
        self.claims: Counter[int] = Counter()
        self.waiting: Counter[int] = Counter()
        self.awaited = trio.Event()  # somebody waits
        self._membership = membership
        self._company = company
        self._room = room
        self._metainfo = metainfo
        self._options = options
        self._arrivals: dict[int, _Arrival] = {}  # those waited for
        self._trouble = ""  # the disk's or libtorrent's last error
        company.in_crowd.append(self._be_polite)

    # -- which are here

    @property
    def present(self) -> int:
        """How many pieces are here."""
        return self.here.count(1)

    def of(self, file: File, offset: int, length: int) -> range:
        """The pieces that hold a range of a file."""
        size = self._metainfo.piece_length
        start = file.offset + offset
        return range(start // size, -(-(start + length) // size))

    def missing(self, pieces: range) -> int:
        """How many of the pieces are not here."""
        return self.here.count(0, pieces.start, pieces.stop)

    def here_of(self, file: File) -> int:
        """How many bytes of a file are here."""
        size, pieces = self._metainfo.piece_length, self.of(file, 0, file.length)
        if not pieces:
            return 0
        start, end = file.offset - pieces.start * size, pieces.stop * size - file.offset - file.length
        outside = start * self.here[pieces.start] + end * self.here[pieces.stop - 1]  # of its first and last piece
        return self.here.count(1, pieces.start, pieces.stop) * size - outside

    # -- who wants which

    @contextmanager
    def claimed(self, pieces: range) -> Iterator[None]:
        """Want these pieces at once, and keep them, for the block."""
        self.claim(pieces)
        try:
            yield
        finally:
            self.release(pieces)

    def claim(self, pieces: Iterable[int], after: int = 0) -> None:
        """Want pieces, in this order, the first of them in `after` milliseconds.  Each call needs its `release`."""
        for index, piece in enumerate(pieces):
            self.claims[piece] += 1
            if not self.here[piece]:
                if self._company.crowd or (after and not self._options.sequential):
                    self._want_politely(piece)
                else:
                    self._want(piece, after + index * _STEP)

    def release(self, pieces: Iterable[int]) -> None:
        """Want the pieces no more."""
        for piece in pieces:
            self.claims[piece] -= 1
            if not self.claims[piece]:
                del self.claims[piece]
                if not self.here[piece] and (handle := self._membership.handle):
                    handle.reset_piece_deadline(piece)
                    handle.piece_priority(piece, self.background[piece])
        self._room.check()

    def prefetch(self, pieces: range) -> None:
        """Fetch pieces when there is nothing more urgent."""
        for piece in pieces:
            self.background[piece] = 1
            if not self.claims[piece] and not self.here[piece]:
                self._membership.handle.piece_priority(piece, 1)
        self._company.choose_order()

    def insist(self) -> None:
        """Tell libtorrent of all claims anew."""
        for piece in self.claims:
            if not self.here[piece]:
                self._want(piece, 0)

    def _be_polite(self) -> None:
        for piece in self.claims:
            if not self.here[piece] and not self.waiting[piece]:
                self._want_politely(piece)

    def _want(self, piece: int, after: int) -> None:
        if handle := self._membership.handle:
            handle.set_piece_deadline(piece, after)

    def _want_politely(self, piece: int) -> None:
        if handle := self._membership.handle:
            handle.reset_piece_deadline(piece)
            handle.piece_priority(piece, _POLITE)

    # -- who waits

    async def arrived(self, pieces: range) -> None:
        """Wait until the pieces, which are claimed, are here.  Raises SourceError (EIO) after the timeout."""
        with trio.move_on_after(self._options.timeout) as scope:
            for piece in pieces:
                if not self.here[piece]:
                    await self._arrived(piece)
        if scope.cancelled_caught:
            missing = [piece for piece in pieces if not self.here[piece]]
            raise SourceError(errno.EIO, self._complaint(missing), where="torrent", retryable=True)

    def came(self, piece: int) -> None:
        """libtorrent has the piece, and its hash is right."""
        self.here[piece] = 1
        arrival = self._arrivals.pop(piece, None)
        if arrival is not None:
            arrival.settled.set()

    def fail(self, trouble: str) -> None:
        """Fetching met trouble: present waiters fail, later ones try again."""
        self._trouble = trouble
        for arrival in self._arrivals.values():
            arrival.trouble = trouble
            arrival.settled.set()
        self._arrivals.clear()

    async def _arrived(self, piece: int) -> None:
        """Wait for one piece.  Raises SourceError if fetching it meets trouble."""
        self.waiting[piece] += 1
        self.awaited.set()
        patience = self._company.patience()
        try:
            while not self.here[piece]:
                arrival = self._arrivals.setdefault(piece, _Arrival())
                with trio.move_on_after(patience) as scope:
                    await arrival.settled.wait()
                if scope.cancelled_caught:
                    patience = math.inf
                    self._want(piece, 0)
                if not self.here[piece] and arrival.trouble:
                    raise SourceError(errno.EIO, arrival.trouble, where="torrent", retryable=True)
        finally:
            self.waiting[piece] -= 1
            if not self.waiting[piece]:
                del self.waiting[piece]
                if not self.waiting:
                    self.awaited = trio.Event()
                self._arrivals.pop(piece, None)

    def _complaint(self, missing: list[int]) -> str:
        peers = self._company.peers
        trouble = f"; last trouble: {self._trouble}" if self._trouble else ""
        which = f"piece {missing[0]}" if len(missing) == 1 else f"{len(missing)} pieces from {missing[0]} on"
        return f"{which} did not come within {self._options.timeout:g} s from {peers} peers{trouble}"
