"""Random bytes that can be had at any offset: AES in counter mode, keyed by a seed.

The stream of a seed never changes, whatever the order, size and number of the requests, and a processor with AES
instructions makes several gigabytes of it a second.  Secret it is not: the seed is a small number.
"""

from __future__ import annotations

import hashlib
import os

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

_BLOCK = 16  # bytes of the stream for each count
_CHUNK = 1 << 20
_ZEROES = memoryview(bytes(_CHUNK))


def new_seed() -> int:
    """A seed that nobody had before."""
    return int.from_bytes(os.urandom(4), "little")


class Keystream:
    """The stream of a seed (any integer) for one purpose; streams of different purposes have nothing in common."""

    def __init__(self, seed: int, purpose: str) -> None:
        self._key = AES(hashlib.sha256(f"nbdfs {purpose} {seed}".encode()).digest()[:16])

    def fill(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer with the bytes of the stream at `offset`."""
        count, skip = divmod(offset, _BLOCK)
        stream = Cipher(self._key, CTR(count.to_bytes(16, "big"))).encryptor()
        if skip:
            stream.update(_ZEROES[:skip])
        for at in range(0, len(buffer), _CHUNK):
            piece = buffer[at : at + _CHUNK]
            stream.update_into(_ZEROES[: len(piece)], piece)

    def read(self, offset: int, length: int) -> bytearray:
        """The bytes of the stream there."""
        data = bytearray(length)
        self.fill(memoryview(data), offset)
        return data
