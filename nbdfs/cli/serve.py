"""Serve a source over NBD: SPEC as the default export, or any number of NAME=SPEC.

NAME alone, where there is no such file, is a server of the configuration, [serve.NAME]; at SIGHUP and `nbdfs reload`
changes of its files are applied.
Without an address it listens on localhost, port 10809, or on the sockets that systemd hands over.  The URI at
which it is reached is printed.  It stays in the foreground until it is stopped (Ctrl-C, SIGTERM, its terminal closed).
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable, Sequence
from functools import partial

import trio

from nbdfs import live, logs, supervise, systemd
from nbdfs.cli import _observing, _serving
from nbdfs.cli._beside import command_status
from nbdfs.cli._configured import from_configuration, is_name
from nbdfs.cli._serving import Place, Service
from nbdfs.config.reload import reloading
from nbdfs.control.methods import Controls
from nbdfs.control.server import controlled
from nbdfs.errors import UsageError, UserError, reason
from nbdfs.export import activity
from nbdfs.live import Exports
from nbdfs.names import named_plans
from nbdfs.nbd.server import Server
from nbdfs.nbd.stream import PipeStream
from nbdfs.nbd.uri import Tcp, Unix, Uri, Vsock
from nbdfs.progress import Shows, showing
from nbdfs.stack import Plan
from nbdfs.supervise import Stopped


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(configured="")
    parser.add_argument("specs", nargs="+", metavar="SPEC", help="SPEC, or NAME=SPEC for several exports, or NAME")
    parser.add_argument("-r", "--readonly", action="store_true", help="let nobody write")
    parser.add_argument(
        "-U", "--unix", action="append", default=[], metavar="SOCKET", help="a Unix socket, - for a private one"
    )
    _serving.add_port_argument(parser)
    parser.add_argument("-i", "--address", metavar="ADDRESS", help="the TCP address (the default is localhost)")
    parser.add_argument("--vsock", action="store_true", help="listen for virtual machines instead of on TCP")
    parser.add_argument("--fd", type=int, metavar="N", help="listen on this descriptor, which the parent has made")
    parser.add_argument("-s", "--stdio", action="store_true", help="serve one client on standard input and output")
    parser.add_argument("--run", metavar="CMD", help="run a shell command that finds $uri, $unixsocket, $port and "
                        "$exportname, then stop with its exit status")  # fmt: skip
    _serving.add_listen_arguments(parser)
    parser.add_argument("-b", "--background", action="store_true", help="return once it serves, go on behind")
    parser.add_argument("-P", "--pidfile", metavar="FILE", help="write the process id there once it serves")
    _observing.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    if is_name(arguments.specs) and not os.path.exists(arguments.specs[0]):
        arguments = from_configuration("serve", arguments.specs[0], arguments)
    plans = named_plans(arguments.specs)
    what = _serving.service(arguments, _place(arguments))
    _observing.set_up_log(arguments)
    display = _observing.progress(arguments, own_terminal=not arguments.background and arguments.run is None)
    ready = supervise.background(logs.leave_terminal) if arguments.background else lambda: None
    return trio.run(_serve, plans, what, arguments, ready, display)


def _place(arguments: argparse.Namespace) -> Place:
    uris, private = _serving.address_uris(arguments.unix, arguments.address, arguments.port, arguments.vsock)
    given = bool(uris or private or arguments.listen or arguments.fd is not None)
    if arguments.stdio:
        if given or arguments.run is not None or arguments.background:
            raise UsageError("--stdio goes with no address, --run or --background")
        return Place(stdio=True)
    if arguments.background and systemd.activated():
        raise UsageError("--background does not go with sockets from the service manager, which watches this process")
    if not given and arguments.run is not None:
        private = True
    elif not given and not systemd.activated():
        uris = (Uri(Tcp()),)
    return Place(uris, private, arguments.fd)


async def _serve(
    plans: dict[str, Plan],
    what: Service,
    arguments: argparse.Namespace,
    ready: Callable[[], None],
    display: Shows[Exports] | None,
) -> int:
    async with live.opened(
        readonly=arguments.readonly, allow_empty=True, metered=arguments.metrics is not None
    ) as exports:
        await exports.open_all(plans)
        async with _observing.live_metrics(arguments.metrics, exports), showing(exports, display):
            return await serve_exports(
                what, exports, run=arguments.run, pidfile=arguments.pidfile, ready=ready, name=arguments.configured
            )


async def serve_exports(
    what: Service,
    exports: Exports,
    *,
    run: str | None = None,
    pidfile: str | None = None,
    ready: Callable[[], None] = lambda: None,
    show: bool = True,
    name: str = "",
) -> int:
    """Serve until stopped, until the client on standard input leaves, or until `run` ends; give the exit status.

    `name` is that of the server in the configuration, if it comes from there.
    """
    # From before the sockets exist to after they are gone a signal asks for an orderly end and does not kill.
    with supervise.stop_requests() as stopped:
        async with _serving.live_server(what, exports) as (server, uris):
            with supervise.pid_file(pidfile):
                if show and run is None:
                    for uri in uris:
                        print(uri, flush=True)
                controls = Controls(exports, "serve", uris=uris, name=name)
                async with (
                    reloading(name, exports) as more,
                    controlled({**controls.methods(), **more}),
                    systemd.service(partial(activity, exports)),
                ):
                    ready()
                    if run is not None:
                        return await _run(run, uris, stopped)
                    if what.place.stdio:
                        await _stdio(server, stopped)
                    else:
                        await stopped()
    return 0


async def _stdio(server: Server, stopped: Stopped) -> None:
    """Serve the client at the other end of standard input and output, until it leaves or we are told to stop."""
    # Nothing else may write to what is the client's stream.
    reading, writing = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    try:
        stream = PipeStream(reading, writing, "client on standard input")
    except OSError as error:
        raise UserError(f"cannot serve on standard input and output: {reason(error)}") from error
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_finish_after, stopped, server, nursery)
        await server.handle(stream)
        nursery.cancel_scope.cancel()


async def _finish_after(stopped: Stopped, server: Server, nursery: trio.Nursery) -> None:
    await stopped()
    server.finish()
    nursery.cancel_scope.deadline = trio.current_time() + server.limits.stop


async def _run(command: str, uris: Sequence[Uri], stopped: Stopped) -> int:
    """Run a shell command beside the server; its exit status, as a shell gives it."""
    addresses = [uri.address for uri in uris]
    values = {
        "uri": str(uris[0]),
        "nbd": str(uris[0]),
        "unixsocket": next((str(address) for address in addresses if isinstance(address, Unix)), ""),
        "port": next((str(address.port) for address in addresses if isinstance(address, Tcp | Vsock)), ""),
        "exportname": uris[0].export,
    }
    script = "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items()) + command
    return await command_status(["/bin/sh", "-c", script], stopped)
