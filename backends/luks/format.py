"""Make a new LUKS volume."""

from __future__ import annotations

import hashlib
import os
import uuid

import trio

from nbdfs.backends.luks import header1, header2
from nbdfs.backends.luks.cipher import CipherName, check_hash
from nbdfs.backends.luks.derivation import Effort, digest_iterations, header_hash, make_digest
from nbdfs.backends.luks.device import BLANK, Found, describe, load_header
from nbdfs.backends.luks.header1 import Luks1, RawSlot
from nbdfs.backends.luks.header2 import Luks2
from nbdfs.backends.luks.keys import add_key, write_header
from nbdfs.backends.luks.volume import SECTOR, HeaderError
from nbdfs.buffers import is_zero
from nbdfs.errors import UserError
from nbdfs.ranges import align_up, pieces
from nbdfs.records import Record, field, replace
from nbdfs.source import Source, read
from nbdfs.units import format_size

_COPY = 16 << 10  # bytes of one LUKS2 header
_DATA_1, _DATA_2 = 2 << 20, 16 << 20  # bytes: where the data begins, as cryptsetup places it
_SLOT_ALIGNMENT = 4096  # bytes
_WIPE = 1 << 20  # bytes zeroed at once
_DIGEST_2 = 32  # bytes


class Volume(Record):
    """What shall be made.  `key_size` is in bytes; `detached` means that only a header is made, for data elsewhere."""

    version: int = 2
    encryption: str = "aes-xts-plain64"
    key_size: int = 64
    sector_size: int = SECTOR
    label: str = ""
    uuid: str = field(default_factory=lambda: str(uuid.uuid4()))
    detached: bool = False


async def format_device(device: Source, volume: Volume, passphrase: bytes, effort: Effort, *, force: bool) -> None:
    """Write a header with a new random key that `passphrase` opens in slot 0.  The data area is left as it is.

    Unless `force`, a device that holds something is left alone.  Raises UserError if it cannot be done.
    """
    _check(volume, effort)
    volume = replace(volume, encryption=_encryption(volume.encryption), uuid=_uuid(volume.uuid))
    key = os.urandom(volume.key_size)
    iterations = await trio.to_thread.run_sync(digest_iterations, effort, _DIGEST_2)
    make = _luks1 if volume.version == 1 else _luks2
    written, end = make(volume, key, effort, iterations)
    if not force and (looks := await _content(device, min(end, device.info.size))):
        raise UserError(f"{device.info.description} is not empty, {looks}: give --force to overwrite it")
    if device.info.size < end:
        raise UserError(
            f"{device.info.description} is too small: LUKS{volume.version} needs {format_size(end)} and the data"
        )
    for at, size in pieces(0, end, _WIPE):
        await device.pwrite(memoryview(bytes(size)), at)
    await write_header(device, written)
    found: Found = await load_header(device, detached=volume.detached)
    await add_key(device, found, key, passphrase, effort, 0)


def _check(volume: Volume, effort: Effort) -> None:
    CipherName.parse(volume.encryption).check_key_size(volume.key_size)
    check_hash(effort.hash)
    if volume.version == 1 and hashlib.new(effort.hash).digest_size < header1.DIGEST_LENGTH:
        raise UserError(f"LUKS1 takes no hash of less than {header1.DIGEST_LENGTH} bytes, such as {effort.hash}")
    if volume.version == 1 and (effort.kind != "pbkdf2" or volume.sector_size != SECTOR or volume.label):
        raise UserError("LUKS1 has only pbkdf2, sectors of 512 bytes and no label: use --type luks2")
    if volume.sector_size not in (512, 1024, 2048, 4096):
        raise UserError(f"sectors of {volume.sector_size} bytes are not possible: 512, 1024, 2048 or 4096 are")
    if len(volume.label.encode()) > 47 or not volume.label.isprintable():
        raise UserError("the label is too long (47 bytes) or cannot be shown")


def _encryption(text: str) -> str:
    """A cipher by the name that every program knows."""
    cipher, colon, name = text.partition(":")
    return f"{cipher}:{header_hash(name)}" if colon else text


def _uuid(text: str) -> str:
    """The UUID in the one form that headers have it in."""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise UserError(f"'{text}' is no UUID") from None


async def _content(device: Source, end: int) -> str:
    """What is on the device before `end`, empty if nothing is."""
    if end == 0:
        return ""
    try:
        await load_header(device, detached=True)
    except HeaderError:
        looks = await describe(device)
        if looks != BLANK:
            return looks
    else:
        return "it has a LUKS header already"
    for at, size in pieces(0, end, _WIPE):
        if not is_zero(memoryview(await read(device, at, size))):
            return f"there is something between {at} and {at + size}"
    return ""


def _luks1(volume: Volume, key: bytes, effort: Effort, iterations: int) -> tuple[Luks1, int]:
    area = align_up(volume.key_size * header1.STRIPES, _SLOT_ALIGNMENT)
    slots = tuple(
        RawSlot(False, 0, bytes(header1.SALT_LENGTH), (_SLOT_ALIGNMENT + number * area) // SECTOR, header1.STRIPES)
        for number in range(header1.SLOTS)
    )
    cipher, _, mode = volume.encryption.partition("-")
    salt = os.urandom(header1.SALT_LENGTH)
    digest = make_digest(key, effort.hash, salt, iterations, header1.DIGEST_LENGTH)
    end = align_up(_SLOT_ALIGNMENT + header1.SLOTS * area, _DATA_1)
    payload = 0 if volume.detached else end // SECTOR
    return Luks1(
        cipher, mode, effort.hash, payload, volume.key_size, digest, salt, iterations, volume.uuid, slots
    ), end  # fmt: skip


def _luks2(volume: Volume, key: bytes, effort: Effort, iterations: int) -> tuple[Luks2, int]:
    salt = os.urandom(header1.SALT_LENGTH)
    metadata = {
        "keyslots": {},
        "tokens": {},
        "segments": {
            "0": {
                "type": "crypt",
                "offset": "0" if volume.detached else str(_DATA_2),
                "size": "dynamic",
                "iv_tweak": "0",
                "encryption": volume.encryption,
                "sector_size": volume.sector_size,
            }
        },
        "digests": {
            "0": {
                "type": "pbkdf2",
                "keyslots": [],
                "segments": ["0"],
                "hash": effort.hash,
                "iterations": iterations,
                "salt": header2.to_base64(salt),
                "digest": header2.to_base64(make_digest(key, effort.hash, salt, iterations, _DIGEST_2)),
            }
        },
        "config": {"json_size": str(_COPY - header2.BINARY), "keyslots_size": str(_DATA_2 - 2 * _COPY)},
    }
    return Luks2(_COPY, 0, volume.label, volume.uuid, "", 0, metadata), _DATA_2
