"""The ciphers of LUKS by name (`aes-xts-plain64`), over whole sectors.

A `SectorCipher` may be used by any number of threads: each gets contexts and buffers of its own, made once.
"""

from __future__ import annotations

import abc
import hashlib
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from cryptography.hazmat.decrepit.ciphers.algorithms import SEED, Camellia
from cryptography.hazmat.primitives.ciphers.algorithms import AES, SM4

from nbdfs.backends.luks.volume import SECTOR, HeaderError
from nbdfs.backends.luks.xts import BLOCK, CHUNK, FillIv, Words, Xts, ecb

_ALGORITHMS: dict[str, type[Any]] = {"aes": AES, "camellia": Camellia, "seed": SEED, "sm4": SM4}
_KEY_SIZES = {"aes": (16, 24, 32), "camellia": (16, 24, 32), "seed": (16,), "sm4": (16,)}  # bytes
_NAME = re.compile(r"([a-z0-9_]+)-([a-z0-9]+)(?:-([a-z0-9]+)(?::([a-z0-9-]+))?)?")
_NARROW = 5  # benbi counts blocks of 16 bytes: 512 = 16 << 5


class _Engine(Protocol):
    """One thread's cipher.  Sectors are numbered in units of 512 bytes; `target` may be `source`."""

    def decrypt(self, source: memoryview, target: memoryview, first: int) -> None: ...

    def encrypt(self, source: memoryview, target: memoryview, first: int) -> None: ...


