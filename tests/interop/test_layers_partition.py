"""The `partition` layer on disks made by sgdisk and sfdisk, and on tables that lie."""

from __future__ import annotations

import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nbdfs.backends.partition import PartitionOptions
from nbdfs.backends.partition.choice import choose
from nbdfs.errors import UserError
from nbdfs.source import read
from nbdfs.stack import open_stack
from tests.devices import Ram

SIZE = 64 << 20
UUID = "01234567-89ab-cdef-0123-456789abcdef"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


def marked(path: Path, script: str, *options: str) -> Path:
    """Partition a disk with sfdisk; each partition then begins with the number that sfdisk gives it."""
    subprocess.run(["sfdisk", "-q", *options, path], input=script, text=True, check=True)
    listing = subprocess.run(["sfdisk", "-d", path], capture_output=True, text=True, check=True).stdout
    with path.open("r+b") as file:
        for line in listing.splitlines():
            if "start=" in line:
                name, _, rest = line.partition(" : ")
                number = int(name.removeprefix(str(path)))
                if "type=5" not in rest and "type=f" not in rest:
                    file.seek(int(rest.split("start=")[1].split(",")[0]) * 512)
                    file.write(b"partition %d" % number)
    return path


async def beginning(spec: str) -> bytes:
    async with open_stack(spec) as source:
        return bytes(await read(source, 0, 12)).rstrip(b"\0")


GPT = f"label: gpt\nsize=1M, name=one\nsize=2M, name=zwei, uuid={UUID}\nsize=3M, name=trois\n"
MBR = "label: dos\nlabel-id: 0xdeadbeef\nsize=1M\nsize=20M, type=5\nsize=3M\nsize=1M\nsize=2M\nsize=4M\n"


async def test_gpt_by_number_label_and_uuid(disk: Path) -> None:
    marked(disk, GPT)
    for option, number in (("number=1", 1), ("label=zwei", 2), (f"uuid={UUID.upper()}", 2), ("label=trois", 3)):
        assert await beginning(f"partition,{option}::{disk}") == b"partition %d" % number
    async with open_stack(f"partition,number=2::{disk}") as source:
        assert source.info.size == 2 << 20


async def test_sgdisk(disk: Path) -> None:
    subprocess.run(["sgdisk", "-n", "7:4096:+5M", "-c", "7:data", str(disk)], check=True, capture_output=True)
    async with open_stack(f"partition::{disk}") as source:  # the only one
        assert source.info.size == 5 << 20
        await source.pwrite(memoryview(b"written"), 0)
    assert disk.read_bytes()[4096 * 512 :][:7] == b"written"


async def test_mbr_with_logical_partitions(disk: Path) -> None:
    marked(disk, MBR)
    for number in (1, 3, 5, 6):
        assert await beginning(f"partition,number={number}::{disk}") == b"partition %d" % number
    assert await beginning(f"partition,uuid=deadbeef-06::{disk}") == b"partition 6"


async def test_a_table_with_nothing_in_it(disk: Path) -> None:
    subprocess.run(["sfdisk", "-q", disk], input="label: gpt\n", text=True, check=True)
    await refused(f"partition::{disk}", "the table is empty")


async def test_logical_partitions_whose_tables_begin_with_the_link_or_are_empty() -> None:
    first = patched_mbr((0x05, 10, 80)) + bytes(9 * 512)
    tables = [patched_mbr((0x05, 20, 10), (0x83, 1, 2)), patched_mbr((0x83, 1, 0), (0x05, 40, 10))]
    disk = first + b"".join(table + bytes(19 * 512) for table in tables)
    disk += patched_mbr((0x83, 1, 5)) + bytes(100 * 512)
    for number, start, sectors in ((5, 11, 2), (6, 51, 5)):
        found = await choose(Ram(disk), PartitionOptions(number=number))
        assert (found.start, found.size) == (start * 512, sectors * 512)


async def test_sectors_of_4096_bytes(tmp_path: Path) -> None:
    content = bytearray(SIZE)
    entries = bytearray(128 * 4)
    entries[:56] = struct.pack("<16s16sQQQ", b"t" * 16, b"u" * 16, 10, 19, 0)
    places = (1, SIZE // 4096 - 1, 6, 16000)  # this copy, the other, first and last sector for partitions
    table = (b"d" * 16, 2, 4, 128, zlib.crc32(entries))
    header = bytearray(struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, *places, *table))
    header[16:20] = struct.pack("<I", zlib.crc32(header))
    content[450:512] = bytes([0xEE]) + bytes(59) + b"\x55\xaa"
    content[4096 : 4096 + len(header)] = header
    content[8192 : 8192 + len(entries)] = entries
    chosen = await choose(Ram(bytes(content)), PartitionOptions())
    assert (chosen.start, chosen.size) == (10 * 4096, 10 * 4096)


