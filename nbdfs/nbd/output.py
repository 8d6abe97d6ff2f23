"""What one connection has to send, in order.

Replies are queued whole, so they never mix.  `flush` sends what is queued; one task sends at a time, the others wait
their turn, and by then their replies are out.  A peer that takes nothing for `stall` seconds is given up.
"""

from __future__ import annotations

import errno

import trio

from nbdfs.nbd.stream import Buffer, Stream


class Output:
    """The sending end of a stream.

    Invariant: while `_lock` is held only its holder takes from `_queue`; whoever appends does so between two
    checkpoints, a whole reply at once.
    """

    def __init__(self, stream: Stream, stall: float) -> None:
        self.stream = stream
        self._stall = stall
        self._queue: list[Buffer] = []
        self._lock = trio.StrictFIFOLock()

    @property
    def busy(self) -> bool:
        """Whether somebody waits for the peer to take more."""
        return self._lock.locked()

    def put(self, *buffers: Buffer) -> None:
        """Queue a reply.  A buffer that is not the caller's own must be flushed by `flush_now` before a checkpoint."""
        self._queue += buffers

    async def flush(self) -> None:
        """Send all that is queued.  A checkpoint only if it must wait."""
        if self._lock.locked() or (self._queue and not self._send_now()):
            async with self._lock:
                await self._send()

    async def flush_borrowed(self) -> None:
        """`flush`, where the last buffer queued is a view that must not outlive the next checkpoint."""
        if not self._send_now():
            self._queue = [bytes(buffer) for buffer in self._queue]
            async with self._lock:
                await self._send()

    async def send_file(self, header: bytes, fd: int, offset: int, length: int) -> None:
        """Send a header and `length` bytes of a file."""
        async with self._lock:
            self._queue.append(header)
            await self._send()
            while length:
                sent = self.stream.sendfile_now(fd, offset, length)
                offset += sent
                length -= sent
                if not sent:
                    await self._writable()

    def _send_now(self) -> bool:
        """Send without waiting; whether all is out."""
        queue = self._queue
        while queue:
            if not drop_sent(queue, self.stream.send_now(queue)):
                return False
        return True

    async def _send(self) -> None:
        while not self._send_now():
            await self._writable()

    async def _writable(self) -> None:
        with trio.move_on_after(self._stall) as scope:
            await self.stream.writable()
        if scope.cancelled_caught:
            raise ConnectionError(errno.ETIMEDOUT, f"it has taken no reply for {self._stall:g} s")


def drop_sent(queue: list[Buffer], sent: int) -> bool:
    """Take what was sent off the queue; whether it was anything."""
    done = 0
    left = sent
    while done < len(queue) and left >= len(queue[done]):
        left -= len(queue[done])
        done += 1
    del queue[:done]
    if left:
        queue[0] = memoryview(queue[0])[left:]
    return sent > 0
