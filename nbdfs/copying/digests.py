"""Hashes of a device that is read in order: the plain digest, and the block hash that nbdcopy prints."""

from __future__ import annotations

import hashlib
from typing import Protocol

from nbdfs.copying.zeroes import zero_pieces
from nbdfs.errors import UsageError
from nbdfs.units import format_size, parse_size

_BLOCK = 64 << 10  # bytes; the block of a block hash if none is named
_LARGEST_BLOCK = 32 << 20
ALGORITHMS = ("md5", "sha1", "sha256", "sha512")


class Hasher(Protocol):
    """What takes the whole device in order and gives one value."""

    name: str

    def update(self, data: memoryview) -> None:
        """The next bytes."""

    def zero(self, length: int) -> None:
        """The next bytes, all zero."""

    def hexdigest(self) -> str:
        """The value, once everything was given."""


class Digest:
    """The digest of the whole content, as sha256sum and its kin print it."""

    def __init__(self, name: str) -> None:
        try:
            self._hash = hashlib.new(name)
        except (ValueError, TypeError):  # a name with NUL, or that is no UTF-8, is no string for hashlib
            known = ", ".join(sorted(hashlib.algorithms_guaranteed))
            raise UsageError(f"there is no digest '{name}'; there are: {known}") from None
        if not self._hash.digest_size:
            raise UsageError(f"the digest '{name}' has no fixed length: take sha256 or another")
        self.name = name
        self.update = self._hash.update

    def zero(self, length: int) -> None:
        for piece in zero_pieces(length):
            self._hash.update(piece)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


class BlockHash:
    """The block hash that nbdcopy --blkhash prints: H(H(block 1) ... H(block N) | length).

    The last block may be short, and the length in bytes is a little-endian 64-bit number (libnbd, copy/blkhash.c).
    A block of zeroes costs one update of the outer hash.
    """

    def __init__(self, text: str = "") -> None:
        """`text` is NAME, /SIZE or NAME/SIZE, by default sha256/64k."""
        name, _, size = text.partition("/")
        self._algorithm = name or "sha256"
        if self._algorithm not in ALGORITHMS:
            raise UsageError(f"there is no block hash '{self._algorithm}'; there are: {', '.join(ALGORITHMS)}")
        self._block = parse_size(size) if size else _BLOCK
        if not 0 < self._block <= _LARGEST_BLOCK:
            raise UsageError(f"the block of a block hash is 1 to {_LARGEST_BLOCK} bytes long, not {self._block}")
        if self._block & (self._block - 1):
            raise UsageError(f"the block of a block hash is a power of two, not {self._block} bytes")
        self.name = f"{self._algorithm}/{format_size(self._block)}"
        self._zero = hashlib.new(self._algorithm, bytes(self._block)).digest()
        self._outer = hashlib.new(self._algorithm)
        self._inner = hashlib.new(self._algorithm)
        self._filled = 0  # bytes of the block under way that `_inner` has seen
        self._length = 0

    def update(self, data: memoryview) -> None:
        self._length += len(data)
        while len(data):
            part = data[: self._block - self._filled]
            self._inner.update(part)
            self._filled += len(part)
            data = data[len(part) :]
            if self._filled == self._block:
                self._finish_block()

    def zero(self, length: int) -> None:
        head = min(-self._filled % self._block, length)
        for piece in zero_pieces(head):
            self.update(piece)
        blocks, tail = divmod(length - head, self._block)
        self._length += blocks * self._block
        batch = self._zero * min(blocks, 1024)
        for at in range(0, blocks, 1024):
            self._outer.update(batch[: (blocks - at) * len(self._zero)])
        for piece in zero_pieces(tail):
            self.update(piece)

    def hexdigest(self) -> str:
        if self._filled:
            self._finish_block()
        self._outer.update(self._length.to_bytes(8, "little"))
        return self._outer.hexdigest()

    def _finish_block(self) -> None:
        self._outer.update(self._inner.digest())
        self._inner = hashlib.new(self._algorithm)
        self._filled = 0
