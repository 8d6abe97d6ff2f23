"""Requests of a client and the replies to them, as bytes: no I/O.

NBD protocol, "Transmission", and its extension "Extended headers".  The payload of a read is received straight to where
it belongs.  What a server must not send is refused as a `RemoteError`, so that a wrong reply never becomes wrong data.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import ClassVar

import trio

from nbdfs.errors import SourceError, from_nbd
from nbdfs.nbd.proto import constants as nbd
from nbdfs.ranges import RangeSet

_REQUEST = struct.Struct(">IHHQQI")
_EXTENDED_REQUEST = struct.Struct(">IHHQQQ")
_SIMPLE = struct.Struct(">IIQ")
_CHUNK = struct.Struct(">IHHQI")
_EXTENDED_CHUNK = struct.Struct(">IHHQQQ")
_HOLE = struct.Struct(">QI")
_ERROR = struct.Struct(">IH")
_STATUS_EXT = struct.Struct(">II")
_MOST_PAYLOAD = 16 << 20  # bytes of a chunk that is not data
_SCRATCH = memoryview(bytearray(256 << 10))  # for what nobody wants any more
_HEADER_WEIGHT = 4096  # what a request costs beside its bytes, in bytes


class RemoteError(SourceError):
    """The server broke the protocol."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EIO, f"the server broke the protocol: {message}")


class Request:
    """One request: what to send, and what came back.

    `buffer` takes what a READ gives, `payload` is what a WRITE brings.  `extents` has for each context id of a
    BLOCK_STATUS its (length, flags) pairs.  `weight` is its share of a connection's load.
    """

    __slots__ = (
        "buffer", "command", "cookie", "covered", "done", "error", "extents", "flags", "left", "length",
        "offset", "orphan", "payload", "sent", "settled", "task", "weight",
    )  # fmt: skip

    def __init__(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        flags: int = 0,
        *,
        buffer: memoryview | None = None,
        payload: memoryview | None = None,
    ) -> None:
        self.command = command
        self.flags = flags
        self.offset = offset
        self.length = length
        self.buffer = buffer
        self.payload = payload
        self.weight = _HEADER_WEIGHT + (length if buffer is not None or payload is not None else 0)
        self.sent = 0.0
        self.task: trio.lowlevel.Task | None = None
        self.orphan = False
        self.settled: Callable[[], None] | None = None  # told once its reply has come, or never will
        self.restart()

    def restart(self) -> None:
        """Forget what came back: the request is sent anew."""
        self.cookie = 0
        self.done = False
        self.error: OSError | None = None
        self.left = self.length  # bytes of a READ that have not come yet
        self.covered: RangeSet | None = None  # those that have, if they came in pieces
        self.extents: dict[int, list[tuple[int, int]]] = {}

    def message(self, extended: bool) -> bytes:
        """The header to send; a payload follows it."""
        if not extended:
            return _REQUEST.pack(nbd.REQUEST_MAGIC, self.flags, self.command, self.cookie, self.offset, self.length)
        flags = self.flags | (nbd.CMD_FLAG_PAYLOAD_LEN if self.payload is not None else 0)
        return _EXTENDED_REQUEST.pack(
            nbd.EXTENDED_REQUEST_MAGIC, flags, self.command, self.cookie, self.offset, self.length
        )

    def finish(self, error: OSError | None) -> None:
        """The last reply came, or the connection ended: wake whoever waits."""
        self.done = True
        self.error = self.error or error
        if self.task is not None:
            trio.lowlevel.reschedule(self.task)
            self.task = None
        if self.settled is not None:
            self.settled()


