"""Copies that need no event loop: lanes, which are threads, between two NBD exports or two plain files.

It is the same copy with less around it: the start of a short one and the tasks of a long one cost more than moving the
bytes.  What only the engine can do (`nbdfs.copying.job`) is left to it, and so is the rest of a copy whose lanes have
lost their connections.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Protocol

from nbdfs.copying import files
from nbdfs.copying.direct.work import Work
from nbdfs.copying.options import Begun, CopyOptions, Summary, incomplete
from nbdfs.errors import UserError
from nbdfs.plans import Plan
from nbdfs.progress import Display

# What the lanes know; with any other option the engine copies.
_KNOWN = ("connections", "requests", "queue_size", "request_size", "blank", "compare_zeroes", "threads")


class _Copy(Protocol):
    """A copy whose ends are open; `work` is None if the lanes cannot do it."""

    way: str
    name: str

    @property
    def work(self) -> Work | None: ...
    def run(self, display: Display | None) -> None: ...
    def close(self) -> None: ...


def attempt(source: Plan, destination: Plan, options: CopyOptions, display: Display | None) -> Summary | Begun:
    """Copy, or do as much of it as lanes can.  Raises UserError as the engine does."""
    started = time.monotonic()
    copy = _opened(source, destination, options)
    if copy is None or copy.work is None:
        return Begun()
    work = copy.work
    try:
        copy.run(display)
        if failure := work.failure or work.interrupted:
            raise UserError(f"{failure}; {incomplete(copy.name, work.progress)}")
    finally:
        copy.close()
    counters = work.counters
    if not work.flushed:
        return Begun(work.done, counters)
    return Summary(
        source=str(source),
        destination=str(destination),
        size=work.progress.done,
        way=copy.way,
        copied=counters.copied,
        zeroed=counters.zeroed,
        skipped=counters.skipped,
        retries=0,
        seconds=round(time.monotonic() - started, 3),
        flushed=True,
        verified=False,
    )


def _opened(source: Plan, destination: Plan, options: CopyOptions) -> _Copy | None:
    """The copy, if the lanes know its ends and its options."""
    usual = CopyOptions()
    if options != replace(usual, **{name: getattr(options, name) for name in _KNOWN}):
        return None
    names = source.source.name, destination.source.name
    if source.layers or destination.layers or source.argv or destination.argv:
        return None
    if names == ("nbd", "nbd"):
        from nbdfs.copying.direct.nbd import ExportCopy, remote

        one, other = remote(source, options), remote(destination, options)
        return ExportCopy(one, other, options) if one and other else None
    paths = files.plain_path(source), files.plain_path(destination)
    if all(paths) and os.path.isfile(paths[0]) and files.is_regular(paths[1]):
        from nbdfs.copying.direct.plain import FileCopy

        return FileCopy(*paths, options)
    return None
