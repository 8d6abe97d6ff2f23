"""A command's life as a process: into the background once it is up, signals, the PID file."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import trio

from nbdfs import logs
from nbdfs.errors import UserError, reason
from nbdfs.undo import unless_done

Stopped = Callable[[], Awaitable[int]]  # returns the number of the signal that asks to stop, once one has come

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def background(leaving: Callable[[], None] = lambda: None) -> Callable[[], None]:
    """Go on in a child process.  Call before threads or trio exist; returns in the child only.

    The caller's process stays until the child either calls what is returned here (exit status 0) or ends (its exit
    status).  Until then the child keeps the terminal for questions and errors, and stays in the caller's process
    group: while an automount waits, autofs lets nobody but the group of the automounter reach the mount point.
    `leaving` is called just before the terminal is given up.
    """
    logs.flush()  # in one process only, and by a thread
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        up = os.read(reading, 1)
        status = 0 if up else os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.stdout.flush()
        os._exit(status if status >= 0 else 128 - status)
    os.close(reading)

    def ready() -> None:
        leaving()
        os.setsid()
        sys.stdout.flush()
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        os.close(null)
        os.write(writing, b"+")
        os.close(writing)

    return ready


@contextlib.contextmanager
def stop_requests() -> Iterator[Stopped]:
    """While the block runs a stop signal does not end the process; what is given here returns its number.

    After that none does any more: the process is on its way out, and what it cleans up at the end it shall clean up.
    A SIGHUP that is ignored, as nohup(1) has it, stays so; `reload_requests` inside the block takes it for itself.
    """
    asked = False
    early: list[int] = []  # came before trio's receiver was there, or, which nobody looks at, after it was gone

    def note(number: int, _: object) -> None:
        early.append(number)

    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    numbers = [number for number in STOP_SIGNALS if not (ignored and number == signal.SIGHUP)]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        with trio.open_signal_receiver(*numbers) as signals:

            async def stopped() -> int:
                nonlocal asked
                number = early[0] if early else await anext(signals)
                asked = True
                return number

            yield stopped
    finally:
        if not asked:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def reload_requests() -> Iterator[AsyncIterator[int]]:
    """While the block runs SIGHUP does not end the process; each makes what is given here go on.

    One that comes too late to be heeded is forgotten: trio hands those on to whoever had the signal before.
    """
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with trio.open_signal_receiver(signal.SIGHUP) as signals:
            yield signals
    finally:
        signal.signal(signal.SIGHUP, before)


def allow_many_files() -> None:
    """Raise the limit on open descriptors as far as we may: each source takes a few."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextlib.contextmanager
def pid_file(path: str | None) -> Iterator[None]:
    """Keep the process id in a file while the block runs.  Raises UserError if it cannot be written.

    It is a new file, in the place of one that was left behind; anything else is not replaced.
    """
    if not path:
        yield
        return
    try:
        ours = _write_pid(path)
    except OSError as error:
        raise UserError(f"cannot write the PID file {path}: {reason(error)}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.lstat(path), ours):  # not that of whoever came after us
                os.unlink(path)


def _write_pid(path: str) -> os.stat_result:
    """Make the file whole, and only then give it its name."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError(errno.EEXIST, "there is something that is no regular file")
    partial = f"{path}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(partial)
    with open(partial, "x", encoding="ascii") as file:  # new, not what a link of somebody else's leads to
        with unless_done(lambda: os.unlink(partial)):
            file.write(f"{os.getpid()}\n")
            file.flush()
            os.replace(partial, path)
        return os.fstat(file.fileno())
