"""Mount a source on a private file, run a command with {} replaced by its path, unmount, exit with its status.

Example: nbdfs run memory:1G -- qemu-system-x86_64 -m 1G -machine memory-backend=ram
         -object memory-backend-file,id=ram,size=1G,mem-path={},share=on ...
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence

import trio

from nbdfs import mount
from nbdfs.cli import _observing
from nbdfs.cli._beside import command_status
from nbdfs.control.methods import Controls
from nbdfs.control.server import controlled
from nbdfs.errors import UsageError
from nbdfs.fuse.options import HELP, parse_options
from nbdfs.live import Exports
from nbdfs.mount import Order
from nbdfs.nbd.uri import Address
from nbdfs.progress import Shows, showing
from nbdfs.records import replace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", metavar="SPEC", help="the source")
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="-- CMD...", help="the command; {} stands for the file"
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
    async with (
        mount.mounted(order) as mounted,
        controlled(Controls(mounted.exports, "run", mounted.session.target).methods()),
        _observing.live_metrics(metrics, mounted.exports),
        showing(mounted.exports, display),
    ):
        words = [word.replace("{}", mounted.session.target) for word in command]
        return await command_status(words, mounted.session.stopped)
