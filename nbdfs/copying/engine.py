"""Move the pieces of a copy: many requests in flight, memory bounded.

Each worker owns one buffer and carries one piece at a time from end to end, so `workers` buffers are all the memory
there is, and all of it is used again and again.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from nbdfs.copying.digests import Hasher
from nbdfs.copying.ends import Input, Output
from nbdfs.copying.options import Counters
from nbdfs.copying.plain import Files
from nbdfs.copying.plan import ZERO_STEP, Kind, Piece
from nbdfs.copying.turns import Turns
from nbdfs.errors import reason
from nbdfs.progress import Progress
from nbdfs.ranges import RangeSet, pieces

T = TypeVar("T")

# Asking again cannot help where the request itself is at fault, or the device is full.
_FINAL = {errno.EPERM, errno.EACCES, errno.EROFS, errno.EINVAL, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOTSUP,
          errno.EOVERFLOW, errno.EPIPE}  # fmt: skip
_FIRST_PAUSE = 0.1  # seconds before a request is tried again; doubled each time
_LONGEST_PAUSE = 10.0


class CopyError(Exception):
    """One piece could not be moved; the text says which side failed, where and why."""


@dataclass
class Engine:
    """One copy from `input` to `output`; `failure` says afterwards what stopped it.

    `files` holds the plain files that the two ends are, where they shall be copied as such.  `hashers` see all bytes in
    order.  `rate` is in bytes a second.  `done` collects what has arrived, but need not be durable yet.
    """

    input: Input
    output: Output
    progress: Progress
    workers: int
    request_size: int
    files: Files | None = None
    hashers: Sequence[Hasher] = ()
    retry: int = 0
    rate: float = 0.0
    limiter: trio.CapacityLimiter | None = None
    done: RangeSet = field(default_factory=RangeSet)
    counters: Counters = field(default_factory=Counters)
    failure: CopyError | None = None

    async def run(self) -> None:
        """Move everything, until it is done or the first piece fails; the others are cancelled then."""
        self._turns = Turns()
        self._due = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(self.workers):
                nursery.start_soon(self._work, nursery.cancel_scope)

    async def _work(self, scope: trio.CancelScope) -> None:
        buffer = memoryview(bytearray(self.request_size))
        try:
            while piece := await self._next(buffer):
                for part in self._parts(piece):
                    await self._move(part, buffer)
                    self.done.add(part.offset, part.offset + part.length)
                    self.progress.advance(part.length)
        except CopyError as error:
            self.failure = self.failure or error
            scope.cancel()

    def _parts(self, piece: Piece) -> Iterable[Piece]:
        """The piece, cut up where hashing it takes so long that progress must show and a stop be heard meanwhile."""
        if not self.hashers or piece.length <= ZERO_STEP:
            return (piece,)
        return (Piece(*part, piece.kind) for part in pieces(piece.offset, piece.length, ZERO_STEP))

    async def _next(self, buffer: memoryview) -> Piece | None:
        try:
            return await self.input.next(buffer)
        except OSError as error:
            raise CopyError(f"cannot read the source: {reason(error)}") from error

    async def _move(self, piece: Piece, buffer: memoryview) -> None:
        offset, length, kind = piece
        if kind is Kind.DATA:
            if self.rate:
                await self._pace(length)
            if self.files:
                await self._attempt(self._in_thread, self.files.copy, offset, length, buffer, what="copy", at=offset)
                self.counters.copied += length
                return
            for at, size in pieces(offset, length, self.request_size):
                await self._carry(at, size, buffer)
            return
        if self.hashers:
            await self._hash_zero(offset, length)
        if kind is Kind.ZERO:
            await self._attempt(self.output.zero, offset, length, what="zero", at=offset)
            self.counters.zeroed += length
        else:
            self.counters.skipped += length
            await trio.lowlevel.checkpoint()

    async def _carry(self, offset: int, length: int, buffer: memoryview) -> None:
        data = await self._attempt(self.input.read, offset, length, buffer, what="read", at=offset)
        if self.hashers:
            await self._hash(data, offset)
        zeroed = await self._attempt(self.output.write, data, offset, what="write", at=offset)
        self.counters.zeroed += zeroed
        self.counters.copied += length - zeroed

    async def _attempt(self, operation: Callable[..., Awaitable[T]], *arguments: object, what: str, at: int) -> T:
        """Do one request, again if it fails and may be tried again."""
        pause = _FIRST_PAUSE
        for left in range(self.retry, -1, -1):
            try:
                return await operation(*arguments)
            except OSError as error:
                if not left or (error.errno in _FINAL and not getattr(error, "retryable", False)):
                    raise CopyError(f"cannot {what} at byte {at}: {reason(error)}") from error
            self.counters.retries += 1
            await trio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        raise AssertionError("the last attempt returns or raises")

    async def _hash(self, data: memoryview, offset: int) -> None:
        async with self._turns.turn(offset, len(data)):
            for hasher in self.hashers:
                await self._in_thread(hasher.update, data)

    async def _hash_zero(self, offset: int, length: int) -> None:
        async with self._turns.turn(offset, length):
            for hasher in self.hashers:
                await self._in_thread(hasher.zero, length)

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        return await trio.to_thread.run_sync(function, *arguments, limiter=self.limiter)

    async def _pace(self, length: int) -> None:
        """Wait until the bytes before these have had their time at the wanted rate."""
        start = max(self._due, trio.current_time())
        self._due = start + length / self.rate
        await trio.sleep_until(start)
