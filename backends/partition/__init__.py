"""The `partition` layer: one partition of the disk below."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from nbdfs.errors import UsageError
from nbdfs.records import Record
from nbdfs.registry import INTEGER, SIZE, TEXT, LayerDriver, OpenContext, option
from nbdfs.source import Source


class PartitionOptions(Record):
    number: int = option(0, INTEGER, "its number; logical partitions of an MBR count from 5")
    label: str = option("", TEXT, "its name in a GPT")
    uuid: str = option("", TEXT, "its own UUID in a GPT; in an MBR DISKID-NN, as blkid calls it")
    sector: int = option(0, SIZE, "sector size of the disk; 0 stands for 512, or 4096 if there is a GPT of that")


@asynccontextmanager
async def _open(below: Source, options: PartitionOptions, context: OpenContext) -> AsyncIterator[Source]:
    from nbdfs.backends.partition.choice import choose
    from nbdfs.window import Window

    if sum(map(bool, (options.number, options.label, options.uuid))) > 1:
        raise UsageError("partition: number=, label= and uuid= exclude each other")
    if options.sector not in (0, 512, 1024, 2048, 4096):
        raise UsageError("partition: sector must be 512, 1024, 2048 or 4096")
    chosen = await choose(below, options)
    yield Window(below, chosen.start, chosen.size, f"partition {chosen.number}")


DRIVER = LayerDriver("partition", "show one partition of a disk (MBR or GPT)", PartitionOptions, open=_open)
