"""The client's side of the transmission phase: replies out of bytes.

States of the stream of replies:

    HEADER   the next bytes are a header                             -> HEADER, DATA, BODY
    DATA     the next `payload_left` bytes belong to a READ; the driver receives them where they belong   -> HEADER
    BODY     the next `payload_left` bytes say something about a request: a hole, its extents, an error   -> HEADER

What a server must not send raises ProtocolError, so that a wrong reply never becomes wrong data.
"""

from __future__ import annotations

import enum
import errno
import struct
from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

from nbdfs.errors import SourceError, from_nbd
from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.proto.events import ProtocolError
from nbdfs.nbd.proto.input import Input
from nbdfs.nbd.proto.pending import Pending
from nbdfs.ranges import RangeSet

P = TypeVar("P", bound=Pending)

_SIMPLE = struct.Struct(">IIQ")
CHUNK = struct.Struct(">IHHQI")
_EXTENDED_CHUNK = struct.Struct(">IHHQQQ")
_OFFSET = 8  # bytes before the data of a chunk, which say where it belongs
_HOLE = struct.Struct(">QI")
_ERROR = struct.Struct(">IH")
_STATUS_EXT = struct.Struct(">II")
_MOST_BODY = 16 << 20  # bytes of a chunk that is not data
_MOST_EXTENTS = 2 << 20  # of one reply, in all its contexts; NBD_REPLY_TYPE_BLOCK_STATUS allows half in each
_NOWHERE = memoryview(b"")
_SCRATCH = memoryview(bytearray(256 << 10))  # for what nobody wants any more


class _State(enum.Enum):
    HEADER = enum.auto()
    DATA = enum.auto()
    BODY = enum.auto()


_HEADER, _DATA, _BODY = _State


