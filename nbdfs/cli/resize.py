"""Change the size of a file in a mount, or of an export of a server, where its source can.

A file grows under its users; memory, and whatever shrinks, must not be open meanwhile.  NBD clients see the new size
when they connect anew.
"""

from __future__ import annotations

import argparse

from nbdfs.cli import _control
from nbdfs.control.client import find
from nbdfs.units import parse_size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _control.add_mount(parser)
    parser.add_argument(
        "name", nargs="?", default="", metavar="NAME", help="the name of a file in it, if it is a directory"
    )
    parser.add_argument("size", type=parse_size, metavar="SIZE", help="as 512M or 20G")
    parser.add_argument("--shrink", action="store_true", help="cut off what is beyond a smaller size")


def run(arguments: argparse.Namespace) -> int:
    with find(arguments.mount) as process:
        process.call("resize", name=arguments.name, size=arguments.size, shrink=arguments.shrink)
    return 0
