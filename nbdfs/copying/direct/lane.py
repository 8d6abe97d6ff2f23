"""A lane: one thread that moves pieces from a source to a destination, several in flight.

What comes is written at once, chunk by chunk.  While zeroes are found in it, it passes through the lane's one buffer,
where they are looked for; while there are none the kernel moves most of it on through a pipe, and no byte is copied on
the way.

Invariants
* A piece has arrived when all of it was read and all that was written or zeroed for it was answered.
* Who waits for one side holds up the other by no more than the replies to what is in flight, which are a few bytes each
  and have room in any socket.
* A map that the plan asks for is one more thing in flight: what comes meanwhile is moved on.
* A header that announces a payload is followed by all of it, or both ends are given up.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from nbdfs.copying.direct.connection import LostError
from nbdfs.copying.direct.work import Work
from nbdfs.copying.plan import Kind, Piece
from nbdfs.copying.zeroes import runs
from nbdfs.errors import SourceError
from nbdfs.ranges import RangeSet, pieces
from nbdfs.source import Extent
from nbdfs.undo import unless_done

log = logging.getLogger(__name__)

_PIPE = 1 << 20  # bytes; what an unprivileged process may have
_GROWTH = 8  # chunks without zeroes for each one after them that is not looked at
_UNSEEN = 64  # chunks; the most between two that are looked at


class Move:
    """A piece under way: what it still waits for, and what became of its bytes."""

    __slots__ = ("chunks", "copied", "piece", "waiting", "zeroed")

    def __init__(self, piece: Piece) -> None:
        self.piece = piece
        self.waiting = 0  # requests without an answer
        self.copied = 0
        self.zeroed = 0
        self.chunks = RangeSet()  # what came as data


class Chunk(NamedTuple):
    """Data of a move that comes next."""

    move: Move
    offset: int
    length: int


class _FailedError(Exception):
    """What was under way has failed while the lane was asked for a map."""


class End(Protocol):
    """What a lane has of one end.  Methods raise SourceError, or LostError once the end is of no use any more."""

    @property
    def splices(self) -> bool:
        """Whether a pipe may be filled from it or drained into it."""

    @property
    def busy(self) -> bool:
        """Whether something is still to come from it."""

    def give_up(self) -> None:
        """It is of no use any more."""


class Intake(End, Protocol):
    """The source's end of a lane."""

    def begin(self, moves: Sequence[Move]) -> None:
        """Ask for the data of pieces."""

    def hear(self) -> Chunk | Move | None:
        """Wait for what comes next: a chunk, which must be taken then, the move of a piece that has ended, or None."""

    def take(self, offset: int, length: int) -> memoryview:
        """Data of the chunk that comes next, which goes on at `offset`; valid until more is taken."""

    def fill(self, pipe: int, offset: int, most: int) -> int:
        """Put data of the chunk that comes next, which goes on at `offset`, into a pipe; how much that is."""


class Outlet(End, Protocol):
    """The destination's end of a lane."""

    @property
    def step(self) -> int:
        """The most bytes that it wants at once."""

    def write(self, move: Move, offset: int, data: memoryview) -> None:
        """Write; a request that must be answered counts as one that the move waits for."""

    def zero(self, move: Move, offset: int, length: int) -> None:
        """Make the range read as zero, as `write` does."""

    def announce(self, pipe: int, move: Move, offset: int, length: int) -> int:
        """Begin to write what is drained from a pipe then; put what must go ahead of it there, and give its length."""

    def drain(self, pipe: int, length: int) -> None:
        """Write what is in a pipe."""

    def hear(self, *, wait: bool) -> Iterable[Move]:
        """The moves of the requests that were answered; with `wait` at least one of those in flight."""

    def flush(self) -> None:
        """Make what was written durable."""


