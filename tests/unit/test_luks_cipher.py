"""The batched ciphers against published vectors and the plain use of the library."""

from __future__ import annotations

import hashlib
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from cryptography.hazmat.decrepit.ciphers.algorithms import SEED, Camellia
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from nbdfs.backends.luks.cipher import CipherName, Piece, SectorCipher
from nbdfs.backends.luks.volume import HeaderError

KEY = bytes(range(64))
COUNTING = bytes(range(256)) * 2

# IEEE Std 1619-2007, Annex B: vectors 4 (AES-128, data unit 0) and 10 (AES-256, data unit 0xff), their first bytes.
IEEE_1619 = [
    ("27182818284590452353602874713526" "31415926535897932384626433832795", 0,
     "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c"
     "c78cf7f5e543445f8333d8fa7f56000005279fa5d8b5e4ad40e736ddb4d35412"),
    ("2718281828459045235360287471352662497757247093699959574966967627"
     "3141592653589793238462643383279502884197169399375105820974944592", 0xFF,
     "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b"
     "5d31e276f8fe4a8d66b317f9ac683f44680a86ac35adfc3345befecb4bb188fd"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "unit", "expected"), IEEE_1619, ids=["aes128", "aes256"])
def test_xts_ieee_1619(key: str, unit: int, expected: str) -> None:
    cipher = SectorCipher(CipherName.parse("aes-xts-plain64"), bytes.fromhex(key))
    assert encrypt(cipher, COUNTING, unit)[:64].hex() == expected


