"""Run the command line of another program: nbdfs compat PROGRAM ARGS...

A symbolic link to nbdfs with the program's name does the same.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import pkgutil
from collections.abc import Iterator

import nbdfs.compat
from nbdfs.errors import UsageError, leaves
from nbdfs.registry import nearest


def programs() -> list[str]:
    """The programs whose command lines there are: the modules of nbdfs.compat, with `_` for a dot."""
    modules = pkgutil.iter_modules(nbdfs.compat.__path__)
    return sorted(info.name.replace("_", ".") for info in modules if not info.name.startswith("_"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.prepare = list  # type: ignore[attr-defined]  # brackets are the program's own business
    parser.add_argument("program", metavar="PROGRAM", help=", ".join(programs()))
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="ARGS...", help="its arguments")


def run(arguments: argparse.Namespace) -> int:
    program = arguments.program.replace(".fuse.", ".")  # mount(8) asks for mount.nbdfs and for mount.fuse.nbdfs
    if program not in programs():
        raise UsageError(f"there is no command line of '{program}' here{nearest(program, programs())}")
    with _as_these_say():
        return int(importlib.import_module(f"nbdfs.compat.{program.replace('.', '_')}").run(arguments.words))


@contextlib.contextmanager
def _as_these_say() -> Iterator[None]:
    """Let misuse have the status that all these programs give it: 2 is an answer of nbdinfo's."""
    try:
        yield
    except* UsageError as group:
        for error in leaves(group):
            error.exit_status = 1
        raise
