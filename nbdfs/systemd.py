"""What systemd and a service tell each other: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3)."""

from __future__ import annotations

import faulthandler
import functools
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio

from nbdfs.errors import reason
from nbdfs.nursery import serving_nursery

log = logging.getLogger(__name__)

_FIRST = 3  # SD_LISTEN_FDS_START
_NOTIFY_TIMEOUT = 2.0  # seconds
_STATUS_PAUSE = 5.0  # seconds between two looks at the status


def activated() -> bool:
    """Whether sockets were handed to this process."""
    count = os.environ.get("LISTEN_FDS", "")
    return os.environ.get("LISTEN_PID") == str(os.getpid()) and count.isdecimal() and int(count) > 0


def descriptors() -> range:
    """The sockets this process was started with.  Forgets them: a second call gives none, children hear nothing."""
    count = int(os.environ["LISTEN_FDS"]) if activated() else 0
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    return range(_FIRST, _FIRST + count)


def notify(*assignments: str) -> None:
    """Tell the service manager, in one message, as `READY=1` or `STOPPING=1`.  Nothing happens where there is none."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    try:
        _sender().sendto("\n".join(assignments).encode(), "\0" + path[1:] if path.startswith("@") else path)
    except OSError as error:
        log.warning("cannot tell the service manager how it goes: %s", reason(error))


@functools.cache
def _sender() -> socket.socket:
    """One for all messages: the watchdog wants to hear of a process that is out of descriptors, too."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.settimeout(_NOTIFY_TIMEOUT)
    return sock


@asynccontextmanager
async def service(status: Callable[[], str]) -> AsyncIterator[None]:
    """Be a service that is up while the block runs: READY, its `status` (one line) from time to time, then STOPPING.

    If the manager keeps a watchdog, it is told twice in each interval that this event loop is alive.  One that is stuck
    is ended by SIGABRT, and then the stack of every thread goes to stderr.
    """
    told = status()
    notify("READY=1", f"STATUS={told}")
    try:
        async with serving_nursery() as nursery:
            if os.environ.get("NOTIFY_SOCKET"):
                nursery.start_soon(_report, status, told)
            yield
    finally:
        notify("STOPPING=1")


@contextmanager
def reloading() -> Iterator[None]:
    """Tell the manager that the configuration is read again in the block."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
    try:
        yield
    finally:
        notify("READY=1")


async def _report(status: Callable[[], str], told: str) -> None:
    watchdog = _watchdog_interval()
    if watchdog:
        faulthandler.enable()
    while True:
        await trio.sleep(min(_STATUS_PAUSE, watchdog / 2) if watchdog else _STATUS_PAUSE)
        now = status()
        news = [f"STATUS={now}"] if now != told else []
        if watchdog:
            news.append("WATCHDOG=1")
        if news:
            notify(*news)
        told = now


def _watchdog_interval() -> float | None:
    """Seconds within which the manager wants to hear of this process; None if it keeps no watchdog on it."""
    interval, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not interval.isdigit() or pid not in ("", str(os.getpid())):
        return None
    return int(interval) / 1e6 or None