class Replies:
    """The stream of replies on one connection.

    Bytes come by `feed`, or, while `payload_left`, received into `place()` and told by `received`.  `finish` is called
    with each request and its error when its last reply came; it takes it out of `in_flight`.
    """

    def __init__(self, finish: Callable[[Request, OSError | None], None], *, structured: bool, extended: bool) -> None:
        self.in_flight: dict[int, Request] = {}
        self.payload_left = 0
        self._finish = finish
        self._structured = structured
        self._extended = extended
        self._partial = b""  # a header that has not come whole
        self._reading: Request | None = None  # whose data comes now
        self._final = False
        self._into = memoryview(b"")
        self._at = 0
        self._chunk: Callable[[memoryview], None] | None = None  # what takes the payload, if it is no data

    def give_up(self, request: Request) -> None:
        """What comes for this request from now on is dropped."""
        request.orphan = True
        request.buffer = None
        if self._reading is request:
            self._into = _SCRATCH

    def place(self) -> memoryview:
        """Where the next bytes of payload belong."""
        if self._into is _SCRATCH:
            return _SCRATCH[: self.payload_left]
        return self._into[self._at : self._at + self.payload_left]

    def received(self, length: int) -> None:
        """So many bytes are at `place()`."""
        self._at += length
        self.payload_left -= length
        if not self.payload_left:
            self._payload_done()

    def feed(self, data: memoryview) -> None:
        """Take bytes as they came.  Raises RemoteError."""
        if self._partial:
            data = memoryview(self._partial + data)
            self._partial = b""
        at, end = 0, len(data)
        while at < end:
            if self.payload_left:
                place = self.place()
                length = min(len(place), end - at)
                place[:length] = data[at : at + length]
                at += length
                self.received(length)
                continue
            used = self._header(data, at, end - at)
            if not used:
                self._partial = bytes(data[at:])
                return
            at += used

    def _header(self, data: memoryview, at: int, length: int) -> int:
        """Read the header at `at`; give its length, 0 if it is not there whole."""
        if length < _SIMPLE.size:
            return 0
        magic, error, cookie = _SIMPLE.unpack_from(data, at)
        if magic == nbd.SIMPLE_REPLY_MAGIC and not self._extended:
            self._simple(self._known(cookie), error)
            return _SIMPLE.size
        form = _EXTENDED_CHUNK if self._extended else _CHUNK
        expected = nbd.EXTENDED_REPLY_MAGIC if self._extended else nbd.STRUCTURED_REPLY_MAGIC
        if magic != expected or not self._structured:
            raise RemoteError(f"a reply begins with {magic:#x}")
        # The offset of a read's first chunk is looked at together with the header, to know where the payload goes.
        if length < form.size:
            return 0
        _, flags, kind, cookie, *_, size = form.unpack_from(data, at)
        request = self._known(cookie)
        self._final = bool(flags & nbd.REPLY_FLAG_DONE)
        if kind == nbd.REPLY_TYPE_OFFSET_DATA:
            if length < form.size + 8:
                return 0
            self._data(request, int.from_bytes(data[at + form.size : at + form.size + 8]), size - 8)
            return form.size + 8
        self._other(request, kind, size)
        return form.size

    def _known(self, cookie: int) -> Request:
        request = self.in_flight.get(cookie)
        if request is None:
            raise RemoteError(f"a reply to no request (cookie {cookie})")
        return request

    def _simple(self, request: Request, error: int) -> None:
        if request.command in (nbd.CMD_READ, nbd.CMD_BLOCK_STATUS) and self._structured:
            raise RemoteError("a simple reply where a structured one was agreed on")
        if error:
            self._finish(request, SourceError(from_nbd(error)))
        elif request.command == nbd.CMD_READ:
            self._final = True
            self._data(request, request.offset, request.length)
        elif request.command == nbd.CMD_BLOCK_STATUS:
            raise RemoteError("a simple reply to a request for block status")
        else:
            self._finish(request, None)

    def _data(self, request: Request, offset: int, length: int) -> None:
        """`length` bytes of a READ follow."""
        self._cover(request, offset, length)
        self._reading = request
        self.payload_left = length
        if request.buffer is None:
            self._into = _SCRATCH
        else:
            self._into = request.buffer
            self._at = offset - request.offset

    def _cover(self, request: Request, offset: int, length: int) -> None:
        """Note that a part of a READ has come; no part may come twice."""
        first = offset - request.offset
        if request.command != nbd.CMD_READ or first < 0 or length <= 0 or first + length > request.length:
            raise RemoteError(f"{length} bytes at {offset} that were not asked for")
        if length == request.length and request.left == length:
            request.left = 0
            return
        if request.covered is None:
            request.covered = RangeSet()
        request.covered.add(first, first + length)
        request.left -= length
        if request.covered.total != request.length - request.left:
            raise RemoteError(f"bytes at {offset} came twice")

    def _other(self, request: Request, kind: int, size: int) -> None:
        """A chunk that is no data: take its payload whole."""
        take = self._CHUNKS.get(kind)
        if take is None:
            if not kind & nbd.REPLY_TYPE_ERROR_BIT:
                raise RemoteError(f"a chunk of unknown type {kind}")
            take = Replies._unknown_error
        if size > _MOST_PAYLOAD:
            raise RemoteError(f"a chunk of type {kind} with {size} bytes")
        self._reading = None
        self._chunk = lambda payload: take(self, request, payload)
        self._into = memoryview(bytearray(size))
        self._at = 0
        self.payload_left = size
        if not size:
            self._payload_done()

    def _payload_done(self) -> None:
        request = self._reading
        if request is None:
            assert self._chunk is not None
            self._chunk(self._into)
            self._chunk = None
        else:
            self._reading = None
            if self._final:
                self._complete(request)
        self._into = memoryview(b"")

    def _complete(self, request: Request) -> None:
        """The last chunk of a reply was read."""
        if request.error is None and not request.orphan:
            if request.command == nbd.CMD_READ and request.left:
                raise RemoteError(f"a read of {request.length} bytes ended {request.left} bytes short")
            if request.command == nbd.CMD_BLOCK_STATUS and not request.extents:
                raise RemoteError("a reply to a request for block status has none")
        self._finish(request, request.error)

    def _none(self, request: Request, payload: memoryview) -> None:
        if payload or not self._final:
            raise RemoteError("an empty chunk that is not empty, or not the last")
        self._complete(request)

    def _hole(self, request: Request, payload: memoryview) -> None:
        if len(payload) != _HOLE.size:
            raise RemoteError(f"a hole described in {len(payload)} bytes")
        offset, length = _HOLE.unpack(payload)
        self._cover(request, offset, length)
        if request.buffer is not None:
            first = offset - request.offset
            request.buffer[first : first + length] = bytes(length)
        self._after(request)

    def _status(self, request: Request, payload: memoryview) -> None:
        if request.command != nbd.CMD_BLOCK_STATUS or len(payload) < 12 or len(payload) % 8 != 4:
            raise RemoteError(f"block status in {len(payload)} bytes")
        (context,) = struct.unpack_from(">I", payload)
        self._extents(request, context, list(struct.iter_unpack(">II", payload[4:])))

    def _status_ext(self, request: Request, payload: memoryview) -> None:
        if request.command != nbd.CMD_BLOCK_STATUS or len(payload) < 24 or len(payload) % 16 != 8:
            raise RemoteError(f"extended block status in {len(payload)} bytes")
        context, count = _STATUS_EXT.unpack_from(payload)
        if count not in (0, (len(payload) - 8) // 16):
            raise RemoteError(f"{count} extents in {len(payload)} bytes")
        self._extents(request, context, list(struct.iter_unpack(">QQ", payload[8:])))

    def _extents(self, request: Request, context: int, extents: list[tuple[int, int]]) -> None:
        if context in request.extents:
            raise RemoteError("block status of the same context twice")
        if not all(length for length, _ in extents):
            raise RemoteError("an extent of no length")
        request.extents[context] = extents
        self._after(request)

    def _error(self, request: Request, payload: memoryview, tail: int = 0) -> None:
        if len(payload) < _ERROR.size:
            raise RemoteError(f"an error in {len(payload)} bytes")
        number, length = _ERROR.unpack_from(payload)
        if len(payload) != _ERROR.size + length + tail or not number:
            raise RemoteError("an error with a text of the wrong length, or without a number")
        text = bytes(payload[_ERROR.size : _ERROR.size + length]).decode(errors="replace")
        request.error = request.error or SourceError(from_nbd(number), text)
        self._after(request)

    def _error_offset(self, request: Request, payload: memoryview) -> None:
        self._error(request, payload, 8)

    def _unknown_error(self, request: Request, payload: memoryview) -> None:
        request.error = request.error or SourceError(errno.EIO)
        self._after(request)

    def _after(self, request: Request) -> None:
        if self._final:
            self._complete(request)

    _CHUNKS: ClassVar[dict[int, Callable[[Replies, Request, memoryview], None]]] = {
        nbd.REPLY_TYPE_NONE: _none,
        nbd.REPLY_TYPE_OFFSET_HOLE: _hole,
        nbd.REPLY_TYPE_BLOCK_STATUS: _status,
        nbd.REPLY_TYPE_BLOCK_STATUS_EXT: _status_ext,
        nbd.REPLY_TYPE_ERROR: _error,
        nbd.REPLY_TYPE_ERROR_OFFSET: _error_offset,
    }  # fmt: skip
