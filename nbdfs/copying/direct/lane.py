"""A lane: one thread that moves pieces from one connection to another, several in flight.

What a READ brings becomes a WRITE at once, chunk by chunk.  While zeroes are found in it, it passes through the lane's
one buffer, where they are looked for; while there are none the kernel moves most of it on, from socket to pipe to
socket, and no byte is copied.

Invariants
* A piece has arrived when its READ is complete and every WRITE and WRITE_ZEROES made from it was answered.
* Who waits for one side holds up the other by no more than the replies to what is in flight, which are a few bytes each
  and have room in any socket.
* A header that announces a payload is followed by all of it, or both connections are given up.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import mmap
import os
from collections.abc import Callable

from nbdfs.copying.direct.connection import Connection, LostError, Request
from nbdfs.copying.direct.work import Work
from nbdfs.copying.plan import Kind, Piece
from nbdfs.copying.zeroes import runs, zero_pieces
from nbdfs.errors import SourceError
from nbdfs.nbd.proto import constants as nbd
from nbdfs.ranges import RangeSet, normalise
from nbdfs.source import ALLOCATION, Extent

log = logging.getLogger(__name__)

_PIPE = 1 << 20  # bytes; what an unprivileged process may have
_LONGEST_STATUS = 1 << 31  # bytes; the length of a request has 32 bits
_DENSE = 8  # chunks without zeroes after which only one in so many is looked at
_VERBS = {nbd.CMD_READ: "read", nbd.CMD_WRITE: "write", nbd.CMD_WRITE_ZEROES: "zero", nbd.CMD_FLUSH: "flush"}


class _Move:
    """A piece under way: what it still waits for, and what became of its bytes."""

    __slots__ = ("chunks", "copied", "piece", "waiting", "zeroed")

    def __init__(self, piece: Piece) -> None:
        self.piece = piece
        self.waiting = 0  # requests without a reply
        self.copied = 0
        self.zeroed = 0
        self.chunks = RangeSet()  # what of a READ came as data


class Lane:
    """Moves pieces of `work` between two connections, `depth` of at most `longest` bytes in flight.

    `sparse` is the block in which zeroes are looked for.  With `blank` the destination
    reads as zero.  `whole` asks the source to answer a READ in one chunk, where the destination takes no others.
    """

    def __init__(
        self,
        work: Work,
        source: Connection,
        destination: Connection,
        *,
        depth: int,
        longest: int,
        sparse: int,
        blank: bool,
        whole: bool = False,
    ) -> None:
        self._work = work
        self._source = source
        self._destination = destination
        self._depth = depth
        self._sparse = sparse
        self._blank = blank
        self._read_flags = nbd.CMD_FLAG_DF if whole and source.export.has(nbd.FLAG_SEND_DF) else 0
        self._moves = 0  # under way
        self._zeroes = destination.export.has(nbd.FLAG_SEND_WRITE_ZEROES)
        self._buffer = memoryview(mmap.mmap(-1, longest))
        self._dense = 0  # chunks since one had zeroes
        self.ended = False  # its thread has left the connections to others
        self._pipe = (-1, -1)

    def run(self) -> None:
        """Until there is no more to do, the connection is lost, or a request fails."""
        self._pipe = os.pipe()
        with contextlib.suppress(OSError):  # as many as the user's share allows
            fcntl.fcntl(self._pipe[1], fcntl.F_SETPIPE_SZ, _PIPE)
        try:
            self._go_on()
        except LostError as error:
            log.info("a lane ends: %s", error)
        except SourceError as error:
            self._work.fail(str(error))
        finally:
            for fd in self._pipe:
                os.close(fd)
            self.ended = True

    def _go_on(self) -> None:
        while True:
            while self._moves < self._depth and (piece := self._work.next(self)):
                self._begin(piece)
            if self._source.replies.in_flight:
                self._hear_source()
                self._hear_destination(wait=False)
            elif self._destination.replies.in_flight:
                self._hear_destination(wait=True)
            else:
                return

    def _begin(self, piece: Piece) -> None:
        move = _Move(piece)
        self._moves += 1
        if piece.kind is Kind.DATA:
            move.waiting += 1
            request = Request(nbd.CMD_READ, piece.offset, piece.length, self._read_flags, note=move)
            request.buffer = self._buffer[: piece.length]
            self._source.begin(request)
        else:
            self._zero(move, piece.offset, piece.length)

    # The source's side

    def _hear_source(self) -> None:
        """Take the next thing that the source has to say."""
        request = self._source.reply(wait=True)
        if request is None:
            self._pass_on()
        elif request.command == nbd.CMD_READ:
            move: _Move = request.note
            self._check(request, "read")
            if move.chunks.total < move.piece.length:
                start = move.piece.offset
                for first, last, data in move.chunks.runs(start, start + move.piece.length):
                    if not data:
                        self._zero(move, first, last - first)  # what the server called a hole
            self._settled(move)

    def _pass_on(self) -> None:
        """Move a chunk of data, which comes next."""
        replies = self._source.replies
        assert replies.reading
        move: _Move = replies.reading.note
        offset, length = replies.reading_at, replies.payload_left
        move.chunks.add(offset, offset + length)
        looks = self._dense < _DENSE or self._dense % _DENSE == 0
        self._dense += 1
        if not looks:
            self._write(move, offset, length, None)
            self._splice(length)
            replies.payload_received(length)
            return
        data = replies.place()
        while replies.payload_left:
            replies.payload_received(self._source.receive(replies.place()))
        for start, stop, zero in runs(data, offset, self._sparse):
            if zero:
                self._dense = 0
                self._zero(move, offset + start, stop - start)
            else:
                self._write(move, offset + start, stop - start, data[start:stop])

    def _splice(self, length: int) -> None:
        """Move `length` bytes of payload from socket to socket."""
        reading, writing = self._pipe
        source, destination = self._source.socket.fileno(), self._destination.socket.fileno()
        try:
            while length:
                inside = os.splice(source, writing, length)
                if not inside:
                    raise ConnectionResetError(errno.ECONNRESET, f"{self._source.name} closed the connection")
                length -= inside
                while inside:
                    inside -= os.splice(reading, destination, inside)
        except OSError as error:
            self._source.lost = self._destination.lost = True
            raise LostError(error.strerror or str(error)) from error

    # The destination's side

    def _write(self, move: _Move, offset: int, length: int, data: memoryview | None) -> None:
        request = Request(nbd.CMD_WRITE, offset, length, note=move)
        move.waiting += 1
        move.copied += length
        self._destination.begin(request, data, payload_follows=data is None)

    def _zero(self, move: _Move, offset: int, length: int) -> None:
        """Zero a range, by sending zeroes if the server has no other way."""
        move.zeroed += length
        if self._blank:
            return
        if self._zeroes:
            move.waiting += 1
            self._destination.begin(Request(nbd.CMD_WRITE_ZEROES, offset, length, note=move))
            return
        for data in zero_pieces(length):
            move.waiting += 1
            self._destination.begin(Request(nbd.CMD_WRITE, offset, len(data), note=move), data)
            offset += len(data)

    def _hear_destination(self, *, wait: bool) -> None:
        """Take the replies that are here; with `wait` at least one."""
        replies = self._destination.replies
        while replies.in_flight and (request := self._destination.reply(wait=wait)):
            wait = False
            if request.note is None:
                continue  # somebody waits for it
            if request.command == nbd.CMD_WRITE_ZEROES and request.error and request.error.errno == errno.ENOTSUP:
                self._zeroes = False
                self._zero(request.note, request.offset, request.length)
                request.note.zeroed -= request.length
            else:
                self._check(request, _VERBS[request.command])
            self._settled(request.note)

    def _settled(self, move: _Move) -> None:
        """One request of a move was answered."""
        move.waiting -= 1
        if not move.waiting:
            self._moves -= 1
            self._work.arrived(move.piece, copied=move.copied, zeroed=move.zeroed)

    def _check(self, request: Request, verb: str) -> None:
        if request.error is not None:
            side = self._source if request.command == nbd.CMD_READ else self._destination
            raise SourceError(
                request.error.errno or errno.EIO,
                f"cannot {verb} at byte {request.offset}: {side.name}: {request.error}",
            )

    # Requests that the lane itself waits for

    def flush(self) -> None:
        """Make what was written durable.  Raises OSError."""
        if self._destination.export.has(nbd.FLAG_SEND_FLUSH):
            self._destination.begin(request := Request(nbd.CMD_FLUSH, 0, 0))
            while not request.done:
                self._hear_destination(wait=True)
            if request.error is not None:
                raise SourceError(request.error.errno or errno.EIO, str(request.error), where=self._destination.name)

    def extents(self, of_source: bool, offset: int, length: int) -> list[Extent]:
        """The map of one side, for the plan; what is in flight moves on meanwhile.  Raises OSError."""
        side = self._source if of_source else self._destination
        hear: Callable[[], None] = self._hear_source if of_source else lambda: self._hear_destination(wait=True)
        side.begin(request := Request(nbd.CMD_BLOCK_STATUS, offset, min(length, _LONGEST_STATUS)))
        while not request.done:
            hear()
        if request.error is not None:
            raise SourceError(request.error.errno or errno.EIO, str(request.error), where=side.name)
        found, at = [], offset
        for size, flags in request.extents.get(side.export.contexts[ALLOCATION], ()):
            found.append(Extent(at, size, flags))
            at += size
        if not found:
            raise SourceError(errno.EIO, f"the server told nothing about {ALLOCATION}", where=side.name)
        return normalise(found, offset, length)
