"""The server's side of the transmission phase: requests out of bytes, replies into bytes.

States of the stream of requests:

    REQUEST   the next bytes are a header          -> REQUEST, PAYLOAD (a WRITE), SKIP (a payload nobody wants), CLOSED
    PAYLOAD   the next `payload_left` bytes belong to the WRITE just given; the driver receives them where they belong
    SKIP      the next bytes belong to a request that is refused once they have been dropped
    CLOSED    NBD_CMD_DISC came: nothing is read any more

What the protocol forbids but leaves in step comes out as `Refused`, the rest raises ProtocolError.
"""

from __future__ import annotations

import enum
import itertools
import struct
import sys
from array import array
from collections.abc import Iterable

from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.proto.events import (
    LEAST_IN_RUN,
    LONGEST_IN_RUN,
    MOST_IN_RUN,
    Agreed,
    Disconnect,
    ExportFacts,
    ProtocolError,
    Refused,
    Request,
    Run,
)
from nbdfs.nbd.proto.input import Input

_REQUEST = struct.Struct(">IHHQQI")
_EXTENDED_REQUEST = struct.Struct(">IHHQQQ")
_RUN = ">QQQI"  # _REQUEST, with the magic, the flags and the command as one number
_FIRST_OF_RUN = struct.Struct(_RUN)
_SIMPLE = struct.Struct(">IIQ")
_CHUNK = struct.Struct(">IHHQI")
_DATA_CHUNK = struct.Struct(">IHHQIQ")
_DATA_CHUNK_OF_RUN = struct.Struct(">QQIQ")  # the same, with what is alike in a run as one number
_EXTENDED_CHUNK = struct.Struct(">IHHQQQ")
_EXTENDED_DATA_CHUNK = struct.Struct(">IHHQQQQ")
_HOLE = struct.Struct(">QI")
_ERROR = struct.Struct(">IH")
_MOST_SKIPPED = 64 << 20  # bytes of a payload too long that are dropped to stay in step
_MOST_STATUS = 8 + 4 * 64  # bytes of the payload of a BLOCK_STATUS
_MOST_EXTENTS = 1 << 20  # NBD_REPLY_TYPE_BLOCK_STATUS: no more in one chunk
_LONGEST = 0xFFFFFFFF & -(1 << 20)  # bytes of an extent in 32 bits, whatever the block size

_SUCCESS = nbd.SIMPLE_REPLY_MAGIC << 32  # how a simple reply without an error begins
# And how the only chunk of a READ does.
_DATA = nbd.STRUCTURED_REPLY_MAGIC << 32 | nbd.REPLY_FLAG_DONE << 16 | nbd.REPLY_TYPE_OFFSET_DATA
_PLAIN = nbd.REQUEST_MAGIC << 32  # how a header without flags begins, but for the command
_PLAIN_WRITE = _PLAIN | nbd.CMD_WRITE

# Request types that carry a range, with the flags each may have ("Command flags").  FUA may come with any.
_FLAGS = {
    nbd.CMD_READ: nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_DF,
    nbd.CMD_WRITE: nbd.CMD_FLAG_FUA,
    nbd.CMD_TRIM: nbd.CMD_FLAG_FUA,
    nbd.CMD_CACHE: nbd.CMD_FLAG_FUA,
    nbd.CMD_WRITE_ZEROES: nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO,
    nbd.CMD_BLOCK_STATUS: nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_REQ_ONE,
    nbd.CMD_FLUSH: nbd.CMD_FLAG_FUA,
}
_WRITING = frozenset([nbd.CMD_WRITE, nbd.CMD_TRIM, nbd.CMD_WRITE_ZEROES])
_TOO_FAR = {nbd.CMD_WRITE: nbd.ENOSPC, nbd.CMD_WRITE_ZEROES: nbd.ENOSPC}  # "Error values"; EINVAL for others


class _State(enum.Enum):
    REQUEST = enum.auto()
    PAYLOAD = enum.auto()
    SKIP = enum.auto()
    CLOSED = enum.auto()


Event = Request | Refused | Disconnect