class Lane:
    """Moves pieces of `work` between two ends, `depth` at a time.

    `sparse` is the block in which zeroes are looked for.  Raises OSError if there is no pipe to be had.
    """

    def __init__(self, work: Work, source: Intake, destination: Outlet, *, depth: int, sparse: int) -> None:
        self._work = work
        self._source = source
        self._destination = destination
        self._depth = depth
        self._sparse = sparse
        self._moves = 0  # under way
        self._asked = 0  # of those, what is still to come from the source
        self._dense = 0  # chunks since one had zeroes
        self._look_at = 0  # the one of those in which zeroes are looked for next
        self._splices = source.splices and destination.splices
        self.ended = False  # its thread has left the ends to others
        self._pipe = os.pipe()  # which `run` closes
        with contextlib.suppress(OSError):  # as many as the user's share allows
            fcntl.fcntl(self._pipe[1], fcntl.F_SETPIPE_SZ, _PIPE)

    def run(self) -> None:
        """Until there is no more to do, an end is lost, or a request fails."""
        try:
            self._go_on()
        except LostError as error:
            log.info("a lane ends: %s", error)
        except (SourceError, _FailedError) as error:
            self._work.fail(str(error))
        finally:
            for fd in self._pipe:
                os.close(fd)
            self.ended = True
            self._work.lane_has_ended()

    def flush(self) -> None:
        """Make what was written durable.  Raises OSError or LostError."""
        self._destination.flush()

    def extents(self, of_source: bool, offset: int, length: int) -> list[Extent]:
        """The map of a side that is an export, for the plan; what is in flight moves on meanwhile.  Raises OSError."""
        side: Any = self._source if of_source else self._destination
        request = side.begin_status(offset, length)
        try:
            while not request.done:
                if of_source:
                    self._hear_source()
                else:
                    self._hear_destination(wait=True)
        except SourceError as error:
            raise _FailedError(str(error)) from error  # which is no answer about the map
        return side.map_of(request)  # type: ignore[no-any-return]

    def _go_on(self) -> None:
        few = self._depth * 3 // 4  # as long as more is to come, room for new pieces can wait
        while self._begin_pieces():
            if self._source.busy:
                if self._hear_source() and self._asked <= few:
                    self._hear_destination(wait=False)
            elif self._destination.busy:
                self._hear_destination(wait=True)

    def _begin_pieces(self) -> bool:
        """Begin as many as may be under way; whether any is."""
        self._work.plan_ahead(self)
        to_read = []
        while self._moves < self._depth and (piece := self._work.next(self, wait=not self._moves)):
            move = Move(piece)
            move.waiting = 1
            self._moves += 1
            if piece.kind is Kind.DATA:
                to_read.append(move)
            else:
                self._zero(move, piece.offset, piece.length)
                self._settled(move)
        if to_read:
            self._asked += len(to_read)
            self._source.begin(to_read)
        if self._moves == self._depth:
            self._work.lane_is_full()
        return self._moves > 0

    def _hear_source(self) -> bool:
        """Move on what comes next; whether a piece has ended with it."""
        heard = self._source.hear()
        if isinstance(heard, Chunk):
            self._pass_on(heard)
            return False
        if heard is None:
            return False
        self._asked -= 1
        start = heard.piece.offset
        if heard.chunks.total < heard.piece.length:  # the others were called holes
            for first, last, data in heard.chunks.runs(start, start + heard.piece.length):
                if not data:
                    self._zero(heard, first, last - first)
        self._settled(heard)
        return True

    def _hear_destination(self, *, wait: bool) -> None:
        for move in self._destination.hear(wait=wait):
            self._settled(move)

    def _pass_on(self, chunk: Chunk) -> None:
        move, offset, length = chunk
        move.chunks.add(offset, offset + length)
        if self._splices and not self._looks():
            self._splice(move, offset, length)
            move.copied += length
            return
        for at, size in pieces(offset, length, self._destination.step):
            self._search(move, at, self._source.take(at, size))

    def _looks(self) -> bool:
        """Whether zeroes are looked for in the next chunk: the more chunks had none, the less often."""
        number = self._dense
        self._dense += 1
        if number < self._look_at:
            return False
        self._look_at = number + 1 + min(number // _GROWTH, _UNSEEN)
        return True

    def _search(self, move: Move, offset: int, data: memoryview) -> None:
        """Write data, and zero where it is zero."""
        for start, stop, zero in runs(data, offset, self._sparse):
            if zero:
                self._dense = self._look_at = 0
                self._zero(move, offset + start, stop - start)
            else:
                self._destination.write(move, offset + start, data[start:stop])
                move.copied += stop - start

    def _splice(self, move: Move, offset: int, length: int) -> None:
        """Write a payload of which no byte is copied here."""
        reading, writing = self._pipe
        with unless_done(self._give_up):
            inside = self._destination.announce(writing, move, offset, length)
            while length:
                count = self._source.fill(writing, offset, length)
                self._destination.drain(reading, inside + count)
                inside, offset, length = 0, offset + count, length - count

    def _give_up(self) -> None:
        self._source.give_up()
        self._destination.give_up()

    def _zero(self, move: Move, offset: int, length: int) -> None:
        move.zeroed += length
        self._destination.zero(move, offset, length)

    def _settled(self, move: Move) -> None:
        """One request of a move was answered."""
        move.waiting -= 1
        if not move.waiting:
            self._moves -= 1
            self._work.arrived(move.piece, copied=move.copied, zeroed=move.zeroed)
