"""Write to a terminal or a pipe without waiting for its reader, who may have stopped it."""

from __future__ import annotations

import os
import select
import stat
from typing import TextIO


def write_text(stream: TextIO, text: str) -> bool:
    """As `write`, to the descriptor of a stream that holds nothing back."""
    try:
        descriptor = stream.fileno()
    except OSError:  # a stream in memory
        stream.write(text)
        return True
    return write(descriptor, text.encode())


def write(descriptor: int, data: bytes) -> bool:
    """Write at once or not at all, except that a terminal may take a part; whether all went out.  Raises OSError.

    That a terminal has room says not that it has room enough.  Others share its file description, so O_NONBLOCK is set
    on one of our own, where we may have that.
    """
    room = select.poll()
    room.register(descriptor, select.POLLOUT)
    if not room.poll(0):
        return False
    own = _opened_anew(descriptor)
    try:
        return os.write(descriptor if own is None else own, data) == len(data)
    except BlockingIOError:
        return False
    finally:
        if own is not None:
            os.close(own)


def _opened_anew(descriptor: int) -> int | None:
    """The same terminal or pipe, by a file description that blocks nobody; a file has a position to keep."""
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)):
        return None
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
