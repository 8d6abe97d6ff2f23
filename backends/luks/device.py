"""Find the header of a device, LUKS1 or LUKS2, and of its two copies the good one."""

from __future__ import annotations

import logging

from nbdfs.backends.luks import header1, header2
from nbdfs.backends.luks.header1 import Luks1
from nbdfs.backends.luks.header2 import Luks2
from nbdfs.backends.luks.volume import Header, HeaderError
from nbdfs.records import Record
from nbdfs.source import Source, read

log = logging.getLogger(__name__)

# What else lies where a header should: (offset, bytes, its name).
_OTHERS = (
    (0, b"QFI\xfb", "a qcow2 image"), (0, b"PK\x03\x04", "a zip archive"), (0, b"\x1f\x8b", "gzip data"),
    (0, b"\xfd7zXZ\0", "xz data"), (0, b"\x28\xb5\x2f\xfd", "zstd data"), (0, b"BZh", "bzip2 data"),
    (0, b"XFSB", "an XFS file system"), (3, b"NTFS    ", "an NTFS file system"), (3, b"-FVE-FS-", "a BitLocker volume"),
    (0, b"KDMV", "a VMDK image"), (0, b"vhdxfile", "a VHDX image"), (0, b"conectix", "a VHD image"),
    (0, b"hsqs", "a squashfs file system"), (0, b"\x7fELF", "a program"), (0, b"<!DOCTYPE", "a web page"),
    (0x218, b"LVM2", "an LVM volume"), (0x200, b"EFI PART", "a disk with GPT partitions"),
    (0x438, b"\x53\xef", "an ext2, ext3 or ext4 file system"), (0x10040, b"_BHRfS_M", "a btrfs file system"),
    (0x8001, b"CD001", "an ISO 9660 image"), (0x36, b"FAT", "a FAT file system"), (0x52, b"FAT32", "a FAT file system"),
    (0x1FE, b"\x55\xaa", "a disk with partitions"),
)  # fmt: skip
_PROBED = 0x10048  # bytes
BLANK = "this is all zeroes"


class Found(Record):
    """A header, and the same as it is written (of LUKS2, the copy it comes from)."""

    header: Header
    written: Luks1 | Luks2


async def load_header(device: Source, *, detached: bool = False) -> Found:
    """The header that `device` begins with.  Raises HeaderError with the reason if it has none that can be used.

    `detached` says that the data lies elsewhere.
    """
    size = device.info.size
    head = bytes(await read(device, 0, min(header2.BINARY, size)))
    version = int.from_bytes(head[6:8], "big") if head.startswith(header1.MAGIC) else 0
    if version == 1:
        return Found(header1.parse(head, size, detached=detached), header1.unpack(head))
    found: list[Found] = []
    troubles: list[str] = []
    places = [0, *header2.SIZES]  # a damaged primary does not tell where the secondary is
    while places:
        place = places.pop(0)
        try:
            copy = header2.unpack(await _read_copy(device, place), place)
            places = [copy.size] if place == 0 else []
            found.append(Found(header2.parse(copy, size, detached=detached), copy))
        except HeaderError as error:
            troubles.append(str(error))
    if not found:
        if version == 0 and not any("damaged" in trouble for trouble in troubles):
            raise HeaderError(f"there is no LUKS header: {await describe(device)}")
        raise HeaderError(troubles[0])
    best = max(found, key=lambda item: item.header.sequence)  # the first of equals is the primary
    if troubles:
        log.warning("one of the two LUKS2 headers is not used: %s", troubles[0])
    elif len({item.header.sequence for item in found}) > 1:
        log.warning("the LUKS2 headers differ: the one with the sequence number %d is used", best.header.sequence)
    return best


async def _read_copy(device: Source, place: int) -> bytes:
    """The copy at `place`, as far as the device goes."""
    left = max(device.info.size - place, 0)
    head = bytes(await read(device, place, min(header2.BINARY, left)))
    size = header2.copy_size(head, place)
    return head + bytes(await read(device, place + len(head), min(size, left) - len(head)))


async def describe(device: Source) -> str:
    """What the device looks like, as the end of a sentence."""
    if device.info.size == 0:
        return "the device is empty"
    start = await read(device, 0, min(_PROBED, device.info.size))
    for offset, magic, name in _OTHERS:
        if start[offset : offset + len(magic)] == magic:
            return f"this looks like {name}"
    return "this looks like nothing known" if any(start) else BLANK
