"""The ciphers of LUKS by name (`aes-xts-plain64`), over whole sectors.

A `SectorCipher` may be used by any number of threads: each gets contexts and buffers of its own, made once.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from cryptography.hazmat.decrepit.ciphers.algorithms import SEED, Camellia
from cryptography.hazmat.primitives.ciphers.algorithms import AES, SM4

from nbdfs.backends.luks.volume import SECTOR, HeaderError
from nbdfs.backends.luks.xts import BLOCK, CHUNK, FillIv, Words, Xts, ecb
from nbdfs.records import Record

_ALGORITHMS: dict[str, type[Any]] = {"aes": AES, "camellia": Camellia, "seed": SEED, "sm4": SM4}
_KEY_SIZES = {"aes": (16, 24, 32), "camellia": (16, 24, 32), "seed": (16,), "sm4": (16,)}  # bytes
_NAME = re.compile(r"([a-z0-9_]+)-([a-z0-9]+)(?:-([a-z0-9]+)(?::([a-z0-9-]+))?)?")
_EVERY = (1 << 64) - 1
_NARROW = 5  # benbi counts blocks of 16 bytes: 512 = 16 << 5


class _Engine(Protocol):
    """One thread's cipher: whole sectors, CHUNK bytes at most, each with its number; `target` may be `source`."""

    def decrypt(self, source: memoryview, target: memoryview, numbers: Words) -> None: ...

    def encrypt(self, source: memoryview, target: memoryview, numbers: Words) -> None: ...


class Piece(NamedTuple):
    """Whole sectors to encrypt or decrypt, the first being number `first` in units of 512 bytes."""

    source: memoryview
    target: memoryview
    first: int


_Operation = Callable[[memoryview, memoryview, Words], None]


class CipherName(Record):
    """A cipher as LUKS writes it: algorithm-mode-iv[:hash]."""

    text: str
    algorithm: str
    mode: str
    iv: str
    iv_hash: str

    @classmethod
    def parse(cls, text: str) -> CipherName:
        """Raises HeaderError for what is not supported, by name."""
        match = _NAME.fullmatch(text)
        if not match:
            raise HeaderError(f"the cipher '{text[:64]}' is not supported: it is no ALGORITHM-MODE-IV")
        name = cls(text, match[1], match[2], match[3] or "", match[4] or "")
        if name.algorithm in ("cipher_null", "null"):
            raise HeaderError("the cipher is 'cipher_null': nothing is encrypted, and anyone may have written it")
        for kind, word, known in (("algorithm", name.algorithm, _ALGORITHMS), ("mode", name.mode, _MODES)):
            if word not in known:
                raise HeaderError(f"the cipher {kind} '{word}' of {text} is not supported (only {', '.join(known)})")
        if name.iv not in _IVS or (not name.iv and name.mode != "ecb"):
            raise HeaderError(f"the initialisation vector '{name.iv}' of {text} is not supported")
        if (name.iv == "essiv") != bool(name.iv_hash):
            raise HeaderError(f"the initialisation vector of {text} makes no sense")
        if name.iv_hash:
            check_hash(name.iv_hash)
            if hashlib.new(name.iv_hash).digest_size not in _KEY_SIZES[name.algorithm]:
                raise HeaderError(f"the hash of {text} gives no key of {name.algorithm}")
        return name

    def check_key_size(self, size: int) -> None:
        """Raises HeaderError unless a key of `size` bytes fits."""
        halves = 2 if self.mode == "xts" else 1
        if size not in [halves * one for one in _KEY_SIZES[self.algorithm]]:
            raise HeaderError(f"a key of {8 * size} bits does not fit the cipher {self.text}")


def check_hash(name: str) -> str:
    """The name, if there is such a hash of fixed length; HeaderError if not."""
    try:
        if hashlib.new(name).digest_size:
            return name
    except ValueError:
        pass
    raise HeaderError(f"the hash '{name[:32]}' is not supported by the OpenSSL of this Python")


