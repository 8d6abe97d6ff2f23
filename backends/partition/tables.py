"""Partition tables, read with distrust: what they say is checked against the disk and against itself.

MBR with logical partitions as every PC since DOS has it; GPT as in the UEFI specification, chapter 5, both of its
copies with their checksums.
"""

from __future__ import annotations

import logging
import struct
import uuid
import zlib

from nbdfs.errors import UserError
from nbdfs.records import Record
from nbdfs.source import Source, read

log = logging.getLogger(__name__)

_MBR_ENTRY = struct.Struct("<B3sB3sII")  # status, first CHS, type, last CHS, first sector, sectors
_MBR_TABLE = 446
_MBR_SIGNATURE = b"\x55\xaa"
_EXTENDED = (0x05, 0x0F, 0x85)
_PROTECTIVE = 0xEE
_MOST_LOGICAL = 1024

_GPT_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_GPT_ENTRY = struct.Struct("<16s16sQQQ72s")  # type, UUID, first and last sector, attributes, name
_GPT_SIGNATURE = b"EFI PART"
_LARGEST_TABLE = 1 << 20  # bytes of entries that are read


class Partition(Record):
    """A partition: `start` and `size` in bytes; `uuid` in lower case."""

    number: int
    start: int
    size: int
    label: str
    uuid: str

    @property
    def end(self) -> int:
        return self.start + self.size


async def read_table(disk: Source, sector: int) -> list[Partition]:
    """All partitions of a disk; `sector` 0 finds its sector size out.

    Raises UserError if there is no table or none that can be trusted.
    """
    if disk.info.size < 512:
        raise UserError("there is no partition table: the disk is shorter than one sector")
    first = bytes(await read(disk, 0, 512))
    entries = _mbr_entries(first)
    if entries is None:
        raise UserError("there is no partition table at the beginning of the disk")
    if all(kind != _PROTECTIVE for kind, _, _ in entries):
        return await _read_mbr(disk, first, entries, sector or 512)
    for size in (sector,) if sector else (512, 4096):
        table = await _read_gpt(disk, size)
        if table is not None:
            return table
    raise UserError("the GPT is damaged, and so is its copy at the end of the disk")


# ---- MBR


def _mbr_entries(block: bytes) -> list[tuple[int, int, int]] | None:
    """(type, first sector, sectors) of the four entries, None if this is no such table."""
    if block[510:512] != _MBR_SIGNATURE:
        return None
    found = [_MBR_ENTRY.unpack_from(block, _MBR_TABLE + index * _MBR_ENTRY.size) for index in range(4)]
    if any(status not in (0x00, 0x80) for status, *_ in found):
        return None  # a boot sector, whose code lies where the table would be
    return [(kind, start, count) for _, _, kind, _, start, count in found]


async def _read_mbr(disk: Source, first: bytes, entries: list[tuple[int, int, int]], sector: int) -> list[Partition]:
    disk_id = int.from_bytes(first[440:444], "little")

    def partition(number: int, start: int, count: int) -> Partition:
        return Partition(number, start * sector, count * sector, "", f"{disk_id:08x}-{number:02x}")

    found = []
    for number, (kind, start, count) in enumerate(entries, 1):
        if kind in _EXTENDED:
            logical = await _read_logical(disk, start, count, sector)
            found += [partition(5 + index, *place) for index, place in enumerate(logical)]
        elif kind:
            found.append(partition(number, start, count))
    return sorted(found, key=lambda each: each.number)


async def _read_logical(disk: Source, start: int, count: int, sector: int) -> list[tuple[int, int]]:
    """(first sector, sectors) of the logical partitions in an extended one.

    Each is described by a table of its own: its place from that table on, and the next table's from `start` on, in
    either order.
    """
    found: list[tuple[int, int]] = []
    seen: set[int] = set()
    at = start
    while True:
        if at in seen or len(seen) > _MOST_LOGICAL:
            raise UserError("the chain of logical partitions leads in a circle")
        seen.add(at)
        if not start <= at < start + count or (at + 1) * sector > disk.info.size:
            raise UserError(f"the chain of logical partitions leads to sector {at}, outside the extended partition")
        entries = _mbr_entries(bytes(await read(disk, at * sector, 512)))
        if entries is None:
            raise UserError(f"the chain of logical partitions is broken at sector {at}")
        links = [first for kind, first, length in entries[:2] if kind in _EXTENDED and first and length]
        found += [(at + first, length) for kind, first, length in entries[:2] if kind not in (0, *_EXTENDED) and length]
        if not links:
            return found
        at = start + links[0]


# ---- GPT


async def _read_gpt(disk: Source, sector: int) -> list[Partition] | None:
    """The partitions by the first of the two copies that is whole; None if neither is."""
    last = disk.info.size // sector - 1
    if last < 2:
        return None
    main = await _read_gpt_copy(disk, sector, 1)
    if main is not None:
        return main
    spare = await _read_gpt_copy(disk, sector, last)
    if spare is not None:
        log.warning("the GPT at the beginning of the disk is damaged: its copy at the end is used")
    return spare


async def _read_gpt_copy(disk: Source, sector: int, at: int) -> list[Partition] | None:
    block = bytes(await read(disk, at * sector, sector))
    (signature, _, length, checksum, _, own, _, _, _, _, table, count, size, table_checksum) = _GPT_HEADER.unpack_from(
        block
    )
    if signature != _GPT_SIGNATURE or not _GPT_HEADER.size <= length <= sector or own != at:
        return None
    if zlib.crc32(block[:16] + bytes(4) + block[20:length]) != checksum:
        return None
    start, total = table * sector, count * size
    if size < _GPT_ENTRY.size or total > _LARGEST_TABLE or start + total > disk.info.size:
        return None
    entries = bytes(await read(disk, start, total))
    if zlib.crc32(entries) != table_checksum:
        return None
    found = []
    for number in range(1, count + 1):
        kind, own_uuid, first, last, _, name = _GPT_ENTRY.unpack_from(entries, (number - 1) * size)
        if any(kind):
            label = name.decode("utf-16-le", "replace").partition("\0")[0]
            place = first * sector, (last + 1 - first) * sector
            found.append(Partition(number, *place, label, str(uuid.UUID(bytes_le=own_uuid))))
    return found
