"""TCP as a reader wants it: small messages go out at once, and what came is acknowledged soon.

libtorrent leaves its sockets to Nagle's algorithm.  A read that nobody foresaw tells a peer "interested" and then asks
for blocks: the second message would wait for the acknowledgement of the first, which a kernel delays by 40 ms.  The
last block of a piece waits in the same way at a peer that runs such a program.
"""

from __future__ import annotations

import contextlib
import os
import socket

_DELACK_MAX_US = 46  # TCP_DELACK_MAX_US of linux/tcp.h, since Linux 6.17; unknown to Python
_SOONEST = 10_000  # microseconds: no kernel takes less than two of its ticks, which are 4 ms as a rule


def hasten() -> None:
    """Set it for every TCP connection of this process; those that come in have it from their listener."""
    for name in os.listdir("/proc/self/fd"):
        # What is no TCP socket, or was closed by another thread meanwhile, refuses; an older kernel the second option.
        with contextlib.suppress(OSError):
            _hasten(int(name))


def _hasten(descriptor: int) -> None:
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=descriptor)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.IPPROTO_TCP, _DELACK_MAX_US, _SOONEST)
    finally:
        connection.detach()
