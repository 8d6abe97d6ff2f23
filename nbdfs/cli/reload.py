"""Apply changes of the configuration to mounts and servers that run: nbdfs reload [MOUNT|NAME...]

Without a name all that come from a configuration are reloaded.  Files are added, removed and replaced; what did not
change is not touched, and whoever has a file open keeps it.  Other options take effect at the next start.
A configuration that is wrong changes nothing.
"""

from __future__ import annotations

import argparse

from nbdfs.cli import _control
from nbdfs.control.client import Client, find_process, processes
from nbdfs.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mounts", nargs="*", metavar="MOUNT", help=_control.MOUNT_HELP)


def run(arguments: argparse.Namespace) -> int:
    running = [str(process.facts["pid"]) for process in processes() if process.facts.get("name")]
    if not arguments.mounts and not running:
        raise UserError("no mount or server of yours comes from a configuration")
    return _control.for_each(arguments.mounts or running, _reload)


def _reload(place: str) -> None:
    process = find_process(place)
    if not process.facts.get("name"):
        raise UserError(f"{place} does not come from a configuration: there is nothing to reload")
    with Client(process.path) as client:
        done = client.call("reload")
    if done["problems"]:
        raise UserError(f"{place}: {done['outcome']}")
    print(f"{place}: {done['outcome']}")
