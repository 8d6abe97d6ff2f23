"""Add files to a mounted directory, or exports to a server, while it is in use.

Example: nbdfs add /mnt/disks vm1/root=/srv/root.img scratch=memory:1G
"""

from __future__ import annotations

import argparse

from nbdfs.cli import _control
from nbdfs.control.client import find
from nbdfs.names import specs_by_name
from nbdfs.relocate import absolute


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _control.add_mount(parser)
    parser.add_argument("specs", nargs="+", metavar="NAME=SPEC", help="a source and the name of its file")
    parser.add_argument("--replace", action="store_true", help="put each in the place of the file of that name; who "
                        "has the old one open keeps it")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    specs = {name: absolute(spec) for name, spec in specs_by_name(arguments.specs).items()}
    with find(arguments.mount) as process:
        return _control.for_each(
            specs, lambda name: process.call("add", name=name, spec=specs[name], replace=arguments.replace)
        )
