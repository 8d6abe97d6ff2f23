"""Bring up the mounts and servers of the configuration, all or those of the names given, and look after them.

Each is a process of its own.  One that fails is reported, and the others go on.  At SIGHUP the configuration is read
again: what is new is started, what is gone is ended, files are added, removed and replaced.
The exit status is 1 if one has failed.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import AsyncIterator, Callable

import trio

from nbdfs import logs, supervise, systemd
from nbdfs.config.fleet import Fleet, fleet
from nbdfs.errors import UserError
from nbdfs.nursery import serving_nursery

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="a mount or server of the configuration")
    parser.add_argument("-b", "--background", action="store_true", help="return once each is up or has failed")
    parser.add_argument("-P", "--pidfile", metavar="FILE", help="write the process id there then")


def run(arguments: argparse.Namespace) -> int:
    ready = supervise.background(logs.leave_terminal) if arguments.background else lambda: None
    return trio.run(_run, arguments, ready)


async def _run(arguments: argparse.Namespace, ready: Callable[[], None]) -> int:
    with supervise.stop_requests() as stopped, supervise.reload_requests() as hangups:
        async with fleet(arguments.names, arguments.verbose) as processes, serving_nursery() as nursery:
            nursery.start_soon(_until, stopped, nursery)
            processes.start()
            await processes.settled()
            if processes.up:
                with supervise.pid_file(arguments.pidfile):
                    async with systemd.service(processes.status):
                        ready()
                        nursery.start_soon(_reload, processes, hangups)
                        await processes.ended()
    return int(processes.failed)


async def _until(stopped: Callable[[], object], nursery: trio.Nursery) -> None:
    await stopped()  # type: ignore[misc]
    nursery.cancel_scope.cancel()


async def _reload(processes: Fleet, hangups: AsyncIterator[int]) -> None:
    async for _ in hangups:
        with systemd.reloading():
            try:
                await processes.reload()
            except UserError as error:
                log.error("reload: nothing is changed: %s", error)
