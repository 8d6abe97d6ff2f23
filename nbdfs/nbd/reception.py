"""What one client sends: received where it belongs, and waited for as long as is right.

While requests come fast, the reader looks for the next one for a moment before it sleeps: a sleep and a wake-up take
longer than a fast client does.
"""

from __future__ import annotations

import errno
import math
import os
import time
from collections.abc import Callable

import trio

from nbdfs import eager
from nbdfs.nbd.limits import Limits, given_up
from nbdfs.nbd.proto.events import ProtocolError
from nbdfs.nbd.proto.input import Input
from nbdfs.nbd.proto.transmission import ServerTransmission
from nbdfs.nbd.stream import WOULD_BLOCK, Stream

_POLL_NS = 50_000  # how long to look for the next request before sleeping
_HOT_NS = 250_000  # a wait no longer, the way through trio included, means that requests come fast
_SLICE_NS = 2_000_000  # how long to go on without letting other tasks run
_RESTING = 1.0  # seconds without a request, after which a client holds no memory


class HungUpError(Exception):
    """The client hung up."""


class Reception:
    """The bytes that come over `stream`, for one task.

    `alone` tells whether no other client waits while we look for more, `awaited` whether replies are on their way,
    `forward` brings requests in flight forward, `rest` gives back the memory of a client that asks for nothing.
    """

    def __init__(
        self,
        stream: Stream,
        limits: Limits,
        *,
        alone: Callable[[], bool],
        awaited: Callable[[], bool],
        forward: Callable[[], None],
        rest: Callable[[], None],
    ) -> None:
        self.stream = stream
        self.input = Input()
        self.machine: ServerTransmission | None = None  # once the handshake is over
        self.wanted: Callable[[], bool] = lambda: False  # whether others wait for the memory that a payload fills
        self.header_alone = False  # whether the next header comes without what is behind it, which can go in place then
        self._limits = limits
        self._alone = alone
        self._awaited = awaited
        self._forward = forward
        self._rest = rest
        self._hot = False
        self._slice_end = 0

    async def some(self) -> None:
        """Receive what is there into `input`, at least one byte."""
        space = self.input.space()
        if self.header_alone and self.machine:
            space = space[: self.machine.header_size]
            self.header_alone = False
        count = self.stream.recv_now(space)
        if count == WOULD_BLOCK and self._hot:
            count = self._look(space)
        waited = count == WOULD_BLOCK
        began = time.monotonic_ns()
        while count == WOULD_BLOCK:
            if self.machine and not self.machine.in_step:
                await self.rest_to_come()
            else:
                await self._request_to_come()
            count = self.stream.recv_now(space)
        now = time.monotonic_ns()
        self._hot = not waited or now - began < _HOT_NS
        if waited:
            self._slice_end = now + _SLICE_NS
        elif now > self._slice_end:
            await trio.lowlevel.checkpoint()
            self._slice_end = time.monotonic_ns() + _SLICE_NS
        if count == 0:
            if not (self.machine.in_step if self.machine else not len(self.input)):
                raise ProtocolError("hung up in the middle of a message")
            raise HungUpError
        self.input.received(count)

    def payload_here(self, count: int) -> memoryview:
        """The payload that is next, all of it in `input`, where it lies until more is received."""
        received = self.input
        start = received.start
        received.start = end = start + count
        if self.machine:
            self.machine.payload_received(count)
        return received.view[start:end]

    async def payload(self, buffer: memoryview) -> None:
        """Fill the buffer with the payload that comes next."""
        done = 0
        while done < len(buffer):
            count = self.part(buffer[done:])
            if count != WOULD_BLOCK:
                done += count
                continue
            eager.uncork()
            if seconds := await given_up(self.stream.readable, self._limits.stall, self.wanted):
                raise ConnectionError(errno.ETIMEDOUT, f"nothing came of a payload for {seconds:g} s")

    def part(self, buffer: memoryview, *, look: bool = False) -> int:
        """Receive what is there of a payload, with `look` after looking for it a moment: its length, or WOULD_BLOCK."""
        count = self.input.move_into(buffer) or self.stream.recv_now(buffer)
        if count == WOULD_BLOCK and look:
            count = self._look(buffer)
        if count == 0:
            raise ProtocolError("hung up in the middle of a payload")
        if count != WOULD_BLOCK and self.machine:
            self.machine.payload_received(count)
        return count

    async def rest_to_come(self) -> None:
        """Wait for more of a message."""
        if not await self._comes_within(self._limits.stall):
            raise ConnectionError(errno.ETIMEDOUT, "the rest of a message did not come")

    def _look(self, space: memoryview) -> int:
        """Look for more for a moment, if this client is the only one that is at work."""
        if not self._alone():
            return WOULD_BLOCK
        end = time.monotonic_ns() + _POLL_NS
        while time.monotonic_ns() < end:
            count = self.stream.recv_now(space)
            if count != WOULD_BLOCK:
                return count
            self._forward()
            os.sched_yield()  # the client may need this CPU to get on
        return WOULD_BLOCK

    async def _request_to_come(self) -> None:
        """Wait for one.  Whoever still waits for replies is not idle."""
        idle = self._limits.idle or math.inf
        awaited = bool(self._limits.idle) and self._awaited()
        with trio.move_on_after(min(_RESTING, idle)) as scope:
            await self.stream.readable()
        if scope.cancelled_caught:
            self.input.rest()
            self._rest()
            left = max(idle - _RESTING, 0)
            while not await self._comes_within(left):
                was_awaited, awaited = awaited, self._awaited()
                if not (was_awaited or awaited):
                    raise ConnectionError(errno.ETIMEDOUT, "idle for too long")
                left = idle

    async def _comes_within(self, seconds: float) -> bool:
        """Wait for more; whether it came in time."""
        eager.uncork()
        with trio.move_on_after(seconds) as scope:
            await self.stream.readable()
        return not scope.cancelled_caught
