"""How long to look for the next request before sleeping: adaptive polling.

After an answer the next request often follows within a few microseconds, sooner than a sleep and a wake-up take.  So
the reader looks again for a while, but only as long as requests do come that fast.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import trio

_UNYIELDING = 64  # one look out of so many is made without giving the CPU away first


class Patience:
    """The polling of one reader, for `poll_ns` at most; 0 never polls.

    A lone client makes its next request only once it runs: while the first look after an answer is in vain, the CPU is
    given away before it.
    """

    def __init__(self, poll_ns: int) -> None:
        self._poll_ns = poll_ns
        self._until = 0  # ns of the monotonic clock; 0: not polling
        self._looks = 0
        self._lone = False
        self._yielded = False
        self._first = False  # no look has been in vain since the last answer

    def answered(self, now: int) -> None:
        """A request was taken at `now`, in ns of the monotonic clock."""
        if not self._until:
            return
        self._until = now + self._poll_ns
        if self._first and not self._yielded:
            self._lone = False
        self._first = True
        self._looks += 1
        self._yielded = self._lone and self._looks % _UNYIELDING > 0
        if self._yielded:
            os.sched_yield()

    def look_again(self, poller: Callable[[], bool] | None) -> bool:
        """Nothing was there: whether to look again at once.  `poller` brings requests in flight forward."""
        if self._first:
            self._first = False
            self._lone = True
        if not self._until:
            return False
        came = poller is not None and poller()
        now = time.monotonic_ns()
        if came:
            self._until = now + self._poll_ns
        elif now < self._until:
            os.sched_yield()
        return now < self._until

    async def sleep(self, device: int) -> None:
        """Wait until the device is readable.  A short sleep begins polling, a long one ends it."""
        began = time.monotonic_ns()
        await trio.lowlevel.wait_readable(device)
        woken = time.monotonic_ns()
        self._until = woken + self._poll_ns if woken - began < 4 * self._poll_ns else 0
