"""Whether the kernel makes writers to the page cache wait for the disk: it does when too much of it is dirty.

Such a write is one that takes long and sleeps meanwhile.  One that only takes long may have lost the CPU to others; so
after a long one the next are watched more closely, which costs two system calls each.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable

_SLOW = 0.005  # seconds after which a write was no mere copy
_DISTRUST = 1.0  # seconds for which writers then need a thread


class Throttle:
    """What was seen of the writes to one file."""

    def __init__(self) -> None:
        self._waits_until = 0.0
        self._watched_until = 0.0

    def waits(self) -> bool:
        """Whether a write has to be expected to wait, and needs a thread."""
        return time.monotonic() < self._waits_until

    def watch(self, write: Callable[[], None]) -> None:
        """Carry out a write on the spot."""
        began = time.monotonic()
        watched = began < self._watched_until
        slept = _sleeps() if watched else 0
        write()
        ended = time.monotonic()
        if ended - began > _SLOW:
            if watched and _sleeps() > slept:
                self._waits_until = ended + _DISTRUST
            self._watched_until = ended + 2 * _DISTRUST


def _sleeps() -> int:
    """How often this thread has given up the CPU to wait."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
