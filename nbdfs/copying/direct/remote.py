"""An NBD export as an end of a copy by lanes: one connection for each lane."""

from __future__ import annotations

import errno
import mmap
import os
import socket
import threading
from collections.abc import Iterator, Sequence

from nbdfs.copying.direct.connection import Connection, LostError, Request, connect
from nbdfs.copying.direct.lane import Chunk, Move
from nbdfs.copying.direct.work import Work
from nbdfs.copying.options import LARGEST_REQUEST, NEAR_REQUEST, REQUEST, CopyOptions
from nbdfs.copying.zeroes import zero_pieces
from nbdfs.errors import SourceError, UserError
from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.uri import Tcp, Uri
from nbdfs.plans import Plan
from nbdfs.ranges import normalise
from nbdfs.records import Record, replace
from nbdfs.source import ALLOCATION, BlockSize, Caps, Extent, SourceInfo
from nbdfs.undo import unless_done

_LONGEST_STATUS = 1 << 31  # bytes; the length of a request has 32 bits
_VERBS = {nbd.CMD_READ: "read", nbd.CMD_WRITE: "write", nbd.CMD_WRITE_ZEROES: "zero", nbd.CMD_FLUSH: "flush"}


class Remote(Record):
    """An export: where it is, how many connections it may get, and how many seconds its server may take to answer."""

    uri: Uri
    connections: int
    timeout: float


def remote(planned: Plan, options: CopyOptions) -> Remote | None:
    """The export that a plan names; None if more than a plain connection is asked for."""
    from nbdfs.backends.nbd import NbdOptions, uri_of

    given: NbdOptions = planned.options
    usual = NbdOptions()
    if given != replace(usual, connections=given.connections, timeout=given.timeout) or given.timeout <= 0:
        return None
    uri = uri_of(planned.argument, given)
    connections = given.connections if given.connections != usual.connections else options.connections
    return None if uri.tls else Remote(uri, connections, given.timeout)


class RemoteEnd:
    """An export, entered once to know it.  Raises UserError if the server refuses.

    Its map, for the plan, is asked for on the connection of the lane that wants to know: `work` must be set before.
    """

    created = False
    blank = False
    flushes = True
    work: Work

    def __init__(self, remote: Remote, *, of_source: bool) -> None:
        self._remote = remote
        self._of_source = of_source
        self._connections: list[Connection] = []
        self._halted = False
        self._lock = threading.Lock()  # of `_connections` and `_halted`
        self.name = str(remote.uri)
        self.request = REQUEST if isinstance(remote.uri.address, Tcp) else NEAR_REQUEST
        with unless_done(self.close):
            try:
                self._spare: Connection | None = connect(remote.uri, remote.timeout, self._opened)
            except OSError as error:
                raise UserError(str(error.strerror or error)) from error
        export = self._export = self._spare.export
        self.lanes = remote.connections if export.has(nbd.FLAG_CAN_MULTI_CONN) else 1
        minimum, preferred, maximum = export.block or (1, 4096, LARGEST_REQUEST)
        caps = Caps.EXTENTS if ALLOCATION in export.contexts else Caps.NONE
        block = BlockSize(minimum, preferred, min(maximum, LARGEST_REQUEST))
        self.info = SourceInfo(export.reachable, caps, block, missing=export.missing)

    def accept(self, size: int) -> None:
        """Raise UserError if a copy of so many bytes cannot go there."""
        if self._export.has(nbd.FLAG_READ_ONLY):
            raise UserError(f"{self.name} is read-only")
        room = self.info.size
        if room < size:
            raise UserError(f"{self.name} is too small, {room} bytes for the {size} of the source; nothing was written")

    @property
    def map(self) -> RemoteEnd:
        return self

    async def extents(self, offset: int, length: int) -> list[Extent]:
        return self.work.asking.extents(self._of_source, offset, length)  # type: ignore[no-any-return]

    def intake(self, longest: int, whole: bool) -> RemoteIntake:
        """What one lane reads from, pieces of at most `longest` bytes; `whole` asks for each in one chunk.

        Raises OSError if the server does not let it in.
        """
        return RemoteIntake(self._enter(), longest, nbd.CMD_FLAG_DF if whole and self._has(nbd.FLAG_SEND_DF) else 0)

    def outlet(self, blank: bool) -> RemoteOutlet:
        """What one lane writes to.  Raises OSError if the server does not let it in."""
        return RemoteOutlet(self._enter(), blank=blank)

    def interrupt(self) -> None:
        """Wake every lane that waits."""
        with self._lock:
            self._halted = True
            for connection in self._connections:
                connection.interrupt()

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    def _has(self, flag: int) -> bool:
        return self._export.has(flag)

    def _enter(self) -> Connection:
        with self._lock:
            spare, self._spare = self._spare, None
        return spare or connect(self._remote.uri, self._remote.timeout, self._opened)

    def _opened(self, connection: Connection) -> None:
        with self._lock:
            self._connections.append(connection)
            if self._halted:
                connection.interrupt()


