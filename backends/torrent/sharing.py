"""Which reader of a torrent asks its seeds for which piece, so that a seed sends each of them about once.

Readers that run this program know each other by their peer ids.  Every piece has one *owner* among those that are
connected: it asks the seeds, the others get the piece from it.  All work it out by the same rule from the same ids, so
nothing is said about it: in a row of pieces each goes to the reader with the lowest hash of its id and the piece
(rendezvous hashing), of those that have not had their part of the row yet.  Who comes or goes changes the owner of few
pieces.  Of a small torrent the oldest readers are the owners.

An owner may not want its piece.  A read that waited for one in vain does not wait for that reader again until it has
something that is wanted here, nor for any that got nothing in the meantime.

Invariant: `members` holds ourselves; alone, we own everything.
"""

from __future__ import annotations

import base64
import enum
import functools
import hashlib
import operator
import secrets
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

_OWN = 12  # letters of a peer id that are a session's own: the time in hundredths,
_RANDOM = 22  # and so many bits that nobody else has
_ROW = 16  # pieces
_SHARE = 512 << 10  # bytes of the torrent for each owner: whoever comes when little is left would only fetch it again
_SLOWEST = 256 << 10  # bytes a second of a seed whose pace is not known yet
_LEAST = 0.3  # seconds: to hear of a piece and to get it from another reader
_ASLEEP = 10.0  # seconds after which a reader that reads has got something
_SOON = 3.0  # seconds
_SLOW_FOR = 60.0  # seconds that a reader is not asked after a read waited for it in vain
_TURN = 0.5  # pieces' times between two readers that give up waiting for the same owner

Pieces = bytes  # 1 for each that a peer has, 0 for others


class Way(enum.Enum):
    """How a piece is to be had."""

    OURS = "from everybody, seeds too"
    LATER = "the same, when it is its turn"
    CIRCLE = "from readers, one of whom has it"
    OTHERS = "from everybody, as a peer has it that is neither a seed nor a reader"
    THEIRS = "another reader is to get it first"


