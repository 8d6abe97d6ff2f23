"""A request as the client keeps it until its reply is complete."""

from __future__ import annotations

import struct

from nbdfs.nbd.proto import constants as nbd
from nbdfs.ranges import RangeSet

_REQUEST = struct.Struct(">IHHQQI")
_EXTENDED_REQUEST = struct.Struct(">IHHQQQ")


class Pending:
    """One request: what to send, and what came back.

    `buffer` takes what a READ gives, `payload` is what a WRITE brings.  `extents` has for each context id of a
    BLOCK_STATUS its (length, flags) pairs.  `done` says that nothing more comes for it, `orphan` that nobody waits.
    """

    __slots__ = (
        "buffer", "command", "cookie", "covered", "done", "error", "extents", "flags", "left", "length", "offset",
        "orphan", "payload",
    )  # fmt: skip

    def __init__(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        flags: int = 0,
        buffer: memoryview | None = None,
        payload: memoryview | None = None,
    ) -> None:
        self.command = command
        self.flags = flags
        self.offset = offset
        self.length = length
        self.buffer = buffer
        self.payload = payload
        self.orphan = False
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
