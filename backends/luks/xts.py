"""XTS over many sectors in a handful of calls (IEEE Std 1619-2007, 5.3).

Block j of a sector is E1(P ^ T_j) ^ T_j with T_0 = E2(sector number) and T_j = T_0 * x^j in GF(2^128).  A context of
the library for each sector costs more than the 512 bytes it works on.  Here one ECB call makes every T_0, the masks
T_0..T_31 of each 512-byte row follow by shifts on whole arrays, and one ECB call does all data between two XORs.

For j < 32, with T = (high, low) as two 64-bit words and c = the j bits that leave at the top:
    low_j  = low << j  ^ c ^ c << 1 ^ c << 2 ^ c << 7      (x^128 = x^7 + x^2 + x + 1)
    high_j = high << j | low >> (64 - j)
All arrays are flat, and of one shape, since numpy starts a loop over such arrays in half the time of any other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

Words = NDArray[np.uint64]
FillIv = Callable[[Words, Words], None]

BLOCK = 16  # bytes
ROW = 512  # bytes whose masks are computed from one base
CHUNK = 128 << 10  # bytes done at once: its arrays stay in the cache of a core
_BLOCKS = ROW // BLOCK
_LINE = 64  # bytes of a line of the cache
_LARGE = 4096  # bytes of a sector for which a context of the library is cheaper than the masks of its eight rows
_ONE, _TWO, _SEVEN, _HALF = (np.array(shift, "<u8") for shift in (1, 2, 7, 32))


def ecb(algorithm: Any) -> Cipher[modes.ECB]:
    """The bare block cipher, from which every mode here is made."""
    return Cipher(algorithm, modes.ECB())  # noqa: S305


class Xts:
    """One thread's XTS of one key.  `fill_iv(words, numbers)` writes the IVs of the sectors with these numbers.

    `decrypt` and `encrypt` take whole sectors, CHUNK bytes at most, with their numbers; `target` may be `source`.
    """

    def __init__(self, algorithm: type[Any], key: bytes, sector_size: int, fill_iv: FillIv) -> None:
        half = len(key) // 2
        self._sector_size = sector_size
        self._fill_iv = fill_iv
        cipher = ecb(algorithm(key[:half]))
        self._encryptor, self._decryptor = cipher.encryptor(), cipher.decryptor()
        self._tweak = ecb(algorithm(key[half:])).encryptor()
        self._storage = _Storage(sector_size // ROW)
        self._rooms: dict[int, _Room] = {}
        library = algorithm is algorithms.AES and half in (16, 32) and key[:half] != key[half:]
        self._library = algorithms.AES(key) if library and sector_size >= _LARGE else None

    def decrypt(self, source: memoryview, target: memoryview, numbers: Words) -> None:
        self._run(self._decryptor, source, target, numbers)

    def encrypt(self, source: memoryview, target: memoryview, numbers: Words) -> None:
        self._run(self._encryptor, source, target, numbers)

    def _run(self, context: CipherContext, source: memoryview, target: memoryview, numbers: Words) -> None:
        room = self._room(len(source))
        self._fill_iv(room.iv, numbers)
        if self._library:
            self._run_library(self._library, context is self._encryptor, source, target, room.iv_bytes)
            return
        self._tweak.update_into(room.iv_bytes, room.tweak_bytes)
        room.spread()
        work, masks = room.work, room.masks
        np.bitwise_xor(np.frombuffer(source, "<u8"), masks, work)
        context.update_into(room.work_bytes, room.result_bytes)  # the same memory
        np.bitwise_xor(work, masks, np.frombuffer(target, "<u8"))

    def _run_library(
        self, key: algorithms.AES, encrypt: bool, source: memoryview, target: memoryview, ivs: memoryview
    ) -> None:
        size = self._sector_size
        for at, iv in zip(range(0, len(source), size), range(0, len(ivs), BLOCK), strict=True):
            cipher = Cipher(key, modes.XTS(ivs[iv : iv + BLOCK]))
            context = cipher.encryptor() if encrypt else cipher.decryptor()
            target[at : at + size] = context.update(source[at : at + size])

    def _room(self, size: int) -> _Room:
        room = self._rooms.get(size)
        if room is None:
            room = self._rooms[size] = _Room(self._storage, size)
        return room


def _words(count: int) -> Words:
    """An array that begins with a line of the cache: loops over such ones are a fifth faster."""
    whole = np.empty(count * 8 + _LINE, "u1")
    start = -whole.ctypes.data % _LINE
    return whole[start : start + count * 8].view("<u8")


class _Storage:
    """The memory that all rooms of a thread share, for a whole chunk."""

    def __init__(self, rows_per_sector: int) -> None:
        words, rows, self.rows_per_sector = CHUNK // BLOCK, CHUNK // ROW, rows_per_sector
        sectors = rows // rows_per_sector
        self.iv = np.zeros((sectors, 2), "<u8")
        self.tweaks = bytearray(sectors * BLOCK + BLOCK)  # ECB wants a block more than it writes
        self.bases = np.empty((2, rows), "<u8")
        self.low, self.high, self.sum, self.carry, self.shifted = (_words(words) for _ in range(5))
        self.left, self.right = _words(words), _words(words)
        self.left[:] = np.tile(np.arange(_BLOCKS, dtype="<u8"), rows)
        self.right[:] = 64 - self.left  # a shift by 64 gives 0
        self.masks = _words(words * 2)
        self.work = _words(words * 2 + BLOCK // 8)


class _Room:
    """The views of the storage for one length, made once: making a view costs as much as using it."""

    def __init__(self, storage: _Storage, size: int) -> None:
        words, rows = size // BLOCK, size // ROW
        self._rows = storage.rows_per_sector
        sectors = rows // self._rows
        self.iv = storage.iv[:sectors]
        self.iv_bytes = self.iv.data.cast("B")
        self.tweak_bytes = memoryview(storage.tweaks)[: sectors * BLOCK + BLOCK]
        self._tweaks = np.frombuffer(storage.tweaks, "<u8", sectors * 2).reshape(sectors, 2)
        self._bases = storage.bases[:, :rows].reshape(2, self._rows, sectors)  # row by row: long contiguous runs
        self._low, self._high = storage.low[:words], storage.high[:words]
        shape = (sectors, self._rows, _BLOCKS)
        self._low_grid, self._high_grid = self._low.reshape(shape), self._high.reshape(shape)
        self._low_base, self._high_base = (
            tuple(self._tweaks.T.reshape(2, sectors, 1, 1))
            if self._rows == 1
            else tuple(base.T[:, :, np.newaxis] for base in self._bases)
        )
        self._sum, self._carry, self._shifted = storage.sum[:words], storage.carry[:words], storage.shifted[:words]
        self._left, self._right = storage.left[:words], storage.right[:words]
        self.masks = storage.masks[: words * 2]
        self._masks_low, self._masks_high = self.masks[0::2], self.masks[1::2]
        self.work = storage.work[: words * 2]
        whole = storage.work.data.cast("B")
        self.work_bytes, self.result_bytes = whole[:size], whole[: size + BLOCK]

    def spread(self) -> None:
        """Make the masks of all blocks from the encrypted sector numbers."""
        if self._rows > 1:
            self._step_rows()
        np.copyto(self._low_grid, self._low_base)
        np.copyto(self._high_grid, self._high_base)
        low, high, total, carry, shifted = self._low, self._high, self._sum, self._carry, self._shifted
        np.right_shift(high, self._right, carry)
        np.left_shift(low, self._left, total)
        np.bitwise_xor(total, carry, total)
        np.left_shift(carry, _ONE, shifted)
        np.bitwise_xor(total, shifted, total)
        np.left_shift(carry, _TWO, shifted)
        np.bitwise_xor(total, shifted, total)
        np.left_shift(carry, _SEVEN, shifted)
        np.bitwise_xor(total, shifted, self._masks_low)
        np.left_shift(high, self._left, shifted)
        np.right_shift(low, self._right, carry)
        np.bitwise_xor(shifted, carry, self._masks_high)

    def _step_rows(self) -> None:
        """The bases of the rows of each sector: each is the one before times x^32."""
        lows, highs = self._bases
        lows[0], highs[0] = self._tweaks.T
        for row in range(1, self._rows):
            low, high = lows[row - 1], highs[row - 1]
            carry = high >> _HALF
            highs[row] = high << _HALF | low >> _HALF
            lows[row] = low << _HALF ^ carry ^ carry << _ONE ^ carry << _TWO ^ carry << _SEVEN
