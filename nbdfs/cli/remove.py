"""Remove files from a mounted directory, or exports from a server.

The name is gone at once.  Who has the file open keeps it, and an NBD client its export; the source is flushed and
closed when the last one is done.
"""

from __future__ import annotations

import argparse
import time

from nbdfs.cli import _control
from nbdfs.control.client import Client, find
from nbdfs.errors import UserError
from nbdfs.units import parse_duration

_LOOK = 0.5  # seconds from one look for the end to the next


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _control.add_mount(parser)
    parser.add_argument("names", nargs="+", metavar="NAME", help="the name of a file in it")
    parser.add_argument("--wait", type=parse_duration, metavar="SECONDS", default=0.0,
                        help="until the source is closed; it is an error if it is not by then")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    with find(arguments.mount) as process:
        return _control.for_each(arguments.names, lambda name: _remove(process, name, arguments.wait))


def _remove(process: Client, name: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    removed = process.call("remove", name=name, wait=seconds)
    closed = removed["closed"]
    while not closed and (left := end - time.monotonic()) > 0:  # one request does not wait for so long
        time.sleep(min(left, _LOOK))
        closed = removed["id"] not in {export["id"] for export in process.call("list")["exports"]}
    if closed:
        return
    if seconds:
        raise UserError(f"{name} is removed, but was not closed within {seconds:g} s: somebody uses it still")
    print(f"{name} is in use still: its source is closed when the last user is done")
