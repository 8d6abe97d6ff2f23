"""Small requests of one connection that were received together, each kind carried out by one call of the source.

Starting an operation costs more than moving a few KiB.  So where the source can (`Source.batches`), small reads and
writes are put off until all that came along are known.  What the source does not do at once goes the ordinary way, one
by one.

Invariants
* Payloads lie where they were received: all that was put off is carried out before more is received.
* The bytes of reads lie in memory that is used again: the room is, only after `release`, behind which their replies are
  sent or copied.
"""

from __future__ import annotations

import mmap
from collections.abc import Awaitable, Callable

from nbdfs.barrier import Barrier
from nbdfs.nbd.output import Output
from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.proto.events import LONGEST_IN_RUN, MOST_IN_RUN, Request, Run
from nbdfs.nbd.proto.transmission import ServerTransmission
from nbdfs.nbd.reception import Reception
from nbdfs.nbd.stream import Buffer
from nbdfs.source import Source


class Batches:
    """The requests of one client.

    `flush` calls `settle` and sends all replies; `singly` carries out a request the ordinary way.
    """

    def __init__(
        self,
        source: Source,
        machine: ServerTransmission,
        output: Output,
        reception: Reception,
        flush: Callable[[], Awaitable[None]],
        singly: Callable[[Request, memoryview | None], Awaitable[None]],
    ) -> None:
        self._source = source
        self._machine = machine
        self._output = output
        self._reception = reception
        self._flush = flush
        self._singly = singly
        self._batches: dict[tuple[int, int], Run] = {}
        self._size = 0  # bytes of all that are put off
        self._settling = False
        self._left: list[tuple[Request, memoryview | None]] = []  # what is still to be carried out singly
        self._room = memoryview(b"")
        self._used = 0  # bytes of the room

    async def request(self, request: Request) -> bool:
        """Put off a request, if it is of those; whether it was.  If not, nothing is borrowed any more."""
        command, flags, cookie, offset, length, _ = request
        if command > nbd.CMD_WRITE or flags or length > LONGEST_IN_RUN:
            await self._flush()
            return False
        payloads = [self._reception.payload_here(length)] if command == nbd.CMD_WRITE else []
        await self.run(Run(command, length, [cookie], [offset], payloads))
        return True

    async def run(self, run: Run) -> None:
        """Put off a run."""
        size = run.length * len(run.cookies)
        if self._size + size > MOST_IN_RUN:
            await self._flush()
        self._size += size
        batch = self._batches.setdefault((run.command, run.length), run)
        if batch is not run:
            batch.extend(run)

    def rest(self) -> None:
        """Give back the memory."""
        self._room = memoryview(b"")

    async def settle(self) -> None:
        """Carry out all that was put off, and queue the replies.

        A checkpoint only if a request is carried out singly.  After a call that was cancelled, another goes on.
        """
        if self._settling:  # by what a request that is carried out singly does
            return
        batches, self._batches = self._batches, {}
        self._size = 0
        for run in batches.values():
            if run.command == nbd.CMD_READ:
                self._read(run)
            else:
                self._write(run)
        self._settling = True
        try:
            while self._left:
                await self._singly(*self._left[0])
                del self._left[0]
        finally:
            self._settling = False

    def release(self) -> int:
        """What the replies queued borrow is about to be sent or copied; how many bytes that may be."""
        borrowed, self._used = self._used, 0
        return borrowed

    def _read(self, run: Run) -> None:
        """Carry out READs into the room."""
        if not self._room:
            self._room = memoryview(mmap.mmap(-1, MOST_IN_RUN))
        count, length = len(run.cookies), run.length
        room = self._room[self._used : self._used + length * count]
        done = _attempt(self._source.read_now, room, run)
        self._used += done * length
        parts: list[Buffer] = []
        for header, at in zip(self._machine.wholes(run), range(0, done * length, length), strict=False):
            parts += (header, room[at : at + length])
        self._output.put(*parts)
        self._left += [(run.request(index), None) for index in range(done, count)]

    def _write(self, run: Run) -> None:
        done = _attempt(self._source.write_now, memoryview(b"".join(run.payloads)), run)
        self._output.put(self._machine.successes(run.some(range(done))))
        self._left += [(run.request(index), run.payloads[index]) for index in range(done, len(run.cookies))]


def _attempt(operation: Callable[[memoryview, int, list[int]], int], data: memoryview, run: Run) -> int:
    """How many requests were done at once.  What goes wrong here must be no more than that they go the ordinary way."""
    with Barrier("an operation for requests that came together", lambda _: None):
        return operation(data, run.length, run.offsets)
    return 0
