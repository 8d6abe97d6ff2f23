"""Anti-forensic stripes (LUKS1 on-disk format 1.2.3, 2.4): a key spread so that losing any part of it loses it all."""

from __future__ import annotations

import hashlib
import os


def merge(material: bytes | memoryview, size: int, stripes: int, name: str) -> bytes:
    """The key of `size` bytes from `stripes` times as much material."""
    state = bytes(size)
    for stripe in range(stripes - 1):
        state = _diffuse(_xor(state, material[stripe * size : (stripe + 1) * size]), name)
    return _xor(state, material[(stripes - 1) * size : stripes * size])


def split(key: bytes, stripes: int, name: str) -> bytes:
    """Random material that `merge` makes `key` of."""
    size = len(key)
    material = os.urandom(size * (stripes - 1))
    state = bytes(size)
    for stripe in range(stripes - 1):
        state = _diffuse(_xor(state, material[stripe * size : (stripe + 1) * size]), name)
    return material + _xor(state, key)


def _diffuse(block: bytes, name: str) -> bytes:
    """Each piece of the hash's length is replaced by the hash of its number and itself; the last may be cut."""
    step = hashlib.new(name).digest_size
    return b"".join(
        hashlib.new(name, index.to_bytes(4, "big") + block[at : at + step]).digest()[: len(block) - at]
        for index, at in enumerate(range(0, len(block), step))
    )


def _xor(one: bytes, two: bytes | memoryview) -> bytes:
    return (int.from_bytes(one, "little") ^ int.from_bytes(two, "little")).to_bytes(len(one), "little")
