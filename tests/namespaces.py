"""A network of a test's own, for what would look for the world outside or touch addresses that are not ours."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

INSIDE = "192.0.2.1"  # our address on the link that leads out

_CLONE_NEWNET = 0x40000000
_ALL = 3  # ETH_P_ALL: every packet
_LINK = "link add inside type veth peer name outside"
_SETUP = (
    "link set lo up",
    f"addr add {INSIDE}/24 dev inside",
    "link set inside up",
    "link set outside up",
    "route add default dev inside",
)
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def own_network() -> Iterator[socket.socket]:
    """A network of loopback and a link that leads nowhere; gives a packet socket that gets all that leaves by it.

    It is this thread's, and that of the threads and processes that it starts in the block.
    """
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _checked(_libc.unshare(_CLONE_NEWNET))
        try:
            made = subprocess.run(["ip", *_LINK.split()], capture_output=True, text=True)
            if made.returncode:
                pytest.skip(f"this kernel has no virtual links: {made.stderr.strip()}")
            for words in _SETUP:
                subprocess.run(["ip", *words.split()], check=True)
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(_ALL)) as packets:
                packets.bind(("outside", 0))
                yield packets
        finally:
            _checked(_libc.setns(before, _CLONE_NEWNET))
    finally:
        os.close(before)


def _checked(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
