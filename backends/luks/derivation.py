"""Choose the costs of new key derivations: as much as the wanted time allows on this machine."""

from __future__ import annotations

import os
import time

from nbdfs.backends.luks.cipher import check_hash
from nbdfs.backends.luks.kdf import DEFAULT_MEMORY, Budget, derive, pbkdf2
from nbdfs.backends.luks.volume import Kdf
from nbdfs.errors import UserError
from nbdfs.records import Record, replace
from nbdfs.units import format_size

SALT_LENGTH = 32  # bytes
LEAST_ITERATIONS = 1000  # of PBKDF2
_MOST_ITERATIONS = 0x7FFFFFFF  # what OpenSSL takes
_SMALLEST_MEMORY = 32 << 10  # bytes
_DIGEST_SHARE = 8  # a digest, which guards a random key, gets this part of a passphrase's time
_LEAST_MEMORY, _LEAST_TIME, _MOST_LANES = 32 << 10, 4, 4  # KiB; passes; as cryptsetup has them
_SAMPLE_ITERATIONS, _SAMPLE_MEMORY = 50_000, 64 << 10  # KiB


def header_hash(name: str) -> str:
    """A hash by the name that every program knows it by in a header: hashlib has other names for some.

    Raises HeaderError if there is no such hash.
    """
    known = name.lower().replace("_", "-")
    return check_hash({"blake2b": "blake2b-512", "blake2s": "blake2s-256"}.get(known, known))


class Effort(Record):
    """What a new key slot shall cost.

    `kind` as in `Kdf`, `hash` as `header_hash` has it; `seconds` for one derivation, unless `iterations` says how many;
    `memory` in bytes is the most that argon2 may take.  Raises UserError for what makes no sense, or is less than
    cryptsetup allows.
    """

    kind: str
    hash: str = "sha256"
    seconds: float = 2.0
    memory: int = DEFAULT_MEMORY
    iterations: int | None = None

    def __post_init__(self) -> None:
        least = LEAST_ITERATIONS if self.kind == "pbkdf2" else _LEAST_TIME
        if self.iterations is not None and not least <= self.iterations <= _MOST_ITERATIONS:
            raise UserError(f"{self.kind} takes from {least} to {_MOST_ITERATIONS} iterations, not {self.iterations}")
        if self.kind != "pbkdf2" and self.memory < _SMALLEST_MEMORY:
            raise UserError(f"{self.kind} takes {format_size(_SMALLEST_MEMORY)} of memory or more")


def new_kdf(effort: Effort, size: int) -> Kdf:
    """A derivation for keys of `size` bytes.  Measures for a moment: call it in a thread."""
    salt = os.urandom(SALT_LENGTH)
    if effort.kind == "pbkdf2":
        return Kdf("pbkdf2", salt, _iterations(effort, size), effort.hash)
    lanes = min(_MOST_LANES, os.cpu_count() or 1)
    most = min(effort.memory >> 10, _physical_memory() >> 11)  # KiB: half of what there is
    if effort.iterations:
        return Kdf(effort.kind, salt, effort.iterations, memory=most, lanes=lanes)
    sample = Kdf(effort.kind, salt, 1, memory=_SAMPLE_MEMORY, lanes=lanes)
    fills = int(_SAMPLE_MEMORY / _seconds(sample, size) * effort.seconds)  # KiB written in the time wanted
    memory = min(max(fills // _LEAST_TIME, _LEAST_MEMORY), most)
    return Kdf(effort.kind, salt, max(fills // memory, _LEAST_TIME), memory=memory, lanes=lanes)


def digest_iterations(effort: Effort, size: int) -> int:
    """Iterations of PBKDF2 for a digest of `size` bytes."""
    if effort.iterations and effort.kind == "pbkdf2":
        return max(effort.iterations // _DIGEST_SHARE, LEAST_ITERATIONS)
    return _iterations(replace(effort, iterations=None, seconds=effort.seconds / _DIGEST_SHARE), size)


def make_digest(key: bytes, name: str, salt: bytes, iterations: int, size: int) -> bytes:
    """The digest of a volume key."""
    return pbkdf2(key, name, salt, iterations, size, _unlimited())


def _iterations(effort: Effort, size: int) -> int:
    if effort.iterations:
        return effort.iterations
    took = _seconds(Kdf("pbkdf2", bytes(SALT_LENGTH), _SAMPLE_ITERATIONS, effort.hash), size)
    return max(int(_SAMPLE_ITERATIONS / took * effort.seconds), LEAST_ITERATIONS)


def _seconds(kdf: Kdf, size: int) -> float:
    start = time.perf_counter()
    derive(b"sample", kdf, size, _unlimited())
    return time.perf_counter() - start


def _unlimited() -> Budget:
    """For costs that we have chosen ourselves."""
    return Budget(1 << 62, 1 << 62)


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
