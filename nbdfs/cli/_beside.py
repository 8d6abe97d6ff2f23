"""A command that runs beside a mount or a server, which both end with it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Sequence

import trio

from nbdfs.errors import UserError
from nbdfs.supervise import Stopped

_END_TIMEOUT = 10.0  # seconds the command gets to end after SIGTERM, and again after SIGKILL


async def command_status(words: Sequence[str], stopped: Stopped) -> int:
    """Run a command until it ends or we are asked to stop, which ends it; its exit status, as a shell gives it.

    That is 128 + N if signal N ended it, or came before it began.
    """
    status = 0

    async def stop() -> None:
        nonlocal status
        status = 128 + await stopped()
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop)
        try:
            process = await trio.lowlevel.open_process(list(words))
        except OSError as error:
            raise UserError(f"cannot run {words[0]}: {error.strerror}") from error
        try:
            await process.wait()
        finally:
            await _end(process)
            found = -signal.SIGKILL if process.returncode is None else process.returncode
            status = found if found >= 0 else 128 - found
        nursery.cancel_scope.cancel()
    return status


async def _end(process: trio.Process) -> None:
    """End a command that still runs, and what it has begun: they are asked to, and killed if they do not.

    A shell that dies of a signal leaves the command that it was waiting for.
    """
    if process.poll() is not None:
        return
    with contextlib.ExitStack() as opened:
        family = {process.pid: _handle(process.pid, opened)}
        for number in (signal.SIGTERM, signal.SIGKILL):
            family |= {pid: _handle(pid, opened) for pid in _descendants(family) if pid not in family}
            family = {pid: handle for pid, handle in family.items() if _signalled(handle, number)}
            with trio.move_on_after(_END_TIMEOUT, shield=True):
                for handle in family.values():
                    await trio.lowlevel.wait_readable(handle)
                break
        with trio.move_on_after(_END_TIMEOUT, shield=True):
            await process.wait()


def _handle(pid: int, opened: contextlib.ExitStack) -> int:
    """A descriptor of a process, -1 if it is gone."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return -1
    opened.callback(os.close, handle)
    return handle


def _signalled(handle: int, number: signal.Signals) -> bool:
    """Send a process a signal: whether it is there, and ours to end."""
    try:
        signal.pidfd_send_signal(handle, number)
    except OSError:
        return False
    return True


def _descendants(roots: Iterable[int]) -> list[int]:
    """The processes that some have begun, and those that these have."""
    children: dict[int, list[int]] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", "rb") as file:
            parent = int(file.read().rpartition(b")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry))
    found = [child for root in roots for child in children.get(root, ())]
    for each in found:  # it grows meanwhile
        found += children.get(each, ())
    return found
