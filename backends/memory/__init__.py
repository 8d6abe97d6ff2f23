"""The `memory` source: a RAM disk that takes only what is written to it."""

from __future__ import annotations

from nbdfs.records import Record
from nbdfs.registry import BOOLEAN, OpenContext, SourceDriver, option
from nbdfs.source import Source
from nbdfs.units import parse_size


class Options(Record):
    mlock: bool = option(False, BOOLEAN, "never let what is stored be swapped out")
    hugepages: bool = option(False, BOOLEAN, "take all of it up front from the pool of huge pages")


def _open(argument: str, options: Options, context: OpenContext) -> Source:
    size = parse_size(argument)
    if options.hugepages:
        from nbdfs.backends.memory.huge import HugeMemory

        return HugeMemory(size)  # huge pages are never swapped, so mlock adds nothing

    from nbdfs.backends.memory.sparse import Memory

    return Memory(size, locked=options.mlock)


DRIVER = SourceDriver("memory", "a RAM disk, as large as you like", Options, open=_open, argument="SIZE")
