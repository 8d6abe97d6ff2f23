"""From a passphrase to a key, within a budget: the costs stand in a header that anyone may have written."""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.kdf.argon2 import Argon2i, Argon2id

from nbdfs.backends.luks.volume import HeaderError, Kdf
from nbdfs.units import format_size

DEFAULT_MEMORY = 1 << 30  # bytes; the most that cryptsetup makes headers ask for
DEFAULT_COST = 50_000_000
MOST_LANES = 64

_ARGON2: dict[str, type[Argon2i | Argon2id]] = {"argon2i": Argon2i, "argon2id": Argon2id}


class Budget:
    """What all derivations of one unlock may cost together.

    `memory` is in bytes.  The unit of `cost` is an iteration of PBKDF2, or a KiB that argon2 fills once: about a
    microsecond each.
    """

    def __init__(self, memory: int = DEFAULT_MEMORY, cost: int = DEFAULT_COST) -> None:
        self.memory = memory
        self.cost = cost

    def spend(self, cost: int) -> None:
        """Raises HeaderError when it is used up."""
        if cost > self.cost:
            raise HeaderError(
                f"the header asks for a key derivation that costs {cost}, more than is allowed "
                f"({self.cost} left): raise pbkdf-cost-limit if you trust it"
            )
        self.cost -= cost


def derive(passphrase: bytes, kdf: Kdf, size: int, budget: Budget) -> bytes:
    """A key of `size` bytes.  Takes seconds: call it in a thread.  Raises HeaderError beyond the budget."""
    if kdf.kind == "pbkdf2":
        return pbkdf2(passphrase, kdf.hash, kdf.salt, kdf.iterations, size, budget)
    if kdf.memory << 10 > budget.memory:
        raise HeaderError(
            f"{kdf.kind} asks for {format_size(kdf.memory << 10)} of memory, more than the "
            f"{format_size(budget.memory)} allowed: raise pbkdf-memory-limit if you trust the header"
        )
    if kdf.lanes > MOST_LANES or kdf.memory < 8 * kdf.lanes:
        raise HeaderError(f"{kdf.kind} asks for {kdf.lanes} lanes with {kdf.memory} KiB, which makes no sense")
    budget.spend(kdf.iterations * kdf.memory)
    argon2 = _ARGON2[kdf.kind](
        salt=kdf.salt, length=size, iterations=kdf.iterations, lanes=kdf.lanes, memory_cost=kdf.memory
    )
    try:
        return argon2.derive(passphrase)
    except MemoryError:
        raise HeaderError(f"there is no memory for the {format_size(kdf.memory << 10)} of {kdf.kind}") from None


def pbkdf2(secret: bytes, name: str, salt: bytes, iterations: int, size: int, budget: Budget) -> bytes:
    """PBKDF2-HMAC; the cost counts once for each hash length of output."""
    budget.spend(iterations * -(-size // hashlib.new(name).digest_size))
    return hashlib.pbkdf2_hmac(name, secret, salt, iterations, size)