@dataclass(frozen=True)
class CipherName:
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
        self._local = threading.local()

    def decrypt(self, source: memoryview, target: memoryview, first: int) -> None:
        """Decrypt whole sectors, the first being number `first` in units of 512 bytes; `target` may be `source`."""
        self._engine().decrypt(source, target, first)

    def encrypt(self, source: memoryview, target: memoryview, first: int) -> None:
        """The reverse."""
        self._engine().encrypt(source, target, first)

    def _engine(self) -> _Engine:
        engine: _Engine | None = getattr(self._local, "engine", None)
        if engine is None:
            name = self._name
            algorithm = _ALGORITHMS[name.algorithm]
            fill_iv = _IVS[name.iv](self._sector_size // SECTOR)
            if name.iv == "essiv":
                fill_iv = _essiv(algorithm(hashlib.new(name.iv_hash, self._key).digest()), fill_iv)
            engine = self._local.engine = _MODES[name.mode](algorithm, self._key, self._sector_size, fill_iv)
        return engine


def _plain(mask: int, swap: bool = False, shift: int = 0, plus: int = 0) -> Callable[[int], FillIv]:
    """IVs that are the sector number, in units of 512 bytes whatever the sector size: `step` of them a sector."""

    def make(step: int) -> FillIv:
        count = np.arange(0, CHUNK // SECTOR, step, dtype="<u8")
        start = np.array(0, "<u8")

        def fill(iv: Words, first: int) -> None:
            start[()] = first & mask
            column = iv[:, 1 if swap else 0]
            np.add(count[: len(iv)], start, column)
            if mask < 1 << 32:
                column &= np.uint64(mask)
            if shift or plus:
                column[:] = (column << np.uint64(shift)) + np.uint64(plus)
            if swap:
                column.byteswap(inplace=True)

        return fill

    return make


def _essiv(algorithm: Any, fill: FillIv) -> FillIv:
    """IVs that are the sector number encrypted with a hash of the key."""
    context = ecb(algorithm).encryptor()
    result = bytearray(CHUNK // SECTOR * BLOCK + BLOCK)
    words = np.frombuffer(result, "<u8")

    def fill_encrypted(iv: Words, first: int) -> None:
        iv[:, 1] = 0
        fill(iv, first)
        context.update_into(iv.data.cast("B"), memoryview(result)[: iv.nbytes + BLOCK])
        iv[:] = words[: iv.size].reshape(iv.shape)

    return fill_encrypted


class _Blocks(abc.ABC):
    """What ECB and CBC share: work in chunks, seen as sectors of blocks of two words."""

    def __init__(self, algorithm: type[Any], key: bytes, sector_size: int, fill_iv: FillIv) -> None:
        cipher = ecb(algorithm(key))
        self._encryptor, self._decryptor = cipher.encryptor(), cipher.decryptor()
        self._fill_iv = fill_iv
        self._shape = (-1, sector_size // BLOCK, 2)
        self._iv = np.zeros((CHUNK // sector_size, 2), "<u8")
        self._result = bytearray(CHUNK + BLOCK)

    def decrypt(self, source: memoryview, target: memoryview, first: int) -> None:
        for at in range(0, len(source), CHUNK):
            part = slice(at, at + CHUNK)
            self._decrypt(source[part], target[part], first + at // SECTOR)

    def encrypt(self, source: memoryview, target: memoryview, first: int) -> None:
        for at in range(0, len(source), CHUNK):
            part = slice(at, at + CHUNK)
            self._encrypt(source[part], target[part], first + at // SECTOR)

    @abc.abstractmethod
    def _decrypt(self, source: memoryview, target: memoryview, first: int) -> None:
        """Decrypt at most CHUNK bytes."""

    @abc.abstractmethod
    def _encrypt(self, source: memoryview, target: memoryview, first: int) -> None:
        """Encrypt at most CHUNK bytes."""

    def _grid(self, data: memoryview | bytearray, length: int) -> Words:
        return np.frombuffer(data, "<u8", length // 8).reshape(self._shape)


class _Ecb(_Blocks):
    """Every block by itself."""

    def _decrypt(self, source: memoryview, target: memoryview, first: int) -> None:
        self._decryptor.update_into(source, self._result)
        target[:] = memoryview(self._result)[: len(source)]

    def _encrypt(self, source: memoryview, target: memoryview, first: int) -> None:
        self._encryptor.update_into(source, self._result)
        target[:] = memoryview(self._result)[: len(source)]


class _Cbc(_Blocks):
    """Each block is XORed with the ciphertext of the one before, the first of a sector with the IV."""

    def _decrypt(self, source: memoryview, target: memoryview, first: int) -> None:
        length = len(source)
        self._decryptor.update_into(source, self._result)
        cipher, plain = self._grid(source, length), self._grid(self._result, length)
        iv = self._iv[: len(cipher)]
        self._fill_iv(iv, first)
        plain[:, 1:] ^= cipher[:, :-1]
        plain[:, 0] ^= iv
        target[:] = memoryview(self._result)[:length]

    def _encrypt(self, source: memoryview, target: memoryview, first: int) -> None:
        """A sector's blocks follow from each other, but those of different sectors do not: they are done abreast."""
        blocks = self._grid(source, len(source)).transpose(1, 0, 2).copy()  # never the caller's own memory
        iv = self._iv[: blocks.shape[1]]
        self._fill_iv(iv, first)
        size = iv.nbytes
        previous = np.frombuffer(self._result, "<u8", size // 8).reshape(iv.shape)
        chained = iv
        for block in blocks:
            block ^= chained
            self._encryptor.update_into(block.data.cast("B"), self._result)
            block[:] = previous
            chained = block
        target[:] = np.ascontiguousarray(blocks.transpose(1, 0, 2)).data.cast("B")


_EVERY = (1 << 64) - 1
_IVS: dict[str, Callable[[int], FillIv]] = {
    "plain": _plain(0xFFFFFFFF),
    "plain64": _plain(_EVERY),
    "plain64be": _plain(_EVERY, swap=True),
    "benbi": _plain(_EVERY, swap=True, shift=_NARROW, plus=1),
    "essiv": _plain(_EVERY),
    "": _plain(_EVERY),
}
_MODES: dict[str, Callable[[type[Any], bytes, int, FillIv], _Engine]] = {"xts": Xts, "cbc": _Cbc, "ecb": _Ecb}
