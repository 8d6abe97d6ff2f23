"""What one connection has to send, in order.

Replies are queued whole, so they never mix.  Whoever queued one sends at once what the stream takes; what it does not
take is sent by one sender, who waits for room.  A peer that takes nothing for `stall` seconds is given up.

Invariants
* `_sending` is set while somebody waits for room; only that one takes from the queue then.
* `_sent` counts the buffers that have gone, so a buffer's place in the order of all is known when it is queued.
* Once `error` is set nothing is queued or sent any more, and all that is owed has been given back.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable

import trio

from nbdfs.nbd.stream import Buffer, Stream
from nbdfs.undo import unless_done


class Output:
    """The sending end of a stream.  `failed` is called when it fails."""

    def __init__(self, stream: Stream, stall: float) -> None:
        self.stream = stream
        self.failed: Callable[[], None] = lambda: None
        self.error: OSError | None = None
        self._stall = stall
        self._queue: list[Buffer] = []
        self._sent = 0
        self._owed: deque[tuple[int, Callable[[], None]]] = deque()
        self._sending = False
        self._idle = trio.Event()  # set when the sender has ended

    @property
    def busy(self) -> bool:
        """Whether somebody waits for the peer to take more."""
        return self._sending

    def put(self, *buffers: Buffer) -> None:
        """Queue a reply; its buffers are borrowed until it is sent."""
        if not self.error:
            self._queue += buffers

    def owe(self, give_back: Callable[[], None]) -> None:
        """Call this once all that is queued now has been sent, or never will be."""
        if self._queue:
            self._owed.append((self._sent + len(self._queue), give_back))
        else:
            give_back()

    def push(self, nursery: trio.Nursery) -> None:
        """Send what the stream takes now; a task sends the rest."""
        self._send_now()
        if self._queue and not self._sending:
            self._sending = True
            nursery.start_soon(self._send_rest)

    async def flush(self) -> None:
        """Send all that is queued.  A checkpoint only if it must wait.  Raises OSError."""
        self._send_now()
        while self._queue or self._sending:
            if self._sending:
                await self._idle.wait()
            else:
                await self._send_rest()
        if self.error:
            raise ConnectionError(self.error.errno, self.error.strerror)  # a new one, which keeps no frames alive

    async def flush_borrowed(self) -> None:
        """`flush`, where buffers that are queued must not outlive the next checkpoint."""
        self._send_now()
        if self._queue:
            self._queue = [bytes(buffer) for buffer in self._queue]
        await self.flush()

    async def send_file(self, header: bytes, fd: int, offset: int, length: int) -> None:
        """Send a header and `length` bytes of a file.  Raises OSError."""
        await self.flush()
        self._begin()
        with unless_done(self._cut_off):
            try:
                rest: list[Buffer] = [header]
                while rest:
                    drop_sent(rest, self.stream.send_now(rest) or await self._writable())
                while length:
                    sent = self.stream.sendfile_now(fd, offset, length) or await self._writable()
                    offset += sent
                    length -= sent
            except OSError as error:
                self._fail(error)
                raise
            finally:
                self._end()
        await self.flush()

    def _cut_off(self) -> None:
        """A reply will not be sent to its end, so nothing may follow."""
        if not self.error:
            self._fail(ConnectionError(errno.EPIPE, "a reply was cut off"))

    def _begin(self) -> None:
        self._sending = True
        self._idle = trio.Event()

    def _end(self) -> None:
        self._sending = False
        self._idle.set()

    def _send_now(self) -> None:
        """Send without waiting, unless another does."""
        if not self._sending:
            self._send()

    def _send(self) -> None:
        queue = self._queue
        try:
            while queue:
                sent = self.stream.send_now(queue)
                self._sent += drop_sent(queue, sent)
                if not sent:
                    break
        except OSError as error:
            self._fail(error)
        self._give_back()

    def _give_back(self) -> None:
        owed = self._owed
        while owed and owed[0][0] <= self._sent:
            owed.popleft()[1]()

    async def _send_rest(self) -> None:
        self._begin()
        try:
            self._send()
            while self._queue:
                await self._writable()
                self._send()
        except OSError as error:
            self._fail(error)
        finally:
            self._end()

    def close(self) -> None:
        """Nothing more is sent."""
        if not self.error:
            self._drop(ConnectionError(errno.ESHUTDOWN, "the connection was closed"))

    def _fail(self, error: OSError) -> None:
        self._drop(error)
        self.failed()

    def _drop(self, error: OSError) -> None:
        self.error = ConnectionError(error.errno, error.strerror or str(error))
        self._sent += len(self._queue)
        self._queue.clear()
        self._give_back()

    async def _writable(self) -> int:
        """Wait for room; 0, what was sent before that."""
        with trio.move_on_after(self._stall) as scope:
            await self.stream.writable()
        if scope.cancelled_caught:
            raise ConnectionError(errno.ETIMEDOUT, f"it has taken no reply for {self._stall:g} s")
        return 0


def drop_sent(queue: list[Buffer], sent: int) -> int:
    """Take `sent` bytes off the queue, and buffers that have none; how many buffers have gone."""
    done = 0
    while done < len(queue) and sent >= len(queue[done]):
        sent -= len(queue[done])
        done += 1
    del queue[:done]
    if sent:
        queue[0] = memoryview(queue[0])[sent:]
    return done
