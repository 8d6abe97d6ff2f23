"""Messages that a thread writes, so that whoever has them waits for no reader: a terminal may be stopped, a pipe full,
a disk stuck, and a log may lie on the very disk that this process serves."""

from __future__ import annotations

import errno
import io
import os
import select
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TextIO, TypeVar

Message = TypeVar("Message")

_MOST = 1 << 20  # bytes that wait, beside those that are being written
_FLUSH = 1.0  # seconds that what waits gets to be written


class PartlyWrittenError(OSError):
    """The first `count` messages were written, or will be with the next ones, and no more."""

    def __init__(self, count: int, error: OSError) -> None:
        super().__init__(error.errno, error.strerror)
        self.count = count


class Outbox(Generic[Message]):
    """Gives messages to `write`, as many at a time as there are.

    Those that find no room or cannot be written are lost; `lost` makes the message that tells how many, to be written
    with the next ones.  The thread comes with the first message and goes with `flush`.
    """

    def __init__(self, write: Callable[[Sequence[Message]], None], lost: Callable[[int], Message]) -> None:
        self._write = write
        self._tell_lost = lost
        self._changed = threading.Condition()
        self._waiting: list[Message] = []
        self._size = 0
        self._lost = 0
        self._thread: threading.Thread | None = None
        self._ending = False

    def put(self, message: Message, size: int) -> None:
        """Have a message of `size` bytes written; never waits."""
        with self._changed:
            if self._waiting and self._size + size > _MOST:
                self._lost += 1
                return
            self._waiting.append(message)
            self._size += size
            if self._thread is None or not self._thread.is_alive():
                self._start()
            self._changed.notify()

    def flush(self) -> bool:
        """Wait a bounded time for all to be written; whether it is, and no thread left."""
        with self._changed:
            thread = self._thread
            self._ending = True
            self._changed.notify()
        if thread:
            thread.join(_FLUSH)
        return self._thread is None

    def _start(self) -> None:
        self._ending = False
        thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread can be had now: the next message tries again
            return
        self._thread = thread

    def _run(self) -> None:
        while taken := self._take():
            messages, lost = taken
            try:
                self._write([*messages, self._tell_lost(lost)] if lost else messages)
            except OSError as error:
                written = error.count if isinstance(error, PartlyWrittenError) else 0
                with self._changed:
                    self._lost += len(messages) - written + lost

    def _take(self) -> tuple[list[Message], int] | None:
        """Wait for messages; those and how many were lost after them, or None when the thread is to end."""
        with self._changed:
            while not self._waiting and not self._ending:
                self._changed.wait()
            if not self._waiting:
                self._thread = None
                return None
            taken = self._waiting, self._lost
            self._waiting, self._lost, self._size = [], 0, 0
            return taken


def write_bytes(stream: TextIO, data: bytes) -> None:
    """Write to the descriptor of a stream, past its lock, which the interpreter wants to have at its end.

    Raises OSError.
    """
    if stream.closed:
        raise OSError(errno.EBADF, "it is closed")
    try:
        descriptor = stream.fileno()
    except io.UnsupportedOperation:  # a stream in memory
        stream.write(data.decode(errors="replace"))
        return
    write_all(descriptor, data)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of it, however long that takes.  Raises OSError."""
    deque(writing(descriptor, data), maxlen=0)


def writing(descriptor: int, data: bytes) -> Iterator[int]:
    """Write all of it, however long that takes; tells after each step how many bytes are written.  Raises OSError."""
    written = 0
    while written < len(data):
        try:
            written += os.write(descriptor, memoryview(data)[written:])
            yield written
        except BlockingIOError:  # others share its file description, and one of them has set O_NONBLOCK
            room = select.poll()
            room.register(descriptor, select.POLLOUT)
            room.poll()
