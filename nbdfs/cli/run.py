"""Mount a source on a private file, run a command with {} replaced by its path, unmount, exit with its status.

Example: nbdfs run memory:1G -- qemu-system-x86_64 -m 1G -machine memory-backend=ram
         -object memory-backend-file,id=ram,size=1G,mem-path={},share=on ...
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace

import trio

from nbdfs import mount
from nbdfs.cli import _observing
from nbdfs.control.methods import Controls
from nbdfs.control.server import controlled
from nbdfs.errors import UsageError, UserError
from nbdfs.fuse.options import HELP, parse_options
from nbdfs.live import Exports
from nbdfs.mount import Mount, Order
from nbdfs.nbd.uri import Address
from nbdfs.progress import Shows, showing

_END_TIMEOUT = 10.0  # seconds the command gets after SIGTERM before it is killed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", metavar="SPEC", help="the source")
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="-- CMD", help="the command; {} stands for the file"
    )
    parser.add_argument("-o", "--options", action="append", default=[], metavar="OPTS", help=HELP)
    parser.add_argument("-r", "--readonly", action="store_true", help="let nobody write")
    _observing.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        raise UsageError("a command is missing: nbdfs run SPEC -- CMD {} ...")
    _observing.set_up_log(arguments)
    display = _observing.progress(arguments, own_terminal=False)
    options = parse_options([*arguments.options, *(["ro"] if arguments.readonly else [])])
    with tempfile.TemporaryDirectory(prefix="nbdfs-run-") as folder:
        order = mount.order([arguments.spec], os.path.join(folder, "disk"), options)
        order = replace(order, metered=arguments.metrics is not None)
        return trio.run(_serve, order, command, arguments.metrics, display)


async def _serve(order: Order, command: Sequence[str], metrics: Address | None, display: Shows[Exports] | None) -> int:
    status = 0
    async with (
        mount.mounted(order) as mounted,
        controlled(Controls(mounted.exports, "run", mounted.session.target).methods()),
        _observing.live_metrics(metrics, mounted.exports),
        showing(mounted.exports, display),
    ):
        words = [word.replace("{}", mounted.session.target) for word in command]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_on_signal, mounted, nursery)
            status = await _run(words)
            nursery.cancel_scope.cancel()
    return status


async def _run(words: Sequence[str]) -> int:
    """The exit status of a command, 128 + N if signal N ended it; ended itself if we are cancelled."""
    try:
        process = await trio.lowlevel.open_process(list(words))
    except OSError as error:
        raise UserError(f"cannot run {words[0]}: {error.strerror}") from error
    try:
        status = await process.wait()
    finally:
        if process.poll() is None:
            with trio.move_on_after(_END_TIMEOUT, shield=True):
                process.terminate()
                await process.wait()
            if process.poll() is None:
                process.kill()
    return status if status >= 0 else 128 - status


async def _stop_on_signal(mounted: Mount, nursery: trio.Nursery) -> None:
    await mounted.session.stopped()
    nursery.cancel_scope.cancel()
