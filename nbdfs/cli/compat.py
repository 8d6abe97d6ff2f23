"""Run the command line of another program: nbdfs compat PROGRAM ARGS...

A symbolic link to nbdfs with the program's name does the same.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil

import nbdfs.compat
from nbdfs.errors import UsageError
from nbdfs.registry import nearest

SUMMARY = "run the command line of nbdfuse, nbdcopy, nbdinfo, ..."


def programs() -> list[str]:
    """The programs whose command lines there are: the modules of nbdfs.compat."""
    modules = pkgutil.iter_modules(nbdfs.compat.__path__)
    return sorted(info.name for info in modules if not info.name.startswith("_"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.prepare = list  # type: ignore[attr-defined]  # brackets are the program's own business
    parser.add_argument("program", metavar="PROGRAM", help=", ".join(programs()))
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="ARGS", help="its arguments")


def run(arguments: argparse.Namespace) -> int:
    if arguments.program not in programs():
        raise UsageError(
            f"there is no command line of '{arguments.program}' here{nearest(arguments.program, programs())}"
        )
    return int(importlib.import_module(f"nbdfs.compat.{arguments.program}").run(arguments.words))
