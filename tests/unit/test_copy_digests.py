"""The hashes of a copy against hashlib, and against the values that libnbd publishes for its block hash."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdfs.copying.digests import BlockHash, Digest, Hasher
from nbdfs.errors import UsageError

HELLO_GOODBYE = b"hello" + bytes((1 << 20) - 5) + b"goodbye"

# libnbd, copy/copy-blkhash-known.sh
PUBLISHED = [
    (b"", "sha256", "af5570f5a1810b7af78caf4bc70a660f0df51e42baf91d4de5b2328de0e83dfc"),
    (b"hello", "md5", "f741ac9ce55f5325906bb14e9c05d467"),
    (b"hello", "sha256", "337355feb53a5309d5aba92796223c2c84ffab930e706c01fef573a2722545e6"),
    (b"hello", "md5/4", "8262896de34125dec173722c920e8bd0"),
    (HELLO_GOODBYE, "sha256", "61b8f3a8cea76e16eeff7ce27f1b7711c1f1e437f5038cec17773772a4bded28"),
    (b"12345678" * 512 * 256, "md5", "84fc21ac2f49ac283ff399378d834d1a"),
    (b"12345678" * 512 * 256, "sha256", "cbb388edd25e567b85f504c7b345497f9fb4f6bbf4e39768809184b9f9e678f8"),
]


@pytest.mark.parametrize(("data", "name", "value"), PUBLISHED)
def test_the_block_hash_is_the_published_one(data: bytes, name: str, value: str) -> None:
    hasher = BlockHash(name)
    hasher.update(memoryview(data))
    assert hasher.hexdigest() == value


parts = st.lists(st.one_of(st.binary(max_size=50), st.integers(0, 300)), max_size=8)


def feed(hasher: Hasher, pieces: list[bytes | int]) -> bytes:
    """Give data as bytes and zeroes as their number; the whole that was given."""
    for piece in pieces:
        if isinstance(piece, int):
            hasher.zero(piece)
        else:
            hasher.update(memoryview(piece))
    return b"".join(bytes(piece) for piece in pieces)


@given(parts)
def test_a_digest_sees_data_and_zeroes(pieces: list[bytes | int]) -> None:
    digest = Digest("sha256")
    assert hashlib.sha256(feed(digest, pieces)).hexdigest() == digest.hexdigest()


@given(parts, st.sampled_from([1, 2, 4, 16, 64]))
def test_the_block_hash_does_not_depend_on_how_the_data_comes(pieces: list[bytes | int], block: int) -> None:
    hasher = BlockHash(f"md5/{block}")
    data = feed(hasher, pieces)
    outer = hashlib.md5()
    for at in range(0, len(data), block):
        outer.update(hashlib.md5(data[at : at + block]).digest())
    outer.update(len(data).to_bytes(8, "little"))
    assert hasher.hexdigest() == outer.hexdigest()


def test_a_terabyte_of_zeroes_costs_one_update_a_batch_of_blocks() -> None:
    whole, halves = BlockHash("md5/32M"), BlockHash("md5/32M")
    whole.zero(1 << 40)
    halves.zero(1 << 39)
    halves.zero(1 << 39)
    assert whole.hexdigest() == halves.hexdigest()


@pytest.mark.parametrize("name", ["sha3", "sha256/0", "sha256/64M", "sha256/3", "md5/x", "/"])
def test_a_block_hash_that_makes_no_sense_is_refused(name: str) -> None:
    if name == "/":
        assert BlockHash(name).name == "sha256/64k"
        return
    with pytest.raises(UsageError):
        BlockHash(name)


@pytest.mark.parametrize("name", ["sha257", "shake_128", "\udcff", "a\0b"])
def test_an_unknown_digest_is_refused_with_what_there_is(name: str) -> None:
    with pytest.raises(UsageError, match="digest"):
        Digest(name)