class SectorCipher:
    """Encrypts and decrypts runs of whole sectors."""

    def __init__(self, name: CipherName, key: bytes, sector_size: int = SECTOR) -> None:
        name.check_key_size(len(key))
        self._name = name
        self._key = key
        self._sector_size = sector_size
        self._count = np.arange(0, CHUNK // SECTOR, sector_size // SECTOR, dtype="<u8")
        self._local = threading.local()

    def decrypt(self, source: memoryview, target: memoryview, first: int) -> None:
        """Decrypt whole sectors, the first being number `first` in units of 512 bytes; `target` may be `source`."""
        self._run(self._engine().decrypt, source, target, first)

    def encrypt(self, source: memoryview, target: memoryview, first: int) -> None:
        """The reverse."""
        self._run(self._engine().encrypt, source, target, first)

    def decrypt_runs(self, data: memoryview, firsts: Sequence[int]) -> None:
        """Decrypt in place runs of one length, CHUNK bytes at most, that lie one behind the other.

        `firsts` are the numbers of their first sectors.
        """
        self._run_runs(self._engine().decrypt, data, data, firsts)

    def encrypt_runs(self, source: memoryview, target: memoryview, firsts: Sequence[int]) -> None:
        """The reverse, into a buffer of the same length."""
        self._run_runs(self._engine().encrypt, source, target, firsts)

    def decrypt_pieces(self, pieces: Sequence[Piece]) -> None:
        """Decrypt pieces of the same length, CHUNK bytes in all at most."""
        self._run_pieces(self._engine().decrypt, pieces)

    def encrypt_pieces(self, pieces: Sequence[Piece]) -> None:
        """The reverse."""
        self._run_pieces(self._engine().encrypt, pieces)

    def _run(self, operation: _Operation, source: memoryview, target: memoryview, first: int) -> None:
        for at in range(0, len(source), CHUNK):
            part = slice(at, at + CHUNK)
            count = self._count[: (len(source) - at) // self._sector_size]
            operation(source[part], target[part], count + np.uint64(first + at // SECTOR & _EVERY))

    def _run_runs(self, operation: _Operation, source: memoryview, target: memoryview, firsts: Sequence[int]) -> None:
        size = self._sector_size
        starts = np.array([first & _EVERY for first in firsts], "<u8")
        numbers = np.add.outer(starts, self._count[: len(source) // len(firsts) // size]).reshape(-1)
        for at in range(0, len(source), CHUNK):
            part = slice(at, at + CHUNK)
            operation(source[part], target[part], numbers[at // size : (at + CHUNK) // size])

    def _run_pieces(self, operation: _Operation, pieces: Sequence[Piece]) -> None:
        length = len(pieces[0].source)
        if len(pieces) == 1:
            self._run(operation, *pieces[0])
            return
        data = memoryview(bytearray().join([piece.source for piece in pieces]))
        self._run_runs(operation, data, data, [piece.first for piece in pieces])
        for at, piece in enumerate(pieces):
            piece.target[:] = data[at * length : (at + 1) * length]

    def _engine(self) -> _Engine:
        engine: _Engine | None = getattr(self._local, "engine", None)
        if engine is None:
            name = self._name
            algorithm = _ALGORITHMS[name.algorithm]
            fill_iv = _IVS[name.iv]
            if name.iv == "essiv":
                fill_iv = _essiv(algorithm(hashlib.new(name.iv_hash, self._key).digest()), fill_iv)
            engine = self._local.engine = _MODES[name.mode](algorithm, self._key, self._sector_size, fill_iv)
        return engine


def _plain(mask: int, swap: bool = False, shift: int = 0, plus: int = 0) -> FillIv:
    """IVs that are the sector number, in units of 512 bytes whatever the sector size."""
    every = mask == _EVERY

    def fill(iv: Words, numbers: Words) -> None:
        column = iv[:, 1 if swap else 0]
        column[:] = numbers if every else numbers & np.uint64(mask)
        if shift or plus:
            column[:] = (column << np.uint64(shift)) + np.uint64(plus)
        if swap:
            column.byteswap(inplace=True)

    return fill


def _essiv(algorithm: Any, fill: FillIv) -> FillIv:
    """IVs that are the sector number encrypted with a hash of the key."""
    context = ecb(algorithm).encryptor()
    result = bytearray(CHUNK // SECTOR * BLOCK + BLOCK)
    words = np.frombuffer(result, "<u8")

    def fill_encrypted(iv: Words, numbers: Words) -> None:
        iv[:, 1] = 0
        fill(iv, numbers)
        context.update_into(iv.data.cast("B"), memoryview(result)[: iv.nbytes + BLOCK])
        iv[:] = words[: iv.size].reshape(iv.shape)

    return fill_encrypted


class _Blocks:
    """What ECB and CBC share: data seen as sectors of blocks of two words."""

    def __init__(self, algorithm: type[Any], key: bytes, sector_size: int, fill_iv: FillIv) -> None:
        cipher = ecb(algorithm(key))
        self._encryptor, self._decryptor = cipher.encryptor(), cipher.decryptor()
        self._fill_iv = fill_iv
        self._shape = (-1, sector_size // BLOCK, 2)
        self._iv = np.zeros((CHUNK // sector_size, 2), "<u8")
        self._result = bytearray(CHUNK + BLOCK)

    def _grid(self, data: memoryview | bytearray, length: int) -> Words:
        return np.frombuffer(data, "<u8", length // 8).reshape(self._shape)


class _Ecb(_Blocks):
    """Every block by itself."""

    def decrypt(self, source: memoryview, target: memoryview, numbers: Words) -> None:
        self._decryptor.update_into(source, self._result)
        target[:] = memoryview(self._result)[: len(source)]

    def encrypt(self, source: memoryview, target: memoryview, numbers: Words) -> None:
        self._encryptor.update_into(source, self._result)
        target[:] = memoryview(self._result)[: len(source)]


class _Cbc(_Blocks):
    """Each block is XORed with the ciphertext of the one before, the first of a sector with the IV."""

    def decrypt(self, source: memoryview, target: memoryview, numbers: Words) -> None:
        length = len(source)
        self._decryptor.update_into(source, self._result)
        cipher, plain = self._grid(source, length), self._grid(self._result, length)
        iv = self._iv[: len(cipher)]
        self._fill_iv(iv, numbers)
        plain[:, 1:] ^= cipher[:, :-1]
        plain[:, 0] ^= iv
        target[:] = memoryview(self._result)[:length]

    def encrypt(self, source: memoryview, target: memoryview, numbers: Words) -> None:
        """A sector's blocks follow from each other, but those of different sectors do not: they are done abreast."""
        blocks = self._grid(source, len(source)).transpose(1, 0, 2).copy()  # never the caller's own memory
        iv = self._iv[: blocks.shape[1]]
        self._fill_iv(iv, numbers)
        size = iv.nbytes
        previous = np.frombuffer(self._result, "<u8", size // 8).reshape(iv.shape)
        chained = iv
        for block in blocks:
            block ^= chained
            self._encryptor.update_into(block.data.cast("B"), self._result)
            block[:] = previous
            chained = block
        target[:] = np.ascontiguousarray(blocks.transpose(1, 0, 2)).data.cast("B")


_IVS: dict[str, FillIv] = {
    "plain": _plain(0xFFFFFFFF),
    "plain64": _plain(_EVERY),
    "plain64be": _plain(_EVERY, swap=True),
    "benbi": _plain(_EVERY, swap=True, shift=_NARROW, plus=1),
    "essiv": _plain(_EVERY),
    "": _plain(_EVERY),
}
_MODES: dict[str, Callable[[type[Any], bytes, int, FillIv], _Engine]] = {"xts": Xts, "cbc": _Cbc, "ecb": _Ecb}