class Sharing:
    """The readers of a torrent, as of the last look: who owns which piece, and who has it."""

    def __init__(self, ourselves: bytes, pieces: int, piece_length: int) -> None:
        self.members: tuple[bytes, ...] = (ourselves,)  # the oldest first, as their ids begin with the time
        self.pieces = pieces
        self.pace = 0.0  # bytes a second that seeds sent us when we last asked them
        self.measured = 0.0  # the same, by what we asked for and what came of it
        self.flow = 0.0  # bytes a second that readers send us
        self._ourselves = ourselves
        self._piece_length = piece_length
        self._has: Mapping[bytes, Pieces] = {}  # pieces of each reader
        self._expected: frozenset[bytes] = frozenset()  # readers that pieces cannot be had from yet
        self._seeds = False
        self._in_circle: Pieces = bytes(pieces)  # those of any reader
        self._elsewhere: Pieces = bytes(pieces)  # those of anybody who is neither a reader nor a seed
        self._idle: set[bytes] = set()  # readers not waited for
        self._since: float | None = None  # when we began to look
        self._served = False  # there was a seed then
        self._slow: dict[bytes, float] = {}  # readers that nothing is asked of, and until when
        self._most_owners = -(-pieces * piece_length // _SHARE)
        self._owners: dict[int, tuple[bytes, ...]] = {}  # of the pieces of each row

    @property
    def alone(self) -> bool:
        """Whether everything is ours."""
        return len(self.members) == 1

    def look(
        self, has: Mapping[bytes, Pieces], others: Iterable[Pieces], wanted: Collection[int],
        *, expected: Collection[bytes], seeds: bool, now: float,
    ) -> None:  # fmt: skip
        """What is seen now: the pieces of the readers that are connected, and of `others`, neither readers nor seeds.

        `expected` readers are to come, and there may be seeds.  We want some pieces.
        """
        self._has = {**dict.fromkeys(expected, bytes(self.pieces)), **has}
        self._expected = frozenset(expected)
        self._leave_out_sleepers(now, seeds)
        self._seeds = seeds
        self._slow = {reader: until for reader, until in self._slow.items() if reader in has and until > now}
        self._in_circle = self._any(pieces for reader, pieces in has.items() if reader not in self._slow)
        self._elsewhere = self._any(others)
        self._idle = {
            reader for reader in self._idle if reader in has and not any(has[reader][piece] for piece in wanted)
        }
        out = {*self._idle, *self._slow}
        members = tuple(sorted({self._ourselves, *(reader for reader in self._has if reader not in out)}))
        if members != self.members:
            self.members = members
            self._owners.clear()

    def way(self, piece: int) -> Way:
        """How a piece that is not here is to be had."""
        if self._in_circle[piece]:
            return Way.CIRCLE
        if self.owner(piece) == self._ourselves:
            return Way.OURS
        return Way.OTHERS if self._elsewhere[piece] else Way.THEIRS

    def owner(self, piece: int) -> bytes:
        """The reader that asks seeds for it."""
        if self.alone:
            return self._ourselves
        row, index = divmod(piece, _ROW)
        if row not in self._owners:
            self._owners[row] = self._divide(row)
        return self._owners[row][index]

    def order(self, piece: int) -> tuple[bytes, ...]:
        """The readers in the order in which they ask seeds for it."""
        owner = self.owner(piece)
        return (owner, *(member for member in _ranked(self.members, piece) if member != owner))

    def patience(self, piece: int, wanted: Iterable[int]) -> float:
        """Seconds that a read waits for the owner of a piece, who gets `wanted` ones before it too."""
        order = self.order(piece)
        before = sum(self.owner(other) == order[0] and not self._in_circle[other] for other in wanted if other < piece)
        turns = before + 2 + order.index(self._ourselves) * _TURN
        return turns * (_LEAST + self._piece_length / self._pace())

    def may_come(self, piece: int) -> bool:
        """Whether there is something to wait for: somebody its owner may ask, and a connection to that owner."""
        return self._seeds and self.owner(piece) not in self._expected

    def in_vain(self, piece: int, had: Mapping[bytes, int]) -> None:
        """A read waited for the owner of a piece, from when the readers had so many pieces."""
        owner = self.owner(piece)
        self._idle |= {reader for reader, count in self.counts().items() if count == had.get(reader) or reader == owner}

    def too_slow(self, piece: int, now: float) -> None:
        """A read waited in vain for the piece, which some readers have."""
        self._slow |= {reader: now + _SLOW_FOR for reader, pieces in self._has.items() if pieces[piece]}

    @property
    def flows(self) -> bool:
        """Whether readers send about as much as seeds would."""
        return self.flow > self._pace() / 4

    def counts(self) -> dict[bytes, int]:
        """How many pieces each reader has."""
        return {reader: pieces.count(1) for reader, pieces in self._has.items()}

    def _leave_out_sleepers(self, now: float, seeds: bool) -> None:
        """Do not wait for readers that began long before us, when the seeds were there, and have nothing yet."""
        self._since = self._since if self._since is not None else now
        self._served = self._served or (seeds and now - self._since < _SOON)
        if self._served:
            awake = begun(self._ourselves) - _ASLEEP - self._piece_length / _SLOWEST
            self._idle |= {name for name, pieces in self._has.items() if begun(name) < awake and not any(pieces)}

    def _pace(self) -> float:
        return max(self.pace, self.measured) or _SLOWEST

    def _any(self, of_each: Iterable[Pieces]) -> Pieces:
        return functools.reduce(operator.or_, map(int.from_bytes, of_each), 0).to_bytes(self.pieces)

    def _divide(self, row: int) -> tuple[bytes, ...]:
        """The owners of the pieces of a row."""
        pieces = range(row * _ROW, min((row + 1) * _ROW, self.pieces))
        owners = self.members[: min(len(pieces), self._most_owners)]
        most = -(-len(pieces) // len(owners))
        load: Counter[bytes] = Counter()
        chosen = []
        for piece in pieces:
            owner = next(member for member in _ranked(owners, piece) if load[member] < most)
            load[owner] += 1
            chosen.append(owner)
        return tuple(chosen)


def peer_id(fingerprint: bytes) -> bytes:
    """An id of one session that begins so: those of a fingerprint are in the order in which their sessions began."""
    own = int(time.time() * 100) << _RANDOM | secrets.randbits(_RANDOM)  # 60 bits, for some decades
    return fingerprint + base64.b32hexencode((own << 4).to_bytes(8, "big"))[:_OWN]


def begun(name: bytes) -> float:
    """The time at which a session with that peer id began; 0 if it does not say."""
    try:
        return (int(name[-_OWN:], 32) >> _RANDOM) / 100
    except ValueError:
        return 0.0


def _ranked(members: Iterable[bytes], piece: int) -> list[bytes]:
    """The lowest hash first."""
    number = piece.to_bytes(4, "big")
    return sorted(members, key=lambda member: hashlib.blake2b(member + number, digest_size=8).digest())