async def refused(spec: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        async with open_stack(spec):
            pass
    assert "\n" not in str(caught.value)


async def test_a_damaged_gpt_is_read_from_its_copy(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    marked(disk, GPT)
    with disk.open("r+b") as file:
        file.seek(512 + 72)
        file.write(b"\xff\xff")
    assert await beginning(f"partition,number=2::{disk}") == b"partition 2"
    assert "copy at the end is used" in caplog.text
    with disk.open("r+b") as file:
        file.seek(SIZE - 512 + 20)
        file.write(b"\xff")
    await refused(f"partition,number=2::{disk}", "GPT is damaged, and so is its copy")


async def test_what_cannot_be_chosen(disk: Path) -> None:
    await refused(f"partition::{disk}", "no partition table")
    marked(disk, GPT)
    await refused(f"partition::{disk}", r"more than one partition fits.*1 \(1M, 'one'\), 2 \(2M, 'zwei'\)")
    await refused(f"partition,number=9::{disk}", "no partition fits")
    await refused(f"partition,label=nine::{disk}", "no partition fits")
    await refused(f"partition,number=1,label=one::{disk}", "exclude each other")
    await refused("partition::null:100", "shorter than one sector")


def patched_mbr(*entries: tuple[int, int, int]) -> bytes:
    """(type, first sector, sectors) of up to four."""
    block = bytearray(512)
    for index, (kind, first, count) in enumerate(entries):
        struct.pack_into("<B3sB3sII", block, 446 + index * 16, 0, b"", kind, b"", first, count)
    block[510:] = b"\x55\xaa"
    return bytes(block)


async def chosen(content: bytes, says: str, number: int = 1) -> None:
    with pytest.raises(UserError, match=says):
        await choose(Ram(content), PartitionOptions(number=number))


async def test_tables_that_lie() -> None:
    await chosen(patched_mbr((0x83, 1, 10), (0x83, 5, 10)) + bytes(100 * 512), "1 and 2 overlap")
    await chosen(patched_mbr((0x83, 50, 100)) + bytes(99 * 512), "has bytes 25600 to 76800, but the disk has 51200")
    await chosen(patched_mbr((0x83, 0, 10)) + bytes(99 * 512), "has bytes 0 to")
    await chosen(patched_mbr((0x83, 5, 0)) + bytes(99 * 512), "has bytes 2560 to 2560")
    circle = patched_mbr((0x05, 1, 50)) + patched_mbr((0x83, 1, 2), (0x05, 4, 1)) + bytes(3 * 512)
    circle += patched_mbr((0x83, 1, 2), (0x05, 4, 1)) + bytes(90 * 512)
    await chosen(circle, "in a circle", 5)
    outside = patched_mbr((0x05, 1, 50)) + patched_mbr((0x83, 1, 2), (0x05, 1000, 1)) + bytes(90 * 512)
    await chosen(outside, "outside the extended partition", 5)
    broken = patched_mbr((0x05, 1, 50)) + patched_mbr((0x83, 1, 2), (0x05, 7, 1)) + bytes(90 * 512)
    await chosen(broken, "broken at sector 8", 5)
    boot_sector = bytearray(patched_mbr((0x83, 1, 10)))
    boot_sector[446] = 0x33
    await chosen(bytes(boot_sector) + bytes(512), "no partition table")


@given(st.lists(st.tuples(st.integers(0, 3 * 512 + 34 * 512 - 1), st.integers(0, 255)), max_size=12), st.booleans())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
async def test_any_table_is_a_partition_inside_or_a_clear_error(damage: list[tuple[int, int]], mbr: bool) -> None:
    content = bytearray(patched_mbr((0x83, 8, 10), (0x05, 20, 70)) if mbr else patched_mbr((0xEE, 1, 99)))
    content += bytes(99 * 512)
    content[20 * 512 : 21 * 512] = patched_mbr((0x83, 1, 2), (0x05, 10, 10))
    content[30 * 512 : 31 * 512] = patched_mbr((0x83, 1, 2))
    for place, value in damage:
        content[place] = value
    disk = Ram(bytes(content))
    for number in (0, 1, 5):
        try:
            found = await choose(disk, PartitionOptions(number=number))
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert 0 < found.start < found.end <= len(content)
