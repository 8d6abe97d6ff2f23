"""Key slots: from a passphrase to the volume key and back."""

from __future__ import annotations

import functools
import hmac
import logging
from collections.abc import Sequence

import trio

from nbdfs.backends.luks import antiforensic
from nbdfs.backends.luks.cipher import CipherName, SectorCipher
from nbdfs.backends.luks.kdf import Budget, derive, pbkdf2
from nbdfs.backends.luks.volume import SECTOR, Digest, Header, HeaderError, Keyslot
from nbdfs.errors import UserError
from nbdfs.source import Source, read

log = logging.getLogger(__name__)


async def unlock(
    device: Source, header: Header, digest: Digest, passphrase: bytes, only: int | None, budget: Budget
) -> tuple[int, bytes]:
    """The number of the slot that the passphrase opens, and the key that `digest` approves.

    `device` holds the header; `only` tries one slot.  Raises UserError if no slot opens; which ones there are, or how
    far each came, is not told.
    """
    troubles: list[HeaderError] = []
    for slot in candidates(header, digest, only):
        try:
            key = await _open_slot(device, slot, digest, passphrase, budget)
        except HeaderError as error:
            troubles.append(error)  # another slot may be sound
            continue
        if key is not None:
            return slot.number, key
    if troubles:
        raise troubles[0]
    raise UserError("no key slot opens with this passphrase")


def candidates(header: Header, digest: Digest, only: int | None) -> Sequence[Keyslot]:
    """The slots to try, by priority and number."""
    slots = [slot for slot in header.keyslots if slot.number in digest.keyslots]
    if only is not None:
        chosen = [slot for slot in slots if slot.number == only]
        if not chosen:
            raise UserError(f"there is no key slot {only} in use")
        return chosen
    tried = [slot for slot in slots if slot.priority > 0]
    if not tried:
        raise UserError("there is no key slot in use: only master-key= can open this")
    return sorted(tried, key=lambda slot: (-slot.priority, slot.number))


async def _open_slot(device: Source, slot: Keyslot, digest: Digest, passphrase: bytes, budget: Budget) -> bytes | None:
    cipher = CipherName.parse(slot.encryption)
    cipher.check_key_size(slot.area_key_size)
    material = await read(device, slot.offset, _material_length(slot))
    work = functools.partial(_recover, slot, cipher, digest, passphrase, material, budget)
    return await trio.to_thread.run_sync(work)


def _recover(
    slot: Keyslot, cipher: CipherName, digest: Digest, passphrase: bytes, material: bytearray, budget: Budget
) -> bytes | None:
    area_key = derive(passphrase, slot.kdf, slot.area_key_size, budget)
    view = memoryview(material)
    SectorCipher(cipher, area_key).decrypt(view, view, 0)
    key = antiforensic.merge(view, slot.key_size, slot.stripes, slot.stripe_hash)
    return key if approves(digest, key, budget) else None


def approves(digest: Digest, key: bytes, budget: Budget) -> bool:
    """Whether the digest is that of the key."""
    made = pbkdf2(key, digest.hash, digest.salt, digest.iterations, len(digest.value), budget)
    return hmac.compare_digest(made, digest.value)


def seal(slot: Keyslot, passphrase: bytes, key: bytes, budget: Budget) -> bytes:
    """What the slot's area must hold for the passphrase to give the key.  Takes seconds: call it in a thread."""
    material = bytearray(antiforensic.split(key, slot.stripes, slot.stripe_hash))
    material += bytes(_material_length(slot) - len(material))
    view = memoryview(material)
    SectorCipher(CipherName.parse(slot.encryption), derive(passphrase, slot.kdf, slot.area_key_size, budget)).encrypt(
        view, view, 0
    )
    return bytes(material)


def _material_length(slot: Keyslot) -> int:
    return -(-slot.key_size * slot.stripes // SECTOR) * SECTOR
