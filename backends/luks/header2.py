"""The LUKS2 header (LUKS2 on-disk format specification 1.1.1): two binary headers, each with a JSON area.  No I/O.

A header is stored twice; `Luks2` is one copy, whose checksum was right.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import struct
from collections.abc import Iterable
from typing import Any

from nbdfs.backends.luks.cipher import CipherName, check_hash
from nbdfs.backends.luks.json_fields import Fields
from nbdfs.backends.luks.volume import SECTOR, Digest, Header, HeaderError, Kdf, Keyslot, Segment
from nbdfs.records import Record

MAGICS = (b"LUKS\xba\xbe", b"SKUL\xba\xbe")  # of the primary and the secondary copy
BINARY = 4096  # bytes of the binary header
SIZES = tuple(16384 << shift for shift in range(9))  # bytes of a copy, binary header and JSON area
STRIPES = 4000  # the specification has no other
MOST_KEYSLOTS_SIZE = 128 << 20  # bytes
_MOST_NESTED = 32  # objects and arrays inside each other; cryptsetup reads no more
_LAST_SEQUENCE = (1 << 64) - 1  # no header could follow it

_HEAD = struct.Struct(">6sHQQ48s32s64s40s48sQ184s64s")
_CHECKSUM = slice(_HEAD.size - 64, _HEAD.size)
_KEYSLOT_TYPES, _KDFS = ("luks2",), ("pbkdf2", "argon2i", "argon2id")
_TOP = {"keyslots", "tokens", "segments", "digests", "config"}


class Luks2(Record):
    """One copy of the header.  `size` is in bytes, `place` where it lies, `metadata` the parsed JSON area."""

    size: int
    sequence: int
    label: str
    uuid: str
    subsystem: str
    place: int
    metadata: dict[str, Any]
    checksum: str = "sha256"

    def pack(self) -> bytes:
        """The bytes of the copy, with a new salt and its checksum.  Raises HeaderError if the JSON does not fit."""
        text = json.dumps(self.metadata, separators=(",", ":")).encode()
        room = self.size - BINARY
        if len(text) >= room:
            raise HeaderError(f"the LUKS2 header has no room for {len(text)} bytes of JSON, only for {room - 1}")
        secondary = self.place > 0
        head = _HEAD.pack(
            MAGICS[secondary], 2, self.size, self.sequence, self.label.encode(), self.checksum.encode(),
            os.urandom(64), self.uuid.encode(), self.subsystem.encode(), self.place, bytes(184), bytes(64),
        )  # fmt: skip
        data = bytearray(head.ljust(BINARY, b"\0") + text.ljust(room, b"\0"))
        digest = hashlib.new(self.checksum, data).digest()
        data[_CHECKSUM] = digest.ljust(64, b"\0")
        return bytes(data)


def to_base64(data: bytes) -> str:
    """Bytes as the JSON holds them."""
    return base64.b64encode(data).decode()


def copy_size(head: bytes, place: int) -> int:
    """How long the copy at `place` says it is, from its binary header.  Raises HeaderError if it is none."""
    if len(head) < BINARY:
        raise HeaderError("the LUKS2 header is cut off")
    magic, version, size, *_ = _HEAD.unpack_from(head)
    if magic != MAGICS[place > 0]:
        raise HeaderError(f"there is no LUKS2 header at {place}")
    if version != 2:
        raise HeaderError(f"LUKS version {version} is not supported, only 1 and 2")
    if size not in SIZES or (place and place != size):
        raise HeaderError(f"the LUKS2 header at {place} says that it has {size} bytes, which cannot be")
    return int(size)


def unpack(data: bytes, place: int) -> Luks2:
    """Read one whole copy.  Raises HeaderError if it is damaged."""
    size = copy_size(data, place)
    if len(data) < size:
        raise HeaderError(f"the LUKS2 header is cut off: {size} bytes at {place} are not there")
    _, _, _, sequence, label, algorithm, _, uuid, subsystem, offset, _, checksum = _HEAD.unpack_from(data)
    if offset != place:
        raise HeaderError(f"the LUKS2 header at {place} says that it lies at {offset}")
    if sequence == _LAST_SEQUENCE:
        raise HeaderError(f"the LUKS2 header at {place} has the sequence number {sequence}, which cannot be")
    name = check_hash(_text(algorithm, "checksum algorithm"))
    blank = bytearray(data[:size])
    blank[_CHECKSUM] = bytes(64)
    digest = hashlib.new(name, blank).digest()
    if not hmac.compare_digest(digest, checksum[: len(digest)]):
        raise HeaderError(f"the LUKS2 header at {place} is damaged: its checksum is wrong")
    return Luks2(
        size, sequence, _text(label, "label"), _text(uuid, "UUID"), _text(subsystem, "subsystem"), place,
        _json(data[BINARY:size]), name,
    )  # fmt: skip


def parse(raw: Luks2, device_size: int, *, detached: bool) -> Header:
    """What a copy says.  `device_size` is that of the device that holds the header."""
    top = Fields("LUKS2 header", raw.metadata)
    if missing := _TOP - raw.metadata.keys():
        raise HeaderError(f"LUKS2 header: {', '.join(sorted(missing))} is missing")
    config = top.child("config")
    json_size, keyslots_size = config.decimal("json_size"), config.decimal("keyslots_size")
    if json_size != raw.size - BINARY:
        raise HeaderError(f"LUKS2 header: config.json_size is {json_size} in a header of {raw.size} bytes")
    if keyslots_size % BINARY or keyslots_size > MOST_KEYSLOTS_SIZE:
        raise HeaderError(f"LUKS2 header: config.keyslots_size of {keyslots_size} cannot be")
    length = 2 * raw.size + keyslots_size
    areas = [_area(fields) for fields in top.numbered("keyslots").values()]
    _check_areas(areas, 2 * raw.size, min(length, device_size))
    notes: list[str] = []
    keyslots = tuple(_keyslots(top, notes))
    digests = tuple(_digest(number, fields) for number, fields in top.numbered("digests").items())
    segments = tuple(_segments(top))
    _check_digests(digests, top.numbered("keyslots").keys(), top.numbered("segments").keys())
    if not detached:
        _check_segments(top, length)
    tokens = tuple(f"{number}: {fields.text('type')}" for number, fields in top.numbered("tokens").items())
    if tokens:
        notes.append(f"LUKS2 tokens are not used: {', '.join(tokens)}")
    flags = tuple(config.texts("flags")) if "flags" in config else ()
    return Header(
        2, raw.uuid, length, keyslots, digests, segments, raw.label, raw.subsystem, raw.sequence, flags,
        _requirements(config), tokens, tuple(notes),
    )  # fmt: skip


def _json(area: bytes) -> dict[str, Any]:
    text, _, rest = area.partition(b"\0")
    if rest.strip(b"\0"):
        raise HeaderError("LUKS2 header: there is something behind the JSON")
    if not text.startswith(b"{"):
        raise HeaderError("LUKS2 header: the JSON area does not begin with {")

    def no_number(word: str) -> None:
        raise HeaderError(f"LUKS2 header: {word} in the JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            raise HeaderError("LUKS2 header: a name stands twice in the JSON")
        return result

    try:
        value = json.loads(text, parse_constant=no_number, parse_float=no_number, object_pairs_hook=unique)
    except RecursionError:
        raise HeaderError("LUKS2 header: the JSON is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise HeaderError(f"LUKS2 header: the JSON is wrong: {error.msg} at byte {error.pos}") from None
    except ValueError:  # bytes that are no UTF-8, or an integer of thousands of digits
        raise HeaderError("LUKS2 header: the JSON holds a number or text that cannot be read") from None
    if not isinstance(value, dict):
        raise HeaderError("LUKS2 header: the JSON is no object")
    if _nested(value) > _MOST_NESTED:
        raise HeaderError("LUKS2 header: the JSON is nested too deeply")
    return value


def _nested(value: Any) -> int:
    """How many objects and arrays are inside each other."""
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth


def _area(keyslot: Fields) -> tuple[int, int]:
    area = keyslot.child("area")
    return area.decimal("offset"), area.decimal("size")


def _check_areas(areas: Iterable[tuple[int, int]], start: int, end: int) -> None:
    taken = start
    for offset, size in sorted(areas):
        if offset < taken:
            raise HeaderError("LUKS2 header: a key slot area overlaps the header or another one")
        if size == 0:
            raise HeaderError("LUKS2 header: a key slot area is empty")
        taken = offset + size
        if taken > end:
            raise HeaderError(f"LUKS2 header: a key slot area ends at {taken}, outside its place (which ends at {end})")


def _keyslots(top: Fields, notes: list[str]) -> Iterable[Keyslot]:
    for number, fields in top.numbered("keyslots").items():
        kind = fields.text("type")
        if kind not in _KEYSLOT_TYPES:
            notes.append(f"LUKS2 key slot {number} of type '{kind}' is not used")
            continue
        key_size = fields.integer("key_size", 1, 512)
        area, split = fields.child("area"), fields.child("af")
        if area.text("type") != "raw" or split.text("type") != "luks1":
            raise HeaderError(f"LUKS2 key slot {number} has an area or splitting of unknown type")
        if split.integer("stripes", 1, 1 << 32) != STRIPES:
            raise HeaderError(f"LUKS2 key slot {number} has not the {STRIPES} stripes of the specification")
        offset, length = _area(fields)
        if -(-key_size * STRIPES // SECTOR) * SECTOR > length:
            raise HeaderError(f"LUKS2 key slot {number}: its area of {length} bytes is too small for its key")
        kdf = _kdf(fields.child("kdf"))
        if kdf is None:
            notes.append(f"LUKS2 key slot {number} has an unknown key derivation and is not used")
            continue
        priority = fields.integer("priority", 0, 2) if "priority" in fields else 1
        yield Keyslot(
            number, key_size, kdf, offset, length, area.text("encryption"), area.integer("key_size", 1, 512), STRIPES,
            check_hash(split.text("hash")), priority,
        )  # fmt: skip


def _kdf(fields: Fields) -> Kdf | None:
    kind = fields.text("type")
    if kind not in _KDFS:
        return None
    salt = fields.base64("salt")
    if kind == "pbkdf2":
        return Kdf(kind, salt, fields.integer("iterations", 1, 1 << 32), check_hash(fields.text("hash")))
    time, memory = fields.integer("time", 1, 1 << 32), fields.integer("memory", 8, 1 << 40)
    return Kdf(kind, salt, time, memory=memory, lanes=fields.integer("cpus", 1, 1 << 32))


def _digest(number: int, fields: Fields) -> Digest:
    if (kind := fields.text("type")) != "pbkdf2":
        raise HeaderError(f"LUKS2 digest {number} of type '{kind}' is not supported")
    value = fields.base64("digest")
    if not 16 <= len(value) <= 64:
        raise HeaderError(f"LUKS2 digest {number} of {len(value)} bytes makes no sense")
    return Digest(
        number, check_hash(fields.text("hash")), fields.base64("salt"), fields.integer("iterations", 1, 1 << 32),
        value, frozenset(fields.numbers("keyslots")), frozenset(fields.numbers("segments")),
    )  # fmt: skip


def _check_digests(digests: Iterable[Digest], keyslots: Iterable[int], segments: Iterable[int]) -> None:
    bound = [number for digest in digests for number in digest.keyslots]
    if sorted(bound) != sorted(keyslots):
        raise HeaderError("LUKS2 header: the digests do not name every key slot exactly once")
    if not {number for digest in digests for number in digest.segments} <= set(segments):
        raise HeaderError("LUKS2 header: a digest names a segment that is not there")


def _segments(top: Fields) -> Iterable[Segment]:
    """The segments that hold data; those kept as a backup are left out."""
    backup_seen = False
    for number, fields in sorted(top.numbered("segments").items()):
        flags = fields.texts("flags") if "flags" in fields else []
        kind, offset, size = fields.text("type"), fields.decimal("offset"), _segment_size(fields)
        backup = any(flag.startswith("backup-") for flag in flags)
        if backup_seen and not backup:
            raise HeaderError(f"LUKS2 segment {number} stands behind a backup segment")
        backup_seen |= backup
        if kind == "crypt":
            segment = _crypt_segment(number, fields, offset, size)
        else:
            trouble = f"LUKS2 segment {number} of type '{kind[:32]}' is not supported"
            segment = Segment(number, offset, size, "", trouble=trouble)
        if not backup:
            yield segment


def _crypt_segment(number: int, fields: Fields, offset: int, size: int | None) -> Segment:
    encryption, tweak = fields.text("encryption"), fields.decimal("iv_tweak")
    sector_size = fields.integer("sector_size", SECTOR, 4096)
    if sector_size & (sector_size - 1):
        raise HeaderError(f"LUKS2 segment {number} has sectors of {sector_size} bytes, which cannot be")
    if offset % SECTOR or (size or 0) % sector_size:
        raise HeaderError(f"LUKS2 segment {number} does not begin or end at a sector")
    trouble = ""
    if "integrity" in fields:
        trouble = "LUKS2 with integrity protection (authenticated encryption) is not supported"
    else:
        try:
            CipherName.parse(encryption)
        except HeaderError as error:
            trouble = str(error)
    return Segment(number, offset, size, encryption, sector_size, tweak, trouble)


def _segment_size(fields: Fields) -> int | None:
    if fields.text("size") == "dynamic":
        return None
    size = fields.decimal("size")
    if size == 0:
        raise HeaderError(f"{fields.name}.size is 0")
    return size


def _check_segments(top: Fields, length: int) -> None:
    for number, fields in top.numbered("segments").items():
        if (offset := fields.decimal("offset")) == 0:
            raise HeaderError("this LUKS2 header has its data elsewhere: give this as header=, over the data")
        if offset < length:
            raise HeaderError(f"LUKS2 segment {number} begins at {offset}, inside the header of {length} bytes")


def _requirements(config: Fields) -> tuple[str, ...]:
    """The mandatory requirements: an object with them on the disk, an array in the specification's text."""
    if "requirements" not in config:
        return ()
    if isinstance(config.values["requirements"], list):
        return tuple(config.texts("requirements"))
    requirements = config.child("requirements")
    return tuple(requirements.texts("mandatory")) if "mandatory" in requirements else ()


def _text(field: bytes, what: str) -> str:
    try:
        text = field.split(b"\0", 1)[0].decode()
    except UnicodeDecodeError:
        text = "\0"
    if not text.isprintable():
        raise HeaderError(f"the {what} of the LUKS2 header is no text")
    return text
