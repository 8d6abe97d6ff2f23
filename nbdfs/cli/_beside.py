"""A command that runs beside a mount or a server, which both end with it."""

from __future__ import annotations

import signal
from collections.abc import Sequence

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
    """End a command that still runs: it is asked to, and killed if it does not."""
    for step in (process.terminate, process.kill):
        if process.poll() is None:
            step()
            with trio.move_on_after(_END_TIMEOUT, shield=True):
                await process.wait()
