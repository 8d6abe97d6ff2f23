"""A request of the client, and who waits for it."""

from __future__ import annotations

from collections.abc import Callable

from nbdfs.eager import Wake
from nbdfs.nbd.proto.pending import Pending

_HEADER_WEIGHT = 256 << 10  # what a request costs beside its bytes, in bytes; it takes one of the server's few threads


class Request(Pending):
    """`weight` is its share of a connection's load, in bytes; `sent` is when it left, by the monotonic clock."""

    __slots__ = ("sent", "settled", "wake", "weight")

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
        super().__init__(command, offset, length, flags, buffer, payload)
        self.weight = _HEADER_WEIGHT + (length if buffer is not None or payload is not None else 0)
        self.sent = 0.0
        self.wake: Wake | None = None  # of who waits for it
        self.settled: Callable[[], None] | None = None  # told once its reply has come, or never will

    def finish(self, error: OSError | None) -> None:
        """The last of its reply came, or the connection ended: wake whoever waits."""
        self.done = True
        self.error = self.error or error
        if self.wake is not None:
            wake, self.wake = self.wake, None
            wake()
        if self.settled is not None:
            self.settled()
