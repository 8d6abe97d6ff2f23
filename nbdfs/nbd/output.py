"""What one connection has to send, in order.

Replies are queued whole, so they never mix.  Whoever queued one sends at once what the stream takes; what it does not
take is sent by one sender, who waits for room.  A peer that takes nothing for `stall` seconds is given up.

Invariants
* `_sending` is set while somebody waits for room; only that one takes from the queue then.
* `_sent` counts the parts that have gone, so a part's place in the order of all is known when it is queued.
* Once `error` is set nothing is queued or sent any more, and all that is owed has been given back.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from itertools import takewhile
from typing import Any, cast

import trio

from nbdfs.nbd.limits import given_up
from nbdfs.nbd.stream import Buffer, Stream

_BUFFERS = (bytes, memoryview)  # made once: it is looked at for every part


class FilePart:
    """`length` bytes of a file that are still to be sent, by sendfile."""

    __slots__ = ("fd", "length", "offset")

    def __init__(self, fd: int, offset: int, length: int) -> None:
        self.fd = fd
        self.offset = offset
        self.length = length


class Output:
    """The sending end of a stream.

    `failed` is called when it fails, `wanted` tells whether others wait for the memory of what is queued.
    """

    def __init__(self, stream: Stream, stall: float) -> None:
        self.stream = stream
        self.failed: Callable[[], None] = lambda: None
        self.wanted: Callable[[], bool] = lambda: False
        self.error: OSError | None = None
        self._stall = stall
        self._queue: list[Buffer | FilePart] = []
        self._files = 0  # parts of files in the queue
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

    def put_file(self, header: Buffer, part: FilePart) -> None:
        """Queue a reply whose data is a part of a file."""
        if not self.error:
            self._queue += (header, part)
            self._files += 1

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
            self._begin()
            nursery.start_soon(self._send_rest)

    async def flush(self) -> None:
        """Send all that is queued.  A checkpoint only if it must wait.  Raises OSError."""
        self._send_now()
        while self._queue or self._sending:
            if self._sending:
                await self._idle.wait()
            else:
                self._begin()
                await self._send_rest()
        if self.error:
            raise ConnectionError(self.error.errno, self.error.strerror)  # a new one, which keeps no frames alive

    def own(self) -> None:
        """Send what the stream takes now, and copy the rest, whose buffers must not outlive the next checkpoint."""
        self._send_now()
        if self._queue:
            self._queue = [part if isinstance(part, FilePart) else bytes(part) for part in self._queue]

    def _begin(self) -> None:
        """From here on only one sends; who else waits for it waits for `_idle`."""
        self._sending = True
        self._idle = trio.Event()

    def _end(self) -> None:
        self._sending = False
        self._idle.set()

    def _send_now(self) -> None:
        """Send without waiting, unless another does."""
        if self._queue and not self._sending:
            self._send()

    def _send(self) -> None:
        try:
            while self._queue and self._send_some():
                pass
        except OSError as error:
            self._fail(error)
        self._give_back()

    def _send_some(self) -> bool:
        """Send a part of the queue; whether the stream took any."""
        queue = self._queue
        first = queue[0]
        if isinstance(first, FilePart):
            sent = self.stream.sendfile_now(first.fd, first.offset, first.length)
            first.offset += sent
            first.length -= sent
            if not first.length:
                del queue[0]
                self._files -= 1
                self._sent += 1
            return sent > 0
        buffers = self._leading()
        sent = self.stream.send_now(buffers)
        if sent == sum(map(len, buffers)):  # nearly always, and found out quickly
            self._sent += len(buffers)
            del queue[: len(buffers)]
        else:
            self._sent += drop_sent(queue, sent)
        return sent > 0

    def _leading(self) -> list[Buffer]:
        """The buffers that come before any part of a file."""
        if not self._files:
            return cast("list[Buffer]", self._queue)
        return list(takewhile(lambda part: not isinstance(part, FilePart), self._queue))  # type: ignore[arg-type]

    def _give_back(self) -> None:
        owed = self._owed
        while owed and owed[0][0] <= self._sent:
            owed.popleft()[1]()

    async def _send_rest(self) -> None:
        """The sender, from `_begin` on."""
        try:
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
        self._files = 0
        self._give_back()

    async def _writable(self) -> None:
        if seconds := await given_up(self.stream.writable, self._stall, self.wanted):
            raise ConnectionError(errno.ETIMEDOUT, f"it has taken no reply for {seconds:g} s")


def drop_sent(queue: list[Any], sent: int) -> int:
    """Take `sent` bytes off the buffers at the front, and those that have none; how many have gone.

    Behind them may stand other things than buffers.
    """
    done = 0
    for part in queue:
        if not isinstance(part, _BUFFERS) or sent < (length := len(part)):
            break
        sent -= length
        done += 1
    del queue[:done]
    if sent:
        queue[0] = memoryview(queue[0])[sent:]
    return done
