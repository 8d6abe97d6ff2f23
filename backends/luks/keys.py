"""Add and remove key slots, so that a crash at any moment leaves every other slot as it was.

Order of writing, each step durable before the next: new key material, then the header that names it; to remove, the
old material is overwritten first, then the header forgets it.  Of LUKS2's two copies the one that was read is written
last, for the other may be damaged or old: at each moment one of them is whole and knows every other slot.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import trio

from nbdfs.backends.luks import header1, header2
from nbdfs.backends.luks.derivation import Effort, new_kdf
from nbdfs.backends.luks.device import Found
from nbdfs.backends.luks.header1 import Luks1
from nbdfs.backends.luks.header2 import Luks2
from nbdfs.backends.luks.kdf import Budget
from nbdfs.backends.luks.keyslot import seal
from nbdfs.backends.luks.volume import SECTOR, Kdf, Keyslot
from nbdfs.errors import UserError
from nbdfs.ranges import align_up, pieces
from nbdfs.records import replace
from nbdfs.source import Source

_MOST_SLOTS = 32  # of LUKS2
_AREA_CIPHER, _AREA_KEY_SIZE = "aes-xts-plain64", 64
_ALIGNMENT = 4096  # bytes of key slot areas
_WIPE = 1 << 20  # bytes overwritten at once


async def add_key(device: Source, found: Found, key: bytes, passphrase: bytes, effort: Effort, wish: int | None) -> int:
    """Let `passphrase` open the volume key `key` too; gives the number of the new slot (`wish`, or the first free)."""
    written = found.written
    number = _free_number(found, wish)
    if isinstance(written, Luks1):
        effort = replace(effort, kind="pbkdf2", hash=written.hash)
        kdf = await trio.to_thread.run_sync(new_kdf, effort, len(key))
        await _write_material(device, _slot1(written, number, kdf), passphrase, key)
        await write_header(device, _with_slot1(written, number, kdf))
    else:
        kdf = await trio.to_thread.run_sync(new_kdf, effort, _AREA_KEY_SIZE)
        slot = _slot2(written, number, kdf, len(key), effort.hash)
        await _write_material(device, slot, passphrase, key)
        await write_header(device, _with_slot2(written, slot, found))
    return number


async def remove_key(device: Source, found: Found, number: int) -> None:
    """Make the slot useless, for good."""
    slot = next((slot for slot in found.header.keyslots if slot.number == number), None)
    if slot is None:
        raise UserError(f"there is no key slot {number} in use")
    written = found.written
    without = _without_slot1(written, number) if isinstance(written, Luks1) else _without_slot2(written, number)
    for at, size in pieces(slot.offset, slot.length, _WIPE):
        await device.pwrite(memoryview(os.urandom(size)), at)
    await device.flush()
    await write_header(device, without)


async def write_header(device: Source, written: Luks1 | Luks2) -> None:
    """Write a header; of LUKS2 both copies, with the next sequence number, the one that `written` is last."""
    if isinstance(written, Luks1):
        await device.pwrite(memoryview(written.pack()), 0)
        await device.flush()
        return
    for place in (written.size - written.place, written.place):
        data = replace(written, place=place, sequence=written.sequence + 1).pack()
        await device.pwrite(memoryview(data), place)
        await device.flush()


def _free_number(found: Found, wish: int | None) -> int:
    most, used = header1.SLOTS, {slot.number for slot in found.header.keyslots}
    if isinstance(found.written, Luks2):
        most, used = _MOST_SLOTS, set(map(int, found.written.metadata["keyslots"]))
    if wish is not None:
        if wish in used or not 0 <= wish < most:
            raise UserError(f"key slot {wish} is in use" if wish in used else f"there is no key slot {wish}")
        return wish
    free = [number for number in range(most) if number not in used]
    if not free:
        raise UserError(f"all {most} key slots are in use: remove one first")
    return free[0]


async def _write_material(device: Source, slot: Keyslot, passphrase: bytes, key: bytes) -> None:
    budget = Budget(1 << 62, 1 << 62)  # the costs are our own choice
    material = await trio.to_thread.run_sync(seal, slot, passphrase, key, budget)
    await device.pwrite(memoryview(material), slot.offset)
    await device.flush()


def _slot1(written: Luks1, number: int, kdf: Kdf) -> Keyslot:
    raw = written.slots[number]
    return Keyslot(
        number, written.key_size, kdf, raw.offset * SECTOR, written.area_length(raw),
        f"{written.cipher}-{written.mode}", written.key_size, raw.stripes, written.hash,
    )  # fmt: skip


def _with_slot1(written: Luks1, number: int, kdf: Kdf) -> Luks1:
    slots = list(written.slots)
    slots[number] = replace(slots[number], enabled=True, iterations=kdf.iterations, salt=kdf.salt)
    return replace(written, slots=tuple(slots))


def _without_slot1(written: Luks1, number: int) -> Luks1:
    slots = list(written.slots)
    slots[number] = replace(slots[number], enabled=False, iterations=0, salt=bytes(header1.SALT_LENGTH))
    return replace(written, slots=tuple(slots))


def _slot2(written: Luks2, number: int, kdf: Kdf, key_size: int, hash_name: str) -> Keyslot:
    length = align_up(key_size * header2.STRIPES, _ALIGNMENT)
    return Keyslot(
        number, key_size, kdf, _free_area(written, length), length, _AREA_CIPHER, _AREA_KEY_SIZE, header2.STRIPES,
        hash_name,
    )  # fmt: skip


def _free_area(written: Luks2, length: int) -> int:
    """Where the first gap of that length between the areas begins."""
    at = 2 * written.size
    areas = [slot["area"] for slot in written.metadata["keyslots"].values()]
    for offset, size in sorted((int(area["offset"]), int(area["size"])) for area in areas):
        if offset - at >= length:
            return at
        at = align_up(offset + size, _ALIGNMENT)
    if at + length > 2 * written.size + int(written.metadata["config"]["keyslots_size"]):
        raise UserError("there is no room for another key slot: remove one first")
    return at


def _with_slot2(written: Luks2, slot: Keyslot, found: Found) -> Luks2:
    metadata = copy.deepcopy(written.metadata)
    metadata["keyslots"][str(slot.number)] = keyslot_json(slot)
    digest = found.header.digest_of(found.header.data_segment())
    metadata["digests"][str(digest.number)]["keyslots"].append(str(slot.number))
    return replace(written, metadata=metadata)


def _without_slot2(written: Luks2, number: int) -> Luks2:
    metadata = copy.deepcopy(written.metadata)
    del metadata["keyslots"][str(number)]
    for user in [*metadata["digests"].values(), *metadata["tokens"].values()]:
        if isinstance(user.get("keyslots"), list):  # a token is what its maker wrote
            user["keyslots"] = [name for name in user["keyslots"] if name != str(number)]
    return replace(written, metadata=metadata)


def keyslot_json(slot: Keyslot) -> dict[str, Any]:
    """A key slot as LUKS2 writes it."""
    return {
        "type": "luks2",
        "key_size": slot.key_size,
        "af": {"type": "luks1", "stripes": slot.stripes, "hash": slot.stripe_hash},
        "area": {
            "type": "raw",
            "offset": str(slot.offset),
            "size": str(slot.length),
            "encryption": slot.encryption,
            "key_size": slot.area_key_size,
        },
        "kdf": _kdf_json(slot.kdf),
    }


def _kdf_json(kdf: Kdf) -> dict[str, Any]:
    salt = header2.to_base64(kdf.salt)
    if kdf.kind == "pbkdf2":
        return {"type": kdf.kind, "hash": kdf.hash, "iterations": kdf.iterations, "salt": salt}
    return {"type": kdf.kind, "time": kdf.iterations, "memory": kdf.memory, "cpus": kdf.lanes, "salt": salt}
