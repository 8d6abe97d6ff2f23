"""Show the files of all mounts and servers of the user, the busiest first, anew every second.

`q` ends it. A rate of `-` is not known: the kernel reads and writes a file in passthrough without telling.
"""

from __future__ import annotations

import argparse
import contextlib
import curses
import os
import shutil
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nbdfs.cli._table import amount, beginning, table
from nbdfs.control.client import Process, processes
from nbdfs.control.rates import Row, rows
from nbdfs.errors import UsageError, UserError, printable
from nbdfs.units import parse_duration

if TYPE_CHECKING:
    from curses import window

_HEAD = ("READ/S", "WRITE/S", "SIZE", "USED", "STATE", "USERS", "FILE")
_NUMBERS = (0, 1, 2, 3, 5)
_ESCAPE = 27


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="print it once and end")
    parser.add_argument("--interval", type=parse_duration, default=1.0, metavar="SECONDS",
                        help="between two looks (default 1 s)")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    if not 0.1 <= arguments.interval <= 3600:
        raise UsageError("--interval is from 0.1 s to an hour")
    if arguments.once:
        before = processes("list")
        time.sleep(arguments.interval)
        above, listed = _page(before, processes("list"), shutil.get_terminal_size().columns)
        print("\n".join([*above, *listed]))
        return 0
    if not (os.isatty(0) and os.isatty(1)):
        raise UsageError("this is no terminal: use --once")
    try:
        curses.setupterm()
        if not curses.tigetstr("cup"):
            raise curses.error("its cursor cannot be moved")
        curses.wrapper(_watch, arguments.interval)
    except curses.error as error:
        raise UserError(f"cannot draw on this terminal ({error}): use --once") from error
    return 0


def _watch(screen: window, interval: float) -> None:
    for wish in (curses.use_default_colors, lambda: curses.curs_set(0)):
        with contextlib.suppress(curses.error):  # a terminal need have neither colours nor a cursor that can be hidden
            wish()
    before = processes("list")
    while True:
        found = processes("list")
        _draw(screen, before, found)
        before = found
        if _left(screen, interval):
            return


def _left(screen: window, interval: float) -> bool:
    """Wait for the next look; whether the user is done."""
    end = time.monotonic() + interval
    while (rest := end - time.monotonic()) > 0:
        screen.timeout(max(int(rest * 1000), 1))
        key = screen.getch()
        if key in (ord("q"), ord("Q"), _ESCAPE):
            return True
        if key == curses.KEY_RESIZE:
            return False
    return False


def _draw(screen: window, before: Sequence[Process], found: Sequence[Process]) -> None:
    height, width = screen.getmaxyx()
    above, listed = _page(before, found, width - 1)
    screen.erase()
    for at, line in enumerate([*above, *listed][:height]):
        look = curses.A_REVERSE if at == len(above) else curses.A_NORMAL
        screen.addstr(at, 0, beginning(line, width - 1), look)
    screen.refresh()


def _page(before: Sequence[Process], found: Sequence[Process], width: int) -> tuple[list[str], list[str]]:
    """What there is in all, with what does not answer, and the table."""
    listed = sorted(rows(before, found), key=lambda row: (-(row.read or 0) - (row.write or 0), row.place))
    read, write = (sum(filter(None, rates)) for rates in ([row.read for row in listed], [row.write for row in listed]))
    summary = f"processes: {len(found)}, files: {len(listed)}, reading {amount(read)}/s, writing {amount(write)}/s"
    troubles = [printable(process.trouble) for process in found if process.trouble]
    above = [f"{time.strftime('%H:%M:%S')}  {summary}", *troubles]
    return [beginning(line, width) for line in above], table(_HEAD, map(_line, listed), _NUMBERS, width)


def _line(row: Row) -> tuple[str, ...]:
    export = row.export
    cells = (
        amount(row.read),
        amount(row.write),
        amount(export["size"]),
        amount(export.get("allocated")),
        export["state"],
        str(export.get("handles", 0) + export["clients"]),
        row.place,
    )
    return tuple(map(printable, cells))
