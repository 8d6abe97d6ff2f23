"""Small requests of one connection that were received together, each kind carried out by one call of the source.

Starting an operation costs more than moving a few KiB.  So where the source can (`Source.batches`), small reads and
writes are put off until all that came along are known.  What the source does not do at once goes the ordinary way, one
by one.

Invariants
* Payloads lie where they were received: all that was put off is carried out before more is received.
* The bytes of reads lie in memory that is used again: their replies are sent or copied before `carry_out` is called
  again.
"""

from __future__ import annotations

import mmap
from collections.abc import Awaitable, Callable

from nbdfs.barrier import Barrier
from nbdfs.nbd.output import Output
from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.proto.events import Request
from nbdfs.nbd.proto.transmission import ServerTransmission
from nbdfs.source import Source

_SMALL = 32 << 10  # bytes of a request
_ROOM = 256 << 10  # bytes of all that are put off


class _Batch:
    """Requests of one command and length, WRITEs with their payloads."""

    __slots__ = ("payloads", "requests")

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.payloads: list[memoryview] = []


class Batches:
    """What was put off.  `singly` carries out a request the ordinary way."""

    def __init__(
        self,
        source: Source,
        machine: ServerTransmission,
        output: Output,
        singly: Callable[[Request, memoryview | None], Awaitable[None]],
    ) -> None:
        self._source = source
        self._machine = machine
        self._output = output
        self._singly = singly
        self._batches: dict[tuple[int, int], _Batch] = {}
        self._size = 0
        self._left: list[tuple[Request, memoryview | None]] = []  # what is still to be carried out singly
        self._room = memoryview(b"")

    def __len__(self) -> int:
        """Bytes of what was put off."""
        return self._size

    @property
    def full(self) -> bool:
        """Whether there may be no room for one more."""
        return self._size > _ROOM - _SMALL

    @staticmethod
    def take(request: Request) -> bool:
        """Whether a request may be put off."""
        return request.command <= nbd.CMD_WRITE and not request.flags and request.length <= _SMALL

    def add(self, request: Request, payload: memoryview | None) -> None:
        """Put off a request."""
        if not self._room:
            self._room = memoryview(mmap.mmap(-1, _ROOM))
        key = request.command, request.length
        batch = self._batches.get(key)
        if batch is None:
            batch = self._batches[key] = _Batch()
        batch.requests.append(request)
        if payload is not None:
            batch.payloads.append(payload)
        self._size += request.length

    def rest(self) -> None:
        """Give back the memory."""
        self._room = memoryview(b"")

    async def carry_out(self) -> int:
        """Carry out all that was put off, and queue the replies; how many bytes those may borrow.

        A checkpoint only if a request is carried out singly.  Call it again after one that was cancelled.
        """
        batches, self._batches = self._batches, {}
        size, self._size = self._size, 0
        used = 0
        for (command, length), batch in batches.items():
            if command == nbd.CMD_READ:
                done = self._read(batch.requests, length, used)
                used += done * length
                self._left += [(request, None) for request in batch.requests[done:]]
            else:
                done = self._write(batch, length)
                self._left += zip(batch.requests[done:], batch.payloads[done:], strict=True)
        while self._left:
            await self._singly(*self._left[0])
            del self._left[0]
        return size

    def _read(self, requests: list[Request], length: int, used: int) -> int:
        room = self._room[used : used + length * len(requests)]
        done = _attempt(self._source.read_now, room, length, requests)
        whole, put = self._machine.whole, self._output.put
        for at, request in zip(range(0, done * length, length), requests, strict=False):
            put(whole(request), room[at : at + length])
        return done

    def _write(self, batch: _Batch, length: int) -> int:
        data = memoryview(b"".join(batch.payloads))
        done = _attempt(self._source.write_now, data, length, batch.requests)
        self._output.put(*map(self._machine.success, batch.requests[:done]))
        return done


def _attempt(
    operation: Callable[[memoryview, int, list[int]], int], data: memoryview, length: int, requests: list[Request]
) -> int:
    """How many requests were done at once.  What goes wrong here must be no more than that they go the ordinary way."""
    with Barrier("an operation for requests that came together", lambda _: None):
        return operation(data, length, [request.offset for request in requests])
    return 0
