"""What the commands share that talk to running mounts and servers."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable

from nbdfs.cli import main
from nbdfs.errors import UserError

MOUNT_HELP = "the mounted file or directory; of a server its URI, its name in the configuration or process id"


def add_mount(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mount", metavar="MOUNT", help=MOUNT_HELP)


def for_each(items: Iterable[str], do: Callable[[str], None]) -> int:
    """Do something for each item, also if one before failed; give the exit status."""
    status = 0
    for item in items:
        try:
            do(item)
        except UserError as error:
            main.report(error)
            status = max(status, error.exit_status)
    return status
