"""Choose one partition, and make sure that it is where its table says."""

from __future__ import annotations

from nbdfs.backends.partition import PartitionOptions
from nbdfs.backends.partition.tables import Partition, read_table
from nbdfs.errors import UserError
from nbdfs.source import Source
from nbdfs.units import format_size


async def choose(disk: Source, options: PartitionOptions) -> Partition:
    """The partition that the options name.

    Raises UserError if there is not just one, or if it reaches outside the disk or into another.
    """
    partitions = await read_table(disk, options.sector)
    wanted = [each for each in partitions if _matches(each, options)]
    if len(wanted) != 1:
        count = "no" if not wanted else "more than one"
        raise UserError(f"{count} partition fits: choose by number=, label= or uuid= from {_listed(partitions)}")
    chosen = wanted[0]
    if chosen.size <= 0 or chosen.start <= 0 or chosen.end > disk.info.size:
        raise UserError(
            f"the table says that partition {chosen.number} has bytes {chosen.start} to {chosen.end}, "
            f"but the disk has {disk.info.size}"
        )
    for other in partitions:
        if other != chosen and other.size > 0 and other.start < chosen.end and chosen.start < other.end:
            raise UserError(f"the table says that partitions {chosen.number} and {other.number} overlap")
    return chosen


def _matches(partition: Partition, options: PartitionOptions) -> bool:
    if options.number:
        return partition.number == options.number
    if options.label:
        return partition.label == options.label
    if options.uuid:
        return partition.uuid == options.uuid.lower()
    return True  # fine if there is but one


def _listed(partitions: list[Partition]) -> str:
    shown = (
        f"{each.number} ({format_size(each.size)}{f', {each.label!r}' if each.label else ''})"
        for each in partitions[:20]
    )
    return ", ".join(shown) or "none: the table is empty"