@settings(deadline=None, max_examples=60)
@given(
    key_size=st.sampled_from([32, 64]),
    sector_size=st.sampled_from([512, 1024, 2048, 4096]),
    sectors=st.integers(1, 150),
    first=st.one_of(st.integers(0, 1 << 20), st.integers((1 << 32) - 200, (1 << 32) + 200), st.just((1 << 55) - 8)),
    seed=st.binary(min_size=64, max_size=64),
)
def test_xts_is_that_of_the_library(key_size: int, sector_size: int, sectors: int, first: int, seed: bytes) -> None:
    key = hashlib.sha512(seed).digest()[:key_size]
    data = hashlib.shake_128(seed).digest(sectors * sector_size)
    cipher = SectorCipher(CipherName.parse("aes-xts-plain64"), key, sector_size)
    expected = b"".join(
        Cipher(algorithms.AES(key), modes.XTS(struct.pack("<QQ", first + at // 512, 0)))
        .encryptor()
        .update(data[at : at + sector_size])
        for at in range(0, len(data), sector_size)
    )
    assert encrypt(cipher, data, first) == expected
    assert decrypt_in_place(cipher, expected, first) == data


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(["aes-xts-plain64", "aes-xts-plain", "aes-cbc-essiv:sha256", "aes-cbc-plain64be"]),
    sector_size=st.sampled_from([512, 4096]),
    sectors=st.integers(1, 4),
    firsts=st.lists(st.integers(0, 1 << 40).map(lambda number: number * 8), min_size=1, max_size=4),
)
def test_pieces_are_done_as_each_alone(name: str, sector_size: int, sectors: int, firsts: list[int]) -> None:
    cipher = SectorCipher(CipherName.parse(name), KEY[: 64 if "xts" in name else 32], sector_size)
    plain = [hashlib.shake_128(bytes([at])).digest(sectors * sector_size) for at in range(len(firsts))]
    secret = [bytearray(len(data)) for data in plain]
    cipher.encrypt_pieces([
        Piece(memoryview(data), memoryview(room), first)
        for data, room, first in zip(plain, secret, firsts, strict=True)
    ])  # fmt: skip
    assert secret == [encrypt(cipher, data, first) for data, first in zip(plain, firsts, strict=True)]
    cipher.decrypt_pieces([
        Piece(memoryview(room), memoryview(room), first) for room, first in zip(secret, firsts, strict=True)
    ])  # fmt: skip
    assert secret == plain
    runs, result = b"".join(plain), bytearray(sum(map(len, plain)))
    cipher.encrypt_runs(memoryview(runs), memoryview(result), firsts)
    assert result == b"".join(encrypt(cipher, data, first) for data, first in zip(plain, firsts, strict=True))
    cipher.decrypt_runs(memoryview(result), firsts)
    assert result == runs


@pytest.mark.parametrize("sector_size", [1024, 4096])
@pytest.mark.parametrize("key_size", [48, 64])
def test_xts_of_large_sectors_without_the_library(sector_size: int, key_size: int) -> None:
    """Keys of two equal halves and of 2 x 192 bits go by the masks, also in large sectors."""
    key = (KEY[: key_size // 2]) * 2
    cipher = SectorCipher(CipherName.parse("aes-xts-plain64"), key, sector_size)
    data = hashlib.shake_128(b"x").digest(sector_size * 33)
    half = Cipher(algorithms.AES(key[: key_size // 2]), modes.ECB()).encryptor()
    expected = b""
    for sector in range(33):
        tweak = int.from_bytes(half.update(struct.pack("<QQ", 7 + sector * (sector_size // 512), 0)), "little")
        for at in range(sector * sector_size, (sector + 1) * sector_size, 16):
            mask = tweak.to_bytes(16, "little")
            expected += xor(half.update(xor(data[at : at + 16], mask)), mask)
            tweak = tweak << 1 ^ (0x87 if tweak >> 127 else 0)
            tweak &= (1 << 128) - 1
    assert encrypt(cipher, data, 7) == expected
    assert decrypt_in_place(cipher, expected, 7) == data


def _essiv(name: str, key: bytes, sector: int) -> bytes:
    salt = hashlib.new(name, key).digest()
    return Cipher(algorithms.AES(salt), modes.ECB()).encryptor().update(struct.pack("<QQ", sector, 0))


IVS = {
    "aes-cbc-plain": lambda key, sector: struct.pack("<IIQ", sector & 0xFFFFFFFF, 0, 0),
    "aes-cbc-plain64": lambda key, sector: struct.pack("<QQ", sector, 0),
    "aes-cbc-plain64be": lambda key, sector: struct.pack(">QQ", 0, sector),
    "aes-cbc-benbi": lambda key, sector: struct.pack(">QQ", 0, (sector << 5) + 1),
    "aes-cbc-essiv:sha256": lambda key, sector: _essiv("sha256", key, sector),
}


@pytest.mark.parametrize("name", IVS)
@pytest.mark.parametrize("key_size", [16, 24, 32])
@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize(("first", "sectors"), [(0, 131), ((1 << 32) - 8, 131), (5, 1)])
def test_cbc_with_every_iv(name: str, key_size: int, sector_size: int, first: int, sectors: int) -> None:
    key = KEY[:key_size]
    data = hashlib.shake_128(b"cbc").digest(sectors * sector_size)
    cipher = SectorCipher(CipherName.parse(name), key, sector_size)
    expected = b"".join(
        Cipher(algorithms.AES(key), modes.CBC(IVS[name](key, first + at // 512)))
        .encryptor()
        .update(data[at : at + sector_size])
        for at in range(0, len(data), sector_size)
    )
    assert encrypt(cipher, data, first) == expected
    assert decrypt_in_place(cipher, expected, first) == data


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [("camellia", Camellia(KEY[:16])), ("seed", SEED(KEY[:16])), ("sm4", algorithms.SM4(KEY[:16]))],
)
def test_other_algorithms(name: str, algorithm: Any) -> None:
    cipher = SectorCipher(CipherName.parse(f"{name}-cbc-plain64"), KEY[:16])
    expected = Cipher(algorithm, modes.CBC(struct.pack("<QQ", 3, 0))).encryptor().update(COUNTING)
    assert encrypt(cipher, COUNTING, 3) == expected
    assert decrypt_in_place(cipher, expected, 3) == COUNTING


def test_threads_do_not_share_buffers() -> None:
    cipher = SectorCipher(CipherName.parse("aes-xts-plain64"), KEY)
    data = hashlib.shake_128(b"threads").digest(1 << 18)
    expected = [encrypt(cipher, data, first) for first in range(8)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda first: encrypt(cipher, data, first), [*range(8)] * 4)) == expected * 4


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("serpent-xts-plain64", "serpent"),
        ("aes-lrw-benbi", "lrw"),
        ("aes-ctr-plain64", "ctr"),
        ("aes-xts-random", "random"),
        ("aes-xts", "vector"),
        ("aes-cbc-essiv", "sense"),
        ("aes-cbc-plain:sha256", "sense"),
        ("aes-cbc-essiv:sha1", "hash"),
        ("aes-cbc-essiv:nosuch", "nosuch"),
        ("cipher_null-ecb", "nothing is encrypted"),
        ("", "ALGORITHM-MODE-IV"),
    ],
)
def test_refused_by_name(name: str, reason: str) -> None:
    with pytest.raises(HeaderError, match=reason):
        CipherName.parse(name)


@pytest.mark.parametrize(("name", "size"), [("aes-xts-plain64", 16), ("aes-cbc-plain", 64), ("sm4-xts-plain64", 64)])
def test_wrong_key_size(name: str, size: int) -> None:
    with pytest.raises(HeaderError, match="does not fit"):
        SectorCipher(CipherName.parse(name), KEY[:size])


def encrypt(cipher: SectorCipher, data: bytes, first: int) -> bytes:
    result = bytearray(len(data))
    cipher.encrypt(memoryview(data), memoryview(result), first)
    return bytes(result)


def decrypt_in_place(cipher: SectorCipher, data: bytes, first: int) -> bytes:
    result = bytearray(data)
    cipher.decrypt(memoryview(result), memoryview(result), first)
    return bytes(result)


def xor(one: bytes, two: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, two, strict=True))