class Replies(Generic[P]):
    """One connection's replies to the requests `in_flight`, by their cookies.

    The driver receives into `received` and takes events until there is none.  While `payload_left` it may also receive
    straight into `place()` and tell so by `payload_received`; nothing is in `received` then.
    """

    def __init__(self, received: Input, *, structured: bool, extended: bool) -> None:
        self.received = received
        self.in_flight: dict[int, P] = {}
        self.payload_left = 0
        self._structured = structured
        self._extended = extended
        self._form = _EXTENDED_CHUNK if extended else CHUNK
        self._magic = nbd.EXTENDED_REPLY_MAGIC if extended else nbd.STRUCTURED_REPLY_MAGIC
        self._state = _HEADER
        self._wanted = _SIMPLE.size  # bytes without which there is no use in looking at a header
        self._request: P | None = None  # whose payload comes now
        self._final = False
        self._into = _NOWHERE
        self._at = 0
        self._take: Callable[[Any, Any, memoryview], None] = Replies._unknown_error

    def next_event(self) -> P | None:
        """The next request whose reply is complete; None if more must be received first.  Raises ProtocolError.

        It is in flight no more; its `error` says how it went.
        """
        received = self.received
        while True:
            if self._state is _HEADER:
                if received.end - received.start < self._wanted:
                    return None
                done = self._header(received)
            elif not self.payload_left:
                done = self._payload_done()
            elif received.start == received.end:
                return None
            else:
                count = received.move_into(self.place())
                self._at += count
                self.payload_left -= count
                continue
            if done is not None:
                return done

    def place(self) -> memoryview:
        """Where the next bytes of payload belong."""
        if self._into is _SCRATCH:
            return _SCRATCH[: self.payload_left]
        return self._into[self._at : self._at + self.payload_left]

    def payload_received(self, count: int) -> None:
        """So many bytes are at `place()`."""
        self._at += count
        self.payload_left -= count

    def give_up(self, request: P) -> None:
        """What comes for this request from now on is dropped."""
        request.orphan = True
        request.buffer = None
        if self._request is request and self._state is _DATA:
            self._into = _SCRATCH

    # Headers

    def _header(self, received: Input) -> P | None:
        """Read a header, or find that it is not here whole and say what is `_wanted`."""
        view, at = received.view, received.start
        magic, error, cookie = _SIMPLE.unpack_from(view, at)
        if magic == nbd.SIMPLE_REPLY_MAGIC and not self._extended:
            received.start = at + _SIMPLE.size
            return self._simple(self._known(cookie), error)
        if magic != self._magic or not self._structured:
            raise ProtocolError(f"a reply begins with {magic:#x}")
        form = self._form
        here = received.end - at
        if here < form.size:
            self._wanted = form.size
            return None
        _, flags, kind, cookie, *_, size = form.unpack_from(view, at)
        end = at + form.size
        if kind == nbd.REPLY_TYPE_OFFSET_DATA:
            if here < form.size + _OFFSET:
                self._wanted = form.size + _OFFSET
                return None
            received.start = end + _OFFSET
            self._data(self._known(cookie), int.from_bytes(view[end : end + _OFFSET]), size - _OFFSET)
        else:
            received.start = end
            self._body(self._known(cookie), kind, size)
        self._final = bool(flags & nbd.REPLY_FLAG_DONE)
        self._wanted = _SIMPLE.size
        return None

    def _known(self, cookie: int) -> P:
        request = self.in_flight.get(cookie)
        if request is None:
            raise ProtocolError(f"a reply to no request (cookie {cookie})")
        return request

    def _simple(self, request: P, error: int) -> P | None:
        if request.command in (nbd.CMD_READ, nbd.CMD_BLOCK_STATUS) and self._structured:
            raise ProtocolError("a simple reply where a structured one was agreed on")
        if error:
            request.error = SourceError(from_nbd(error))
        elif request.command == nbd.CMD_READ:
            self._final = True
            self._data(request, request.offset, request.length)
            return None
        return self._complete(request)

    def _data(self, request: P, offset: int, length: int) -> None:
        """`length` bytes of a READ follow."""
        if offset == request.offset and length == request.left == request.length and request.command == nbd.CMD_READ:
            request.left = 0  # all in one piece
        else:
            self._cover(request, offset, length)
        self._state = _DATA
        self._request = request
        self.payload_left = length
        if request.buffer is None:
            self._into = _SCRATCH
        else:
            self._into = request.buffer
            self._at = offset - request.offset

    def _cover(self, request: P, offset: int, length: int) -> None:
        """Note that a part of a READ has come; no part may come twice."""
        first = offset - request.offset
        if request.command != nbd.CMD_READ or first < 0 or length <= 0 or first + length > request.length:
            raise ProtocolError(f"{length} bytes at {offset} that were not asked for")
        if request.covered is None:
            request.covered = RangeSet()
        request.covered.add(first, first + length)
        request.left -= length
        if request.covered.total != request.length - request.left:
            raise ProtocolError(f"bytes at {offset} came twice")

    def _body(self, request: P, kind: int, size: int) -> None:
        """A chunk that is no data follows."""
        take = self._BODIES.get(kind)
        if take is None:
            if not kind & nbd.REPLY_TYPE_ERROR_BIT:
                raise ProtocolError(f"a chunk of unknown type {kind}")
            take = Replies._unknown_error
        if size > _MOST_BODY:
            raise ProtocolError(f"a chunk of type {kind} with {size} bytes")
        self._state = _BODY
        self._request = request
        self._take = take
        self._into = memoryview(bytearray(size))
        self._at = 0
        self.payload_left = size

    # What follows a payload

    def _payload_done(self) -> P | None:
        request = self._request
        assert request is not None
        if self._state is _BODY:
            self._take(self, request, self._into)
        self._state = _HEADER
        self._request = None
        self._into = _NOWHERE
        return self._complete(request) if self._final else None

    def _complete(self, request: P) -> P:
        """The last chunk of a reply was read."""
        if request.error is None:
            if request.command == nbd.CMD_READ and request.left:
                raise ProtocolError(f"a read of {request.length} bytes ended {request.left} bytes short")
            if request.command == nbd.CMD_BLOCK_STATUS and not request.extents:
                raise ProtocolError("a reply to a request for block status has none")
        del self.in_flight[request.cookie]
        request.done = True
        return request

    def _none(self, request: P, body: memoryview) -> None:
        if body or not self._final:
            raise ProtocolError("an empty chunk that is not empty, or not the last")

    def _hole(self, request: P, body: memoryview) -> None:
        if len(body) != _HOLE.size:
            raise ProtocolError(f"a hole described in {len(body)} bytes")
        offset, length = _HOLE.unpack(body)
        self._cover(request, offset, length)
        if request.buffer is not None:
            first = offset - request.offset
            request.buffer[first : first + length] = bytes(length)

    def _status(self, request: P, body: memoryview) -> None:
        if len(body) < 12 or len(body) % 8 != 4:
            raise ProtocolError(f"block status in {len(body)} bytes")
        context = int.from_bytes(body[:4])
        self._extents(request, context, list(struct.iter_unpack(">II", body[4:])))

    def _status_ext(self, request: P, body: memoryview) -> None:
        if len(body) < 24 or len(body) % 16 != 8:
            raise ProtocolError(f"extended block status in {len(body)} bytes")
        context, count = _STATUS_EXT.unpack_from(body)
        if count not in (0, (len(body) - 8) // 16):
            raise ProtocolError(f"{count} extents in {len(body)} bytes")
        self._extents(request, context, list(struct.iter_unpack(">QQ", body[8:])))

    def _extents(self, request: P, context: int, extents: list[tuple[int, int]]) -> None:
        if request.command != nbd.CMD_BLOCK_STATUS:
            raise ProtocolError("block status that was not asked for")
        if context in request.extents:
            raise ProtocolError("block status of the same context twice")
        if sum(map(len, request.extents.values())) + len(extents) > _MOST_EXTENTS:
            raise ProtocolError(f"block status of more than {_MOST_EXTENTS} extents")
        if not all(length for length, _ in extents):
            raise ProtocolError("an extent of no length")
        request.extents[context] = extents

    def _error(self, request: P, body: memoryview, tail: int = 0) -> None:
        if len(body) < _ERROR.size:
            raise ProtocolError(f"an error in {len(body)} bytes")
        number, length = _ERROR.unpack_from(body)
        if len(body) != _ERROR.size + length + tail or not number:
            raise ProtocolError("an error with a text of the wrong length, or without a number")
        text = bytes(body[_ERROR.size : _ERROR.size + length]).decode(errors="replace")
        request.error = request.error or SourceError(from_nbd(number), text)

    def _error_offset(self, request: P, body: memoryview) -> None:
        self._error(request, body, _OFFSET)

    def _unknown_error(self, request: P, body: memoryview) -> None:
        request.error = request.error or SourceError(errno.EIO)

    _BODIES: ClassVar[dict[int, Callable[[Any, Any, memoryview], None]]] = {
        nbd.REPLY_TYPE_NONE: _none,
        nbd.REPLY_TYPE_OFFSET_HOLE: _hole,
        nbd.REPLY_TYPE_BLOCK_STATUS: _status,
        nbd.REPLY_TYPE_BLOCK_STATUS_EXT: _status_ext,
        nbd.REPLY_TYPE_ERROR: _error,
        nbd.REPLY_TYPE_ERROR_OFFSET: _error_offset,
    }  # fmt: skip
