"""Show a source as an ordinary file: cover FILE, or DIR with one file for each NAME=SPEC.

NAME alone is a mount of the configuration, [mount.NAME]; at SIGHUP and `nbdfs reload` changes of its files are applied.
FILE is created if it is not there, and removed again at the end.  The command stays in the foreground
until it is stopped (Ctrl-C, SIGTERM, its terminal closed) or FILE is unmounted; all is flushed then.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial

import trio

from nbdfs import logs, mount, supervise, systemd
from nbdfs.cli import _observing, _serving
from nbdfs.cli._configured import from_configuration, is_name
from nbdfs.cli._serving import Service
from nbdfs.config.reload import reloading
from nbdfs.control.methods import Controls
from nbdfs.control.server import controlled
from nbdfs.errors import UsageError
from nbdfs.export import activity
from nbdfs.fuse.options import HELP, parse_options
from nbdfs.live import Exports
from nbdfs.mount import Order
from nbdfs.nbd.uri import Uri
from nbdfs.progress import Shows, showing
from nbdfs.records import replace
from nbdfs.units import format_size

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(configured="")
    parser.add_argument("words", nargs="+", metavar="SPEC... FILE", help="SPEC FILE, or NAME=SPEC... DIR, or NAME")
    parser.add_argument("-o", "--options", action="append", default=[], metavar="OPTS", help=HELP)
    parser.add_argument("-r", "--readonly", action="store_true", help="let nobody write")
    _serving.add_listen_arguments(parser)
    parser.add_argument(
        "-b", "--background", action="store_true", help="return once the mount is up, go on in the background"
    )
    parser.add_argument("-P", "--pidfile", metavar="FILE", help="write the process id there once the mount is up")
    _observing.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    if is_name(arguments.words):
        arguments = from_configuration("mount", arguments.words[0], arguments)
    if len(arguments.words) < 2:
        raise UsageError("write the source first, then the file it shall cover: nbdfs mount SPEC FILE")
    *specs, target = arguments.words
    texts = [*arguments.options, *(["ro"] if arguments.readonly else [])]
    order = mount.order(specs, target, parse_options(texts))
    order = replace(order, metered=arguments.metrics is not None)
    if not arguments.listen and (arguments.tls_certificates or arguments.tls_psk or arguments.tls not in (None, "off")):
        raise UsageError("TLS is for those who come by NBD: give --listen too")
    service = _serving.service(arguments)
    _observing.set_up_log(arguments)
    display = _observing.progress(arguments, own_terminal=not arguments.background)
    ready = supervise.background(logs.leave_terminal) if arguments.background else lambda: None
    trio.run(_serve, order, service, arguments, ready, display)
    return 0


async def _serve(
    order: Order,
    service: Service,
    arguments: argparse.Namespace,
    ready: Callable[[], None],
    display: Shows[Exports] | None,
) -> None:
    async with mount.mounted(order) as mounted, AsyncExitStack() as stack:
        session, exports = mounted.session, mounted.exports
        sizes = ", ".join(format_size(export.source.info.size) for export in list(exports)[:3])
        how = "in passthrough" if session.passthrough.enabled else "by the data plane"
        log.info("mounted %s on %s (%s), served %s", session.options.fsname, session.target, sizes, how)
        uris: list[Uri] = []
        if service.place.uris:
            _, uris = await stack.enter_async_context(_serving.live_server(service, exports))
            for uri in uris:
                print(uri, flush=True)
        await stack.enter_async_context(_observing.live_metrics(arguments.metrics, exports))
        more = await stack.enter_async_context(reloading(arguments.configured, exports))
        controls = Controls(exports, "mount", session.target, uris, name=arguments.configured)
        await stack.enter_async_context(controlled({**controls.methods(), **more}))
        stack.enter_context(supervise.pid_file(arguments.pidfile))  # the last, since it tells that all is up
        ready()
        async with systemd.service(partial(activity, exports)), showing(exports, display):
            await mounted.over()
