"""What a client may take of the server: connections, time, memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

import trio

from nbdfs.records import Record
from nbdfs.undo import unless_done

OVERHEAD = 32 << 10  # bytes that a request counts for beside its own
_PATIENCE = 5.0  # seconds to wait for a client that holds memory which others want


class Limits(Record):
    """Numbers of a server.  Times in seconds, memory in bytes; an idle time of 0 means no limit."""

    clients: int = 1000
    handshake: float = 15.0  # for all of it
    idle: float = 0.0  # between two requests
    stall: float = 60.0  # while a payload or a reply is on its way
    request: float = 60.0  # for a source to carry out one request
    stop: float = 10.0  # for what is in flight when the server stops
    client_memory: int = 64 << 20
    memory: int = 256 << 20
    export_memory: int = 128 << 20  # for all clients of an export: what one that does not answer can take


class Memory:
    """Bytes in flight.  Invariant: `used` is at most `limit`, or one reservation alone is in flight.

    Reservations are granted in the order in which they were asked for.  What is reserved here is reserved in `whole`
    too, of which this is a part.
    """

    def __init__(self, limit: int, whole: Memory | None = None) -> None:
        self.limit = limit
        self._whole = whole
        self._used = 0
        self._waiting: deque[tuple[int, trio.Event]] = deque()

    def wanted(self) -> bool:
        """Whether somebody waits for more of what this is a part of."""
        return self._whole is not None and (bool(self._whole._waiting) or self._whole.wanted())

    def _fits(self, size: int) -> bool:
        return not self._used or self._used + size <= self.limit

    def reserve_now(self, size: int) -> bool:
        """`reserve` if it need not wait; whether it did."""
        if self._waiting or not self._fits(size) or (self._whole and not self._whole.reserve_now(size)):
            return False
        self._used += size
        return True

    async def reserve(self, size: int) -> None:
        """Wait until `size` more bytes may be in flight.  A checkpoint only if it must wait."""
        await self._reserve_here(size)
        if self._whole:
            with unless_done(lambda: self._release_here(size)):
                await self._whole.reserve(size)

    async def _reserve_here(self, size: int) -> None:
        if self._waiting or not self._fits(size):
            turn = (size, trio.Event())
            self._waiting.append(turn)
            try:
                await turn[1].wait()
            except trio.Cancelled:
                if turn[1].is_set():
                    self._release_here(size)
                else:
                    self._waiting.remove(turn)
                    self._grant()
                raise
        else:
            self._used += size

    def release(self, size: int) -> None:
        if self._whole:
            self._whole.release(size)
        self._release_here(size)

    def _release_here(self, size: int) -> None:
        self._used -= size
        if self._waiting:
            self._grant()

    def _grant(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            size, event = self._waiting.popleft()
            self._used += size
            event.set()


async def given_up(wait: Callable[[], Awaitable[None]], most: float, wanted: Callable[[], bool]) -> float:
    """Wait for a client; the seconds after which it was given up, 0 if it was not.

    That is after `most`, and sooner where the memory it holds is `wanted`.
    """
    waited = 0.0
    while waited < most:
        seconds = min(_PATIENCE, most - waited)
        with trio.move_on_after(seconds):
            await wait()
            return 0.0
        waited += seconds
        if wanted():
            break
    return waited