class _Port:
    """What the two directions have in common."""

    splices = True

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.name = connection.name

    @property
    def busy(self) -> bool:
        return bool(self._connection.replies.in_flight)

    def begin_status(self, offset: int, length: int) -> Request:
        request = Request(nbd.CMD_BLOCK_STATUS, offset, min(length, _LONGEST_STATUS))
        self._connection.begin(request)
        return request

    def map_of(self, request: Request) -> list[Extent]:
        if request.error is not None:
            raise SourceError(request.error.errno or errno.EIO, str(request.error), where=self.name)
        found, at = [], request.offset
        for size, flags in request.extents.get(self._connection.export.contexts[ALLOCATION], ()):
            found.append(Extent(at, size, flags))
            at += size
        if not found:
            raise SourceError(errno.EIO, f"the server told nothing about {ALLOCATION}", where=self.name)
        return normalise(found, request.offset, request.length)

    def give_up(self) -> None:
        self._connection.lost = True

    def _splice(self, source: int, destination: int, most: int) -> int:
        try:
            count = os.splice(source, destination, most)
        except OSError as error:
            raise LostError(error.strerror or str(error)) from error
        if not count:
            raise LostError(f"{self.name} closed the connection")
        return count

    def _check(self, request: Request) -> None:
        if request.error is not None:
            what = f"cannot {_VERBS[request.command]} at byte {request.offset}"
            raise SourceError(request.error.errno or errno.EIO, f"{what}: {self.name}: {request.error}")


class RemoteIntake(_Port):
    """One connection to a source."""

    def __init__(self, connection: Connection, longest: int, flags: int) -> None:
        super().__init__(connection)
        connection.only_read(longest)
        self._flags = flags  # of a READ
        self._buffer = memoryview(mmap.mmap(-1, longest))

    def begin(self, moves: Sequence[Move]) -> None:
        self._connection.begin_all([self._read(move) for move in moves])

    def _read(self, move: Move) -> Request:
        offset, length, _ = move.piece
        request = Request(nbd.CMD_READ, offset, length, self._flags, note=move)
        request.buffer = self._buffer[:length]
        return request

    def hear(self) -> Chunk | Move | None:
        request = self._connection.reply(wait=True)
        if request is None:
            replies = self._connection.replies
            assert replies.reading
            return Chunk(replies.reading.note, replies.reading_at, replies.payload_left)
        if request.command != nbd.CMD_READ:
            return None  # the plan waits for it
        self._check(request)
        move: Move = request.note
        return move

    def take(self, offset: int, length: int) -> memoryview:
        data = self._buffer[:length]  # the same memory each time, which the processor's cache holds
        received = 0
        while received < length:
            count = self._connection.receive(data[received:], socket.MSG_WAITALL)
            self._connection.replies.payload_received(count)
            received += count
        return data

    def fill(self, pipe: int, offset: int, most: int) -> int:
        count = self._splice(self._connection.socket.fileno(), pipe, most)
        self._connection.replies.payload_received(count)
        return count


class RemoteOutlet(_Port):
    """One connection to a destination, which reads as zero if it is `blank`."""

    step = LARGEST_REQUEST

    def __init__(self, connection: Connection, *, blank: bool) -> None:
        super().__init__(connection)
        connection.only_write()
        self._blank = blank
        self._zeroes = connection.export.has(nbd.FLAG_SEND_WRITE_ZEROES)

    def write(self, move: Move, offset: int, data: memoryview) -> None:
        move.waiting += 1
        self._connection.begin(Request(nbd.CMD_WRITE, offset, len(data), note=move), data)

    def announce(self, pipe: int, move: Move, offset: int, length: int) -> int:
        move.waiting += 1
        return os.write(pipe, self._connection.header(Request(nbd.CMD_WRITE, offset, length, note=move)))

    def drain(self, pipe: int, length: int) -> None:
        while length:
            length -= self._splice(pipe, self._connection.socket.fileno(), length)

    def zero(self, move: Move, offset: int, length: int) -> None:
        """Zero a range, by sending zeroes if the server has no other way."""
        if self._blank:
            return
        if self._zeroes:
            move.waiting += 1
            self._connection.begin(Request(nbd.CMD_WRITE_ZEROES, offset, length, note=move))
            return
        for data in zero_pieces(length):
            self.write(move, offset, data)
            offset += len(data)

    def hear(self, *, wait: bool) -> Iterator[Move]:
        request = self._connection.reply(wait=wait) if self.busy else None
        while request:
            move: Move | None = request.note
            if move:  # else somebody waits for it
                self._answered(request, move)
                yield move
            request = self._connection.reply_here()

    def _answered(self, request: Request, move: Move) -> None:
        if request.command == nbd.CMD_WRITE_ZEROES and request.error and request.error.errno == errno.ENOTSUP:
            self._zeroes = False
            self.zero(move, request.offset, request.length)
        else:
            self._check(request)

    def flush(self) -> None:
        if not self._connection.export.has(nbd.FLAG_SEND_FLUSH):
            return
        self._connection.begin(request := Request(nbd.CMD_FLUSH, 0, 0))
        while not request.done:
            for _ in self.hear(wait=True):
                raise AssertionError("all that was written has arrived before")
        if request.error is not None:
            raise SourceError(request.error.errno or errno.EIO, str(request.error), where=self.name)
