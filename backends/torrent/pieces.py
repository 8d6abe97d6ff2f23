"""The pieces of a torrent: which are here, who wants which, and who waits.

Strictly on demand: every piece has priority 0 until somebody *claims* it, and again when the last claim goes.  A claim
on a missing piece gives it a deadline with libtorrent, a claim on a piece that is here keeps it from being dropped.
Where others read too, a claim on a piece that is theirs (`sharing`) asks nobody until one of them has it, or until a
read waited too long.

Invariants: `here[p]` is set only after libtorrent has found the piece's hash right and its data is in the file;
`claims` holds positive counts; `_told` has the pieces with a claim that are not here, as libtorrent knows them.  While
the torrent is out of the session libtorrent is told nothing; `renew` does so when it is back.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import libtorrent
import trio

from nbdfs.backends.torrent import Options
from nbdfs.backends.torrent.circle import Circle
from nbdfs.backends.torrent.eviction import Eviction
from nbdfs.backends.torrent.membership import Membership
from nbdfs.backends.torrent.metainfo import File
from nbdfs.backends.torrent.patience import Patience
from nbdfs.backends.torrent.request_queue import RequestQueue
from nbdfs.backends.torrent.sharing import Sharing, Way
from nbdfs.backends.torrent.swarm import Swarm
from nbdfs.errors import SourceError

_STEP = 10  # milliseconds between the deadlines of pieces wanted together
_AHEAD = 200  # milliseconds: the first deadline of what no read waits for yet
_LAST = 1  # libtorrent's priorities: for `prefetch=`,
_POLITE = 4  # its default; 7 is that of a piece with a deadline
_OF_SEEDS = (Way.OURS, Way.LATER)
_SOON = 1 << 20  # bytes that are asked for at once,
_SOON_IN_CROWD = 64 << 10  # and in a crowd, where the next moment may bring another reader that asks for some


class _Arrival:
    """That of a piece: `settled` once it is here, or will not come for now because of `trouble`."""

    def __init__(self) -> None:
        self.settled = trio.Event()
        self.trouble = ""


class Pieces:
    """The pieces of a torrent, for those who read them."""

    def __init__(
        self, membership: Membership, circle: Circle, swarm: Swarm, sharing: Sharing, eviction: Eviction,
        options: Options,
    ) -> None:  # fmt: skip
        metainfo = membership.metainfo
        self.here = bytearray(metainfo.pieces)
        self.background = bytearray(metainfo.pieces)  # priorities of pieces that nobody claims
        self.claims: Counter[int] = Counter()
        self.waiting: Counter[int] = Counter()
        self.awaited = trio.Event()  # somebody waits
        self._membership = membership
        self._circle = circle
        self._swarm = swarm
        self._sharing = sharing
        self._eviction = eviction
        self._metainfo = metainfo
        self._options = options
        self._arrivals: dict[int, _Arrival] = {}  # those waited for
        self._queue = RequestQueue(_SOON // metainfo.piece_length, metainfo.pieces)
        self._trouble = ""  # the disk's or libtorrent's last error
        self._told: dict[int, Way] = {}
        self._patience = Patience(sharing, options.timeout / 2)

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

    def runs(self, pieces: range) -> Iterator[tuple[range, bool]]:
        """Cut the pieces into runs, each of which is here or is not."""
        start = pieces.start
        while start < pieces.stop:
            end = self.here.find(1 - self.here[start], start, pieces.stop)
            end = pieces.stop if end < 0 else end
            yield range(start, end), bool(self.here[start])
            start = end

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
            if not self.here[piece] and (after == 0 or self._told.get(piece) not in _OF_SEEDS):
                self._tell(piece, self._patience.way(piece), after + index * _STEP)
        self._ask()

    def release(self, pieces: Iterable[int]) -> None:
        """Want the pieces no more."""
        for piece in pieces:
            self.claims[piece] -= 1
            if not self.claims[piece]:
                del self.claims[piece]
                self._patience.forget(piece)
                self._queue.drop(piece)
                if not self.here[piece] and (handle := self._membership.handle):
                    if self._told.pop(piece, None) is Way.CIRCLE:
                        self._leave_to_others(piece)
                    handle.reset_piece_deadline(piece)
                    handle.piece_priority(piece, self.background[piece])
        self._ask()
        self._eviction.check()

    def prefetch(self, pieces: Iterable[int]) -> None:
        """Fetch pieces when there is nothing more urgent."""
        handle = self._membership.handle
        for piece in pieces:
            self.background[piece] = _LAST
            if handle and piece not in self.claims and not self.here[piece]:
                handle.piece_priority(piece, _LAST)
        self._swarm.choose_order()

    def forget(self, pieces: Iterable[int]) -> None:
        """The pieces, which nobody claims, are not here any more, and not fetched again until somebody does."""
        for piece in pieces:
            self.here[piece] = self.background[piece] = 0

    def renew(self) -> None:
        """Tell libtorrent of all claims anew."""
        self._told.clear()
        self._queue.clear()
        self.review()

    def look(self) -> None:
        """See whether other readers came, went or got something, and tell libtorrent what that changes."""
        if self._membership.handle and self._swarm.matters():
            self._sharing.measured = self._queue.pace * self._metainfo.piece_length
            self._swarm.look(self._missing(), self.here, Way.OURS in self._told.values())
            self.review()

    def review(self) -> None:
        """Tell libtorrent what changed in how pieces are to be had."""
        if not (handle := self._membership.handle):
            return
        wanted = self._missing()
        self._patience.look([piece for piece in self.waiting if not self.here[piece]], wanted)
        ways = {piece: self._patience.way(piece) for piece in wanted}
        if any(self._told.get(piece) in _OF_SEEDS and way not in _OF_SEEDS for piece, way in ways.items()):
            handle.clear_piece_deadlines()  # when the first is set anew, libtorrent takes back all other requests
            self._told = {piece: way for piece, way in self._told.items() if way is Way.CIRCLE}
            self._queue.clear()
        self._queue.fewest = self._fewest()
        for index, (piece, way) in enumerate(ways.items()):
            known = self._told.get(piece)
            at_once = piece in self.waiting and self._swarm.settled
            if known is not way and not (known is Way.LATER and way is Way.OURS and not at_once):
                self._tell(piece, way, 0 if piece in self.waiting else _AHEAD + index * _STEP)
        self._ask()

    def _fewest(self) -> int:
        return (_SOON_IN_CROWD if self._swarm.crowd else _SOON) // self._metainfo.piece_length

    def _missing(self) -> list[int]:
        """The pieces that are wanted and not here, in order."""
        return sorted(piece for piece in self.claims if not self.here[piece])

    def _tell(self, piece: int, way: Way, after: int) -> None:
        if not (handle := self._membership.handle):
            return
        known = self._told.get(piece)
        if way is Way.OURS and (not self._swarm.settled or (after and self._options.sequential)):
            way = Way.LATER
            self._queue.put(piece, trio.current_time() + after / 1000)
        self._told[piece] = way
        if known is Way.OURS and way is not Way.OURS:
            handle.reset_piece_deadline(piece)
            self._queue.drop(piece)
        if known is Way.CIRCLE and way is not Way.CIRCLE:
            self._leave_to_others(piece)
        if way is Way.CIRCLE and (circle := self._circle.handle):
            circle.set_piece_deadline(piece, after)
        if way is Way.OURS and not after:
            self._ask_now(handle, piece, 0)
        else:
            handle.piece_priority(piece, self._priority(piece, way))

    def _priority(self, piece: int, way: Way) -> int:
        """libtorrent's, for a piece without a deadline."""
        if way is Way.LATER:
            return self.background[piece]
        return _POLITE if way in (Way.OURS, Way.OTHERS) else 0

    def _ask(self) -> None:
        """Ask for the pieces whose turn it is."""
        if (handle := self._membership.handle) and self._swarm.settled:
            for due, piece in self._queue.take():
                if self._told.get(piece) is Way.LATER:
                    del self._told[piece]  # it may be another's by now, which the next review finds
                    if self._patience.way(piece) is Way.OURS:
                        self._told[piece] = Way.OURS
                        self._ask_now(handle, piece, max(int(1000 * (due - trio.current_time())), _AHEAD))

    def _ask_now(self, handle: libtorrent.torrent_handle, piece: int, after: int) -> None:
        if after and not self._options.sequential:
            handle.piece_priority(piece, _POLITE)
            return
        self._queue.ask(piece)
        handle.set_piece_deadline(piece, after)

    def _leave_to_others(self, piece: int) -> None:
        """Do not want it from readers any more."""
        if handle := self._circle.handle:
            handle.reset_piece_deadline(piece)
            handle.piece_priority(piece, 0)

    # -- who waits

    async def arrived(self, pieces: range) -> None:
        """Wait until the pieces, which are claimed, are here.  Raises SourceError (EIO) after the timeout."""
        with trio.move_on_after(self._options.timeout):
            for piece in pieces:
                if not self.here[piece]:
                    await self._arrived(piece)
        # The last of them may come in the moment in which the time is up.
        if missing := [piece for piece in pieces if not self.here[piece]]:
            raise SourceError(errno.EIO, self._complaint(missing), where="torrent", retryable=True)

    def came(self, piece: int) -> None:
        """libtorrent has the piece, and its hash is right."""
        self.here[piece] = 1
        self._told.pop(piece, None)
        self._patience.forget(piece)
        self._queue.came(piece)
        self._ask()
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
        if self._swarm.crowd:
            self.review()
        try:
            while not self.here[piece]:
                arrival = self._arrivals.setdefault(piece, _Arrival())
                await arrival.settled.wait()
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
        peers = self._swarm.peers
        trouble = f"; last trouble: {self._trouble}" if self._trouble else ""
        which = f"piece {missing[0]}" if len(missing) == 1 else f"{len(missing)} pieces from {missing[0]} on"
        return f"{which} did not come within {self._options.timeout:g} s from {peers} peers{trouble}"
