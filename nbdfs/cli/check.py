"""Say all that is wrong with a configuration, each with its line: nbdfs check [FILE...]

Without FILE the files that are used are checked: that of --config, or /etc/nbdfs.toml and ~/.config/nbdfs.toml.
Several are taken together: names of a later file come before those of an earlier one.
Nothing is opened.  The exit status is 1 if something is wrong.  What is only unwise is a warning.
"""

from __future__ import annotations

import argparse
import os
import sys

from nbdfs.config.files import examine
from nbdfs.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="*", metavar="FILE", help="a configuration file")


def run(arguments: argparse.Namespace) -> int:
    config = examine([os.path.abspath(file) for file in arguments.files])
    if not config.files:
        raise UserError("there is no configuration: write /etc/nbdfs.toml or ~/.config/nbdfs.toml, or name a file")
    for fault in config.warnings:
        print(f"{fault.file}:{fault.line}: warning: {fault.message}", file=sys.stderr)
    for fault in config.faults:
        print(fault, file=sys.stderr)
    return 1 if config.faults else 0
