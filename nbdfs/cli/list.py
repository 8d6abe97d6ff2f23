"""List the mounts and servers of the user: their files, with source, size, state and rates.

STATE is idle, in use, passthrough (the kernel reads and writes the file without telling, so there is no rate), removed
(but open still), or stalled, reconnecting or failed. SIZE is what the file has, USED what is allocated for it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence

from nbdfs.cli import _control
from nbdfs.cli._table import amount, table
from nbdfs.control.client import Process, find_process, processes
from nbdfs.control.rates import Row, rows
from nbdfs.errors import printable

_HEAD = ("NAME", "SIZE", "USED", "STATE", "READ/S", "WRITE/S", "SPEC")
_NUMBERS = (1, 2, 4, 5)
_SAMPLE = 0.25  # seconds over which rates are taken


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mount", nargs="?", metavar="MOUNT", help=_control.MOUNT_HELP)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    found = _look(arguments.mount)
    time.sleep(_SAMPLE)
    before, found = found, _look(arguments.mount)
    for process in found:
        if process.trouble:
            print(f"nbdfs: {process.trouble}", file=sys.stderr)
    listed = list(rows(before, found))
    print(_json(found, listed) if arguments.json else _text(found, listed))
    return int(any(process.trouble for process in found))


def _look(mount: str | None) -> Sequence[Process]:
    return [find_process(mount, "list")] if mount else processes("list")


def _json(found: Iterable[Process], listed: Sequence[Row]) -> str:
    whole = []
    for process in found:
        exports = [
            {
                **row.export,
                "read": {**row.export["read"], "rate": row.read},
                "write": {**row.export["write"], "rate": row.write},
            }
            for row in listed
            if row.process is process.facts
        ]
        if process.facts:
            whole.append({**process.facts, "exports": exports})
    return json.dumps(whole, indent=2)


def _text(found: Iterable[Process], listed: Sequence[Row]) -> str:
    width = shutil.get_terminal_size().columns if os.isatty(1) else 0
    parts = []
    for process in (process for process in found if process.facts):
        facts = process.facts
        where = ", ".join(filter(None, [facts["target"], *facts["uris"]]))
        lines = table(_HEAD, [_line(row) for row in listed if row.process is facts], _NUMBERS, width)
        parts.append("\n".join([printable(f"{where} ({facts['kind']}, process {facts['pid']})"), *lines]))
    return "\n\n".join(parts) or "nothing is mounted or served"


def _line(row: Row) -> tuple[str, ...]:
    export = row.export
    cells = (
        export["name"] or ".",
        amount(export["size"]),
        amount(export.get("allocated")),
        export["state"],
        amount(row.read),
        amount(row.write),
        export["spec"],
    )
    return tuple(map(printable, cells))
