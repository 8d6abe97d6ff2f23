"""The LUKS1 header (LUKS1 on-disk format specification 1.2.3, 2.2): bytes to `Header` and back.  No I/O."""

from __future__ import annotations

import struct

from nbdfs.backends.luks.cipher import CipherName, check_hash
from nbdfs.backends.luks.volume import SECTOR, Digest, Header, HeaderError, Kdf, Keyslot, Segment
from nbdfs.records import Record, replace

MAGIC = b"LUKS\xba\xbe"
LENGTH = 592  # bytes
SLOTS = 8
STRIPES = 4000
DIGEST_LENGTH = 20  # bytes
SALT_LENGTH = 32  # bytes

_HEAD = struct.Struct(">6sH32s32s32sII20s32sI40s")
_SLOT = struct.Struct(">II32sII")
_ENABLED, _DISABLED = 0x00AC71F3, 0x0000DEAD
_MOST_STRIPES = 1 << 16


class RawSlot(Record):
    """A slot as it is written; `offset` is in sectors."""

    enabled: bool
    iterations: int
    salt: bytes
    offset: int
    stripes: int


class Luks1(Record):
    """The fields of the header as they are written; `payload` is in sectors."""

    cipher: str
    mode: str
    hash: str
    payload: int
    key_size: int
    digest: bytes
    digest_salt: bytes
    digest_iterations: int
    uuid: str
    slots: tuple[RawSlot, ...]

    def pack(self) -> bytes:
        """The bytes of the header."""
        head = _HEAD.pack(
            MAGIC, 1, self.cipher.encode(), self.mode.encode(), self.hash.encode(), self.payload, self.key_size,
            self.digest, self.digest_salt, self.digest_iterations, self.uuid.encode(),
        )  # fmt: skip
        return head + b"".join(
            _SLOT.pack(_ENABLED if slot.enabled else _DISABLED, slot.iterations, slot.salt, slot.offset, slot.stripes)
            for slot in self.slots
        )

    def area_length(self, slot: RawSlot) -> int:
        """Bytes of the slot's key material, whole sectors."""
        return -(-self.key_size * slot.stripes // SECTOR) * SECTOR


def unpack(data: bytes) -> Luks1:
    """Read the fields.  Raises HeaderError for what cannot be any header."""
    if len(data) < LENGTH:
        raise HeaderError(f"the LUKS1 header is cut off after {len(data)} bytes")
    magic, version, cipher, mode, name, payload, key_size, digest, salt, iterations, uuid = _HEAD.unpack_from(data)
    if magic != MAGIC or version != 1:
        raise HeaderError(f"LUKS version {version} is not supported, only 1 and 2")
    slots = tuple(_unpack_slot(data, number) for number in range(SLOTS))
    return Luks1(
        _text(cipher, "cipher name"), _text(mode, "cipher mode"), _text(name, "hash"), payload, key_size, digest,
        salt, iterations, _text(uuid, "UUID"), slots,
    )  # fmt: skip


def parse(data: bytes, device_size: int, *, detached: bool) -> Header:
    """The header of `data`, its first 592 bytes.  `device_size` is that of the device that holds the header."""
    raw = unpack(data)
    encryption = f"{raw.cipher}-{raw.mode}"
    segment = Segment(0, raw.payload * SECTOR, None, encryption)
    try:
        CipherName.parse(encryption).check_key_size(raw.key_size)
    except HeaderError as error:
        segment = replace(segment, trouble=str(error))
        if not 0 < raw.key_size <= 512:
            raise HeaderError(f"LUKS1 with a key of {raw.key_size} bytes makes no sense") from error
    name = check_hash(raw.hash.lower())
    if raw.digest_iterations == 0:
        raise HeaderError("LUKS1 with a digest of 0 iterations makes no sense")
    _check_areas(raw, device_size, detached)
    keyslots = tuple(
        Keyslot(
            number, raw.key_size, Kdf("pbkdf2", slot.salt, slot.iterations, name), slot.offset * SECTOR,
            raw.area_length(slot), encryption, raw.key_size, slot.stripes, name,
        )
        for number, slot in enumerate(raw.slots) if slot.enabled
    )  # fmt: skip
    numbers = frozenset(slot.number for slot in keyslots)
    digest = Digest(0, name, raw.digest_salt, raw.digest_iterations, raw.digest, numbers, frozenset({0}))
    length = max(slot.offset * SECTOR + raw.area_length(slot) for slot in raw.slots)
    return Header(1, raw.uuid, length, keyslots, (digest,), (segment,))


def _unpack_slot(data: bytes, number: int) -> RawSlot:
    state, iterations, salt, offset, stripes = _SLOT.unpack_from(data, _HEAD.size + number * _SLOT.size)
    if state not in (_ENABLED, _DISABLED):
        raise HeaderError(f"LUKS1 key slot {number} is neither enabled nor disabled ({state:#x})")
    return RawSlot(state == _ENABLED, iterations, salt, offset, stripes)


def _check_areas(raw: Luks1, device_size: int, detached: bool) -> None:
    """Every slot's key material lies behind the header, before the payload, inside the device, and by itself."""
    if raw.payload == 0 and not detached:
        raise HeaderError("this LUKS1 header has its data elsewhere: give this as header=, over the data")
    end = device_size if detached else raw.payload * SECTOR
    taken = LENGTH
    for number, slot in sorted(enumerate(raw.slots), key=lambda item: item[1].offset):
        what = f"LUKS1 key slot {number}"
        if not 0 < slot.stripes <= _MOST_STRIPES:
            raise HeaderError(f"{what} with {slot.stripes} stripes makes no sense")
        if slot.enabled and slot.iterations == 0:
            raise HeaderError(f"{what} with 0 iterations makes no sense")
        start = slot.offset * SECTOR
        if start < taken:
            raise HeaderError(f"{what} overlaps the header or another key slot")
        taken = start + raw.area_length(slot)
        if taken > end:
            raise HeaderError(f"{what} ends at {taken}, in the data or outside the device")
        if slot.enabled and taken > device_size:
            raise HeaderError(f"{what} ends at {taken}, but the device has only {device_size} bytes")


def _text(field: bytes, what: str) -> str:
    text = field.split(b"\0", 1)[0]
    if not text.isascii() or not text.decode("ascii").isprintable():
        raise HeaderError(f"the {what} of the LUKS1 header is no text")
    return text.decode("ascii")
