"""Copies that need no event loop: lanes, which are threads, between NBD exports and plain files.

It is the same copy with less around it: the start of a short one and the tasks of a long one cost more than moving the
bytes.  What only the engine can do (`nbdfs.copying.job`) is left to it, and so is the rest of a copy whose lanes have
lost their connections.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

from nbdfs.copying import files
from nbdfs.copying.direct.work import Work
from nbdfs.copying.options import Begun, CopyOptions, Summary, incomplete
from nbdfs.errors import UserError
from nbdfs.plans import Plan
from nbdfs.progress import Display
from nbdfs.records import replace

if TYPE_CHECKING:
    from nbdfs.copying.direct.lanes import DestinationEnd, SourceEnd
    from nbdfs.copying.direct.remote import RemoteEnd

# What the lanes know; with any other option the engine copies.
_KNOWN = ("connections", "requests", "queue_size", "request_size", "blank", "compare_zeroes", "threads")


class _Copy(Protocol):
    """A copy whose ends are open; `work` is None if the lanes cannot do it.

    `name` is that of the destination, empty if there is none.
    """

    way: str
    name: str
    created: bool
    flushes: bool

    @property
    def work(self) -> Work | None: ...
    def run(self, display: Display | None) -> None: ...
    def close(self) -> None: ...


def attempt(source: Plan, destination: Plan | None, options: CopyOptions, display: Display | None) -> Summary | Begun:
    """Copy, or do as much of it as lanes can; without a destination everything is thrown away.

    Raises UserError as the engine does.
    """
    started = time.monotonic()
    copy = _opened(source, destination, options)
    if copy is None:
        return Begun()
    work = copy.work
    try:
        if work is None:
            return Begun()
        copy.run(display)
        if failure := work.failure or work.interrupted:
            left = incomplete(copy.name, work.progress) if copy.name else "nothing was written"
            raise UserError(f"{failure}; {left}")
    finally:
        copy.close()
    counters = work.counters
    if not work.flushed:
        return Begun(work.done, counters, copy.created, touched=True)
    return Summary(
        source=str(source),
        destination=str(destination or files.NULL),
        size=work.progress.done,
        way=copy.way,
        copied=counters.copied,
        zeroed=counters.zeroed,
        skipped=counters.skipped,
        retries=0,
        seconds=round(time.monotonic() - started, 3),
        flushed=copy.flushes,
        verified=False,
    )


def _opened(source: Plan, destination: Plan | None, options: CopyOptions) -> _Copy | None:
    """The copy, if the lanes know its ends and its options."""
    usual = CopyOptions()
    if options != replace(usual, **{name: getattr(options, name) for name in _KNOWN}):
        return None
    one, other = _readable(source), files.plain_path(destination) if destination else ""
    if one and other and files.is_regular(other):
        from nbdfs.copying.direct.plain import FileCopy

        return FileCopy(one, other, options)
    begin, end = _source(source, options), _destination(destination, options)
    if begin and end:
        from nbdfs.copying.direct.lanes import LaneCopy

        return LaneCopy(begin, end, options)
    return None


def _readable(planned: Plan) -> str:
    """The path of a source that is a regular file, else the empty string."""
    path = files.plain_path(planned)
    return path if path and os.path.isfile(path) else ""


def _source(planned: Plan, options: CopyOptions) -> Callable[[], SourceEnd] | None:
    """How to open a source, if lanes can."""
    if path := _readable(planned):
        from nbdfs.copying.direct.local import FileSource

        return partial(FileSource, path)
    return _export(planned, options, of_source=True)


def _destination(planned: Plan | None, options: CopyOptions) -> Callable[[], DestinationEnd] | None:
    """How to open a destination, if lanes can."""
    if planned is None:
        from nbdfs.copying.direct.local import NullDestination

        return NullDestination
    path = files.plain_path(planned)
    if path and files.is_regular(path):
        from nbdfs.copying.direct.local import FileDestination

        return partial(FileDestination, path)
    return _export(planned, options, of_source=False)


def _export(planned: Plan, options: CopyOptions, *, of_source: bool) -> Callable[[], RemoteEnd] | None:
    if planned.source.name != "nbd" or planned.layers or planned.argv:
        return None
    from nbdfs.copying.direct.remote import RemoteEnd, remote

    found = remote(planned, options)
    return partial(RemoteEnd, found, of_source=of_source) if found else None
