"""How fast exports are read and written: the difference of two looks at what their processes have counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nbdfs.control.client import Process
from nbdfs.records import Record

Facts = Mapping[str, Any]

_NEW: Facts = {"read": {"bytes": 0}, "write": {"bytes": 0}}  # what has come since the first look


class Row(Record):
    """An export of a process.  Rates are in bytes a second, None where they are not known.

    In passthrough the kernel counts nothing for us; what passes the process all the same (NBD clients) is known.
    """

    process: Facts
    export: Facts
    read: float | None
    write: float | None

    @property
    def place(self) -> str:
        """The path of the file, or the place and name of an export that is only served."""
        above = self.process["target"] or next(iter(self.process["uris"]), f"pid {self.process['pid']}")
        name = self.export["name"]
        return f"{above.rstrip('/')}/{name}" if name and self.process["target"] else f"{above} {name}".rstrip()


def rows(before: Sequence[Process], after: Sequence[Process]) -> Iterator[Row]:
    """The exports of a second look, with their rates since the first."""
    old = {process.path: process.facts for process in before}
    for process in after:
        if process.facts:
            yield from _of_process(old.get(process.path) or process.facts, process.facts)


def _of_process(before: Facts, after: Facts) -> Iterator[Row]:
    seconds = after["now"] - before["now"]
    counted = {_key(export): export for export in before["exports"]}
    for export in after["exports"]:
        earlier = counted.get(_key(export), _NEW)
        yield Row(after, export, *(_rate(earlier, export, what, seconds) for what in ("read", "write")))


def _key(export: Facts) -> object:
    return export.get("id", export["name"])  # a process that runs on after an upgrade may have no numbers


def _rate(before: Facts, after: Facts, what: str, seconds: float) -> float | None:
    done = max(after[what]["bytes"] - before[what]["bytes"], 0)  # another process of this number counts from 0 again
    if not done and after.get("passthrough"):
        return None
    return done / seconds if seconds > 0 else None
