"""How long reads wait for pieces of other readers before they insist on them, that is, ask everybody.

Invariant: who insists does so until the piece is here or wanted no more, whatever readers come and go.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import trio

from nbdfs.backends.torrent.sharing import Sharing, Way


@dataclass
class _Wait:
    """For a piece of another reader: from when on, how many pieces the readers had then, since when it might come."""

    since: float
    had: Mapping[bytes, int]
    hopeful: float


class Patience:
    """The reads that wait for other readers, each for `longest` seconds at most."""

    def __init__(self, sharing: Sharing, longest: float) -> None:
        self._sharing = sharing
        self._longest = longest
        self._waits: dict[int, _Wait] = {}
        self._insisted: set[int] = set()  # pieces that were waited for in vain

    def way(self, piece: int) -> Way:
        """How a piece that is not here is to be had."""
        return Way.OURS if piece in self._insisted else self._sharing.way(piece)

    def forget(self, piece: int) -> None:
        """The piece is here, or wanted no more."""
        self._insisted.discard(piece)

    def look(self, awaited: Collection[int], wanted: Collection[int]) -> None:
        """Insist on pieces that reads, which await some of those that are wanted, waited for too long."""
        now, sharing = trio.current_time(), self._sharing
        ways = {piece: self.way(piece) for piece in awaited}
        theirs = [piece for piece, way in ways.items() if way in (Way.THEIRS, Way.CIRCLE)]
        self._waits = {piece: self._waits.get(piece) or _Wait(now, sharing.counts(), now) for piece in theirs}
        for piece, wait in self._waits.items():
            if ways[piece] is Way.THEIRS and not sharing.may_come(piece):
                wait.hopeful = now
            flows = ways[piece] is Way.CIRCLE and sharing.flows
            patience = self._longest if flows else sharing.patience(piece, wanted)
            if now - wait.hopeful > patience or now - wait.since > self._longest:
                self._insisted.add(piece)
                if ways[piece] is Way.THEIRS:
                    sharing.in_vain(piece, wait.had)
                else:
                    sharing.too_slow(piece, now)