class ServerTransmission:
    """One connection's requests and replies.

    The driver receives into `received`, takes events until there is none, and takes a WRITE's payload before the
    next: what is in `received` already by `move_into`, the rest from the socket; it tells both by `payload_received`.
    """

    def __init__(self, export: ExportFacts, agreed: Agreed, flags: int, received: Input) -> None:
        self.received = received
        self.payload_left = 0
        self.contexts = agreed.contexts
        self.structured = agreed.structured or agreed.extended
        self.extended = agreed.extended
        self._size = export.size
        self._mask = export.minimum - 1
        self._maximum = export.maximum
        self._flags = flags
        self._state = _State.REQUEST
        self._header = _EXTENDED_REQUEST if agreed.extended else _REQUEST
        self.header_size = self._header.size  # bytes
        self._unpack = self._header.unpack_from
        self._magic = nbd.EXTENDED_REQUEST_MAGIC if agreed.extended else nbd.REQUEST_MAGIC
        self._refused: Refused | None = None
        # Nearly all requests are of these, without flags and as they should be: that is found out first.
        writes = not self.extended and not flags & nbd.FLAG_READ_ONLY
        self._plain = {nbd.CMD_READ, nbd.CMD_WRITE} if writes else {nbd.CMD_READ}
        self._allowed = {command: flags_of & ~self._unavailable() for command, flags_of in _FLAGS.items()}

    def _unavailable(self) -> int:
        """Command flags that this client was not offered."""
        flags = 0
        if not self._flags & nbd.FLAG_SEND_DF:
            flags |= nbd.CMD_FLAG_DF
        if not self._flags & nbd.FLAG_SEND_FUA:
            flags |= nbd.CMD_FLAG_FUA
        if not self._flags & nbd.FLAG_SEND_FAST_ZERO:
            flags |= nbd.CMD_FLAG_FAST_ZERO
        return flags

    @property
    def in_step(self) -> bool:
        """Whether the stream may end here without cutting a request in two."""
        return self._state in (_State.REQUEST, _State.CLOSED) and not len(self.received)

    # Requests

    def next_event(self) -> Event | None:
        """The next request; None if more must be received first, or a payload.

        A short WRITE is given once its payload is here, too.
        """
        if self._state is not _State.REQUEST:
            return self._skipped() if self._state is _State.SKIP else None
        received = self.received
        start = received.start
        if received.end - start < self.header_size:
            return None
        magic, flags, command, cookie, offset, length = self._unpack(received.view, start)
        if magic != self._magic:
            raise ProtocolError(f"a request begins with {magic:#x}")
        with_payload = self.extended and flags & nbd.CMD_FLAG_PAYLOAD_LEN
        short = command == nbd.CMD_WRITE and length <= LONGEST_IN_RUN and (with_payload or not self.extended)
        if short and received.end - start < self.header_size + length:
            return None
        if with_payload:
            return self._with_payload(Request(command, flags & ~nbd.CMD_FLAG_PAYLOAD_LEN, cookie, offset, length))
        received.start = start + self.header_size
        # This is what calling the class does too, with a function of Python more.
        request = tuple.__new__(Request, (command, flags, cookie, offset, length, ()))
        fits = 0 < length <= self._maximum and offset + length <= self._size and not (offset | length) & self._mask
        if not fits or flags or command not in self._plain:
            return self._examined(request)
        if command == nbd.CMD_WRITE:
            self._state = _State.PAYLOAD
            self.payload_left = length
        return request

    def next_run(self) -> Run | None:
        """Requests that are here with their payloads; None if what is next is no run: see `next_event`."""
        received = self.received
        start = received.start
        here = received.end - start
        if here < LEAST_IN_RUN * _REQUEST.size or self.extended or self._state is not _State.REQUEST:
            return None
        kind, _, _, length = _FIRST_OF_RUN.unpack_from(received.view, start)
        behind = length if kind == _PLAIN_WRITE else 0
        step = _REQUEST.size + behind
        mask = self._mask
        if kind ^ _PLAIN not in self._plain or not 0 < length <= LONGEST_IN_RUN or length & mask:
            return None
        count = min(here // step, MOST_IN_RUN // length)
        if count < LEAST_IN_RUN:
            return None
        cookies: list[int] = []
        offsets: list[int] = []
        most = self._size - length
        headers = struct.iter_unpack(f"{_RUN}{behind}x", received.view[start : start + count * step])
        for kind_, cookie, offset, length_ in headers:
            if kind_ != kind or length_ != length or offset > most or offset & mask:
                break
            cookies.append(cookie)
            offsets.append(offset)
        count = len(cookies)
        if count < LEAST_IN_RUN:
            return None
        received.start = end = start + count * step
        payloads = []
        if behind:
            payloads = [received.view[at : at + length] for at in range(start + _REQUEST.size, end, step)]
        return Run(kind ^ _PLAIN, length, cookies, offsets, payloads)

    def _examined(self, request: Request) -> Event | None:
        """A request that is not one of `_plain`, or about which something may be wrong."""
        if request.command == nbd.CMD_WRITE:
            if self.extended:
                return Refused(request, nbd.EINVAL, "a write without a payload")
            return self._write(request)
        if request.command == nbd.CMD_BLOCK_STATUS:
            return self._checked(request._replace(contexts=tuple(self.contexts)))
        if request.command == nbd.CMD_DISC:
            self._state = _State.CLOSED
            return Disconnect()
        return self._checked(request)

    def payload_received(self, count: int) -> None:
        """So much of the payload is in its place."""
        self.payload_left -= count
        if not self.payload_left:
            self._state = _State.REQUEST

    def _with_payload(self, request: Request) -> Event | None:
        """An extended request that has a payload, its header still in the buffer."""
        received = self.received
        size = request.length
        status = request.command == nbd.CMD_BLOCK_STATUS and self._flags & nbd.FLAG_BLOCK_STATUS_PAYLOAD
        if status and 8 < size <= _MOST_STATUS and size % 4 == 0:
            if len(received) < self._header.size + size:
                return None
            received.skip(self._header.size)
            return self._filtered_status(request, received.take(size))
        received.skip(self._header.size)
        if request.command == nbd.CMD_WRITE:
            return self._write(request)
        if request.command == nbd.CMD_DISC:
            raise ProtocolError("a disconnect with a payload")
        return self._drop(request, request.length, nbd.EINVAL, "a payload that does not belong there")

    def _filtered_status(self, request: Request, payload: bytes) -> Event:
        """A BLOCK_STATUS of some of the contexts, which its payload names."""
        length, *contexts = struct.unpack(f">Q{len(payload) // 4 - 2}I", payload)
        request = request._replace(length=length, contexts=tuple(contexts))
        if len(set(contexts)) < len(contexts) or not set(contexts) <= set(self.contexts):
            return Refused(request, nbd.EINVAL, "a metadata context that is unknown or asked for twice")
        return self._checked(request)

    def _write(self, request: Request) -> Event | None:
        length = request.length
        if length > self._maximum:
            return self._drop(request, length, nbd.EINVAL, f"{length} bytes, the maximum is {self._maximum}")
        checked = self._checked(request)
        if isinstance(checked, Refused):
            return self._drop(request, length, checked.error, checked.message)
        self._state = _State.PAYLOAD
        self.payload_left = length
        return checked

    def _drop(self, request: Request, length: int, error: int, message: str) -> Event | None:
        """Refuse a request after its payload."""
        if length > _MOST_SKIPPED:
            raise ProtocolError(f"a payload of {length} bytes")
        self._state = _State.SKIP
        self._refused = Refused(request, error, message)
        self.payload_left = length
        return self._skipped()

    def _skipped(self) -> Event | None:
        self.payload_left -= self.received.skip(self.payload_left)
        if self.payload_left:
            return None
        self._state = _State.REQUEST
        return self._refused

    def _checked(self, request: Request) -> Request | Refused:
        command, flags, _, offset, length, contexts = request
        allowed = self._allowed.get(command)
        if allowed is None:
            return Refused(request, nbd.EINVAL, f"there is no command {command}")
        if flags & ~allowed:
            return Refused(request, nbd.EINVAL, f"command {command} takes no flags {flags & ~allowed:#x} here")
        if command == nbd.CMD_FLUSH:
            if offset or length:
                return Refused(request, nbd.EINVAL, "a flush has no range")
            return request
        if command in _WRITING and self._flags & nbd.FLAG_READ_ONLY:
            return Refused(request, nbd.EPERM, "the export is read-only")
        if not length:
            return Refused(request, nbd.EINVAL, "a request of no length")
        if offset + length > self._size:
            error = _TOO_FAR.get(command, nbd.EINVAL)
            return Refused(request, error, f"{length} bytes at {offset} do not lie within the {self._size} bytes")
        if (offset | length) & self._mask:
            return Refused(request, nbd.EINVAL, f"{length} bytes at {offset} are not aligned to {self._mask + 1}")
        if command == nbd.CMD_READ and length > self._maximum:
            error = nbd.EOVERFLOW if self.structured else nbd.EINVAL
            return Refused(request, error, f"a read of {length} bytes, the maximum is {self._maximum}")
        if command == nbd.CMD_BLOCK_STATUS and not contexts:
            return Refused(request, nbd.EINVAL, "no metadata context was agreed on")
        return request

    # Replies

    def success(self, request: Request) -> bytes:
        """The reply to a request that was carried out and has no payload, and the last chunk of one that had."""
        if self.extended:
            return _EXTENDED_CHUNK.pack(
                nbd.EXTENDED_REPLY_MAGIC, nbd.REPLY_FLAG_DONE, nbd.REPLY_TYPE_NONE, request.cookie, request.offset, 0
            )
        if self.structured and request.command in (nbd.CMD_READ, nbd.CMD_BLOCK_STATUS):
            return self._chunk(request, nbd.REPLY_TYPE_NONE, b"", True)
        return _SIMPLE.pack(nbd.SIMPLE_REPLY_MAGIC, 0, request.cookie)

    def whole(self, request: Request) -> bytes:
        """What comes before the bytes of a READ that are sent in one piece."""
        if not self.structured:
            return _SIMPLE.pack(nbd.SIMPLE_REPLY_MAGIC, 0, request.cookie)
        return self.data(request, request.offset, request.length, True)

    def wholes(self, run: Run) -> list[bytes]:
        """`whole` for each READ of a run."""
        if not self.structured:
            return [_SIMPLE.pack(nbd.SIMPLE_REPLY_MAGIC, 0, cookie) for cookie in run.cookies]
        if self.extended:
            return [self.whole(run.request(index)) for index in range(len(run.cookies))]
        pack, length = _DATA_CHUNK_OF_RUN.pack, run.length + 8
        return [pack(_DATA, cookie, length, offset) for cookie, offset in zip(run.cookies, run.offsets, strict=True)]

    def successes(self, run: Run) -> bytes:
        """`success` for each WRITE of a run."""
        if self.extended:
            return b"".join(self.success(run.request(index)) for index in range(len(run.cookies)))
        numbers = array("Q", [_SUCCESS, 0]) * len(run.cookies)
        numbers[1::2] = array("Q", run.cookies)
        if sys.byteorder == "little":
            numbers.byteswap()
        return numbers.tobytes()

    def data(self, request: Request, offset: int, length: int, done: bool) -> bytes:
        """What comes before `length` bytes of a READ."""
        if self.extended:
            return _EXTENDED_DATA_CHUNK.pack(
                nbd.EXTENDED_REPLY_MAGIC, done, nbd.REPLY_TYPE_OFFSET_DATA, request.cookie, request.offset,
                length + 8, offset,
            )  # fmt: skip
        return _DATA_CHUNK.pack(
            nbd.STRUCTURED_REPLY_MAGIC, done, nbd.REPLY_TYPE_OFFSET_DATA, request.cookie, length + 8, offset
        )

    def hole(self, request: Request, offset: int, length: int, done: bool) -> bytes:
        """A part of a READ that is zero."""
        return self._chunk(request, nbd.REPLY_TYPE_OFFSET_HOLE, _HOLE.pack(offset, length), done)

    def status(self, request: Request, context: int, extents: Iterable[tuple[int, int]], done: bool) -> bytes:
        """The (length, flags) pairs of one context."""
        pairs = list(extents)[:_MOST_EXTENTS]
        if self.extended:
            numbers = list(itertools.chain.from_iterable(pairs))
            payload = struct.pack(f">II{len(numbers)}Q", context, len(pairs), *numbers)
            return self._chunk(request, nbd.REPLY_TYPE_BLOCK_STATUS_EXT, payload, done)
        numbers = list(itertools.chain.from_iterable(pairs))
        long = next((at for at, length in enumerate(numbers[::2]) if length > _LONGEST), None)
        if long is not None:
            numbers[2 * long] = _LONGEST
            del numbers[2 * long + 2 :]  # what follows would lie in the wrong place
        return self._chunk(
            request, nbd.REPLY_TYPE_BLOCK_STATUS, struct.pack(f">I{len(numbers)}I", context, *numbers), done
        )

    def error(self, request: Request, error: int, message: str) -> bytes:
        """The reply to a request that failed with an NBD error value."""
        if not self.structured:
            return _SIMPLE.pack(nbd.SIMPLE_REPLY_MAGIC, error, request.cookie)
        text = message.encode(errors="replace")[: nbd.MAX_STRING]
        return self._chunk(request, nbd.REPLY_TYPE_ERROR, _ERROR.pack(error, len(text)) + text, True)

    def _chunk(self, request: Request, kind: int, payload: bytes, done: bool) -> bytes:
        if self.extended:
            header = _EXTENDED_CHUNK.pack(
                nbd.EXTENDED_REPLY_MAGIC, done, kind, request.cookie, request.offset, len(payload)
            )
        else:
            header = _CHUNK.pack(nbd.STRUCTURED_REPLY_MAGIC, done, kind, request.cookie, len(payload))
        return header + payload
