"""Show a source as an ordinary file: cover FILE, or DIR with one file for each NAME=SPEC.

FILE is created if it is not there, and removed again at the end.  The command stays in the foreground
until it is stopped (Ctrl-C, SIGTERM) or FILE is unmounted; all is flushed then.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack

import trio

from nbdfs import supervise
from nbdfs.cli import _mounting, _serving
from nbdfs.cli._serving import Service
from nbdfs.cli.main import set_up_logging
from nbdfs.errors import UsageError
from nbdfs.fuse.options import HELP, parse_options
from nbdfs.units import format_size

SUMMARY = "show a source as a file"

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="+", metavar="SPEC... FILE", help="SPEC FILE, or NAME=SPEC... DIR")
    parser.add_argument("-o", "--options", action="append", default=[], metavar="OPTS", help=HELP)
    parser.add_argument("-r", "--readonly", action="store_true", help="let nobody write")
    _serving.add_listen_arguments(parser)
    parser.add_argument(
        "-b", "--background", action="store_true", help="return once the mount is up, go on in the background"
    )
    parser.add_argument("-P", "--pidfile", metavar="FILE", help="write the process id there once the mount is up")
    parser.add_argument("--log-file", metavar="FILE", default="", help="log there instead of to stderr")


def run(arguments: argparse.Namespace) -> int:
    if len(arguments.words) < 2:
        raise UsageError("write the source first, then the file it shall cover: nbdfs mount SPEC FILE")
    *specs, target = arguments.words
    texts = [*arguments.options, *(["ro"] if arguments.readonly else [])]
    order = _mounting.order(specs, target, parse_options(texts))
    service = _serving.service(arguments)
    if arguments.log_file:
        set_up_logging(arguments.verbose, arguments.log_file)
    ready = supervise.background() if arguments.background else lambda: None
    trio.run(_serve, order, service, arguments, ready)
    return 0


async def _serve(
    order: _mounting.Order, service: Service, arguments: argparse.Namespace, ready: Callable[[], None]
) -> None:
    async with _mounting.live(order) as (session, exports), AsyncExitStack() as stack:
        stack.enter_context(supervise.pid_file(arguments.pidfile))
        sizes = ", ".join(format_size(export.source.info.size) for export in list(exports.values())[:3])
        how = "in passthrough" if session.passthrough.enabled else "by the data plane"
        log.info("mounted %s on %s (%s), served %s", session.options.fsname, session.target, sizes, how)
        if service.place.uris:
            _, uris = await stack.enter_async_context(_serving.live_server(service, exports.values()))
            for uri in uris:
                print(uri, flush=True)
        ready()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_after, session.stopped, nursery)
            nursery.start_soon(_cancel_after, session.ended.wait, nursery)


async def _cancel_after(event: Callable[[], object], nursery: trio.Nursery) -> None:
    await event()  # type: ignore[misc]
    nursery.cancel_scope.cancel()
