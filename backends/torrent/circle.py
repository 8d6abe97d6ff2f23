"""The circle of readers: a torrent that readers of the same torrent have among themselves.

libtorrent cannot be told from whom to fetch a piece, and a seed that has nothing else to do gets requests of every
piece that is wanted.  So readers that know each other meet in a second torrent, made from the first: the same pieces
in the same files under another hash.  No seed knows of it; what is asked for there comes from readers alone.  What one
of the two torrents gets is handed to the other, which hashes it again.

It is joined when the first reader is met.  The one of two readers that made the connection makes that in the circle
too, as only it knows where the other listens.

Invariants: `handle` is None only while nobody is met, and while the torrent is out of the session; no tracker, no other
way of finding peers knows the circle.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import libtorrent
import trio

from nbdfs.backends.torrent import Options
from nbdfs.backends.torrent.membership import Membership
from nbdfs.backends.torrent.metainfo import LARGEST
from nbdfs.errors import SourceError
from nbdfs.records import replace

log = logging.getLogger(__name__)

_V2_KEYS = (b"meta version", b"file tree")
_INTRODUCTION = 0.2  # seconds: whoever meets a peer looks at it within 0.1 s, and joins then
_DESERTED = 30.0  # seconds
_PATIENCE = 5.0  # seconds until a reader that is not met in the circle is none
_INVITE_EVERY = 3.0  # seconds


class _Expected:
    """A reader that is to come into the circle: met `since`, and to be invited when it is `due`."""

    def __init__(self, now: float) -> None:
        self.since = now
        self.due = now + _INTRODUCTION


class Circle:
    """The readers of a torrent.  `main` is the torrent's own place in the session, which it got with `params`."""

    def __init__(self, main: Membership, params: libtorrent.add_torrent_params, options: Options) -> None:
        self.status: libtorrent.torrent_status | None = None
        self.lacking = trio.Event()  # the torrent cannot be made for lack of hashes, see `learn`
        self._membership = Membership(
            main.session, main.cache, main.metainfo, replace(options, dht=False, lsd=False, pex=False)
        )
        self._params = params
        self._expected: dict[bytes, _Expected] = {}
        self._last_met = 0.0  # when there last was a reader

    @property
    def handle(self) -> libtorrent.torrent_handle | None:
        """libtorrent's handle of the torrent; None without."""
        return self._membership.handle

    @property
    def deserted(self) -> bool:
        """Whether there was nobody else for long: pieces are handed over for nothing."""
        return self.handle is not None and trio.current_time() - self._last_met > _DESERTED

    def peers(self) -> list[libtorrent.peer_info]:
        """Who is connected."""
        return self.handle.get_peer_info() if self.handle else []

    def meet(self, readers: Iterable[libtorrent.peer_info], here: bytearray) -> list[bytes]:
        """These peers of the torrent are readers; we have these pieces.  Gives those that are yet to come."""
        now = trio.current_time()
        readers = list(readers)
        present = {peer.pid.to_bytes() for peer in self.peers()}
        absent = {peer.pid.to_bytes(): peer for peer in readers if peer.pid.to_bytes() not in present}
        self._expected = {name: self._expected.get(name) or _Expected(now) for name in absent}
        if readers or present:
            self._last_met = now
        if not self.lacking.is_set():
            self._invite(absent, now, here, alone=not present)
        return [name for name, expected in self._expected.items() if now - expected.since < _PATIENCE]

    def learn(self, resume: bytes) -> None:
        """Resume data of the torrent may have the hashes that were lacking."""
        self.lacking = trio.Event()
        if resume:
            self._params = libtorrent.read_resume_data(resume)

    def _invite(self, absent: dict[bytes, libtorrent.peer_info], now: float, here: bytearray, alone: bool) -> None:
        """Connect to readers that are not in the circle, if we made the connection in the torrent and they are due."""
        outgoing = [name for name, peer in absent.items() if peer.flags & libtorrent.peer_info.outgoing_connection]
        due = [name for name in outgoing if self._expected[name].due <= now]
        addresses = [absent[name].ip for name in due]
        if alone and (due or (len(outgoing) < len(absent) and not self.handle)):
            self._join(here, addresses)
        elif handle := self.handle:
            for address in addresses:
                handle.connect_peer(address)
        if not self.lacking.is_set():
            for name in due:
                self._expected[name].due = now + _INVITE_EVERY

    def _join(self, here: bytearray, peers: list[tuple[str, int]]) -> None:
        """Make the torrent, in which we have these pieces.  libtorrent connects at once to peers that it comes with.

        Others may have to wait for seconds, until the torrent's own candidates have had their turn.
        """
        try:
            params = _related(self._params)
            params.have_pieces = [bool(present) for present in here]
            params.peers = peers
            params.flags |= libtorrent.torrent_flags.no_verify_files  # else it waits with connecting
            self.abandon()
            self._membership.join(params, [0] * len(here))
        except (RuntimeError, SourceError) as error:  # hashes of a v2 magnet link that are not known yet
            log.debug("torrent: readers do not meet yet: %s", error)
            self.lacking.set()

    def abandon(self) -> None:
        """Take the torrent out of the session.  What it still tells is of no interest."""
        self.status = None
        if self.handle:
            self._membership.session.session.remove_torrent(self.handle)
            self._membership.handle = None


def _related(params: libtorrent.add_torrent_params) -> Any:
    """Parameters for adding the circle's torrent.  Raises RuntimeError if they cannot be made."""
    if not params.ti:
        raise RuntimeError("there is no info dictionary")
    info: Any = libtorrent.bdecode(params.ti.info_section())
    torrent: Any = {b"info": {**info, b"circle": b"nbdfs"}}
    if b"pieces" in info:  # all that v1 needs, also of a hybrid
        for key in _V2_KEYS:
            torrent[b"info"].pop(key, None)
    else:
        written: Any = libtorrent.write_torrent_file(params)
        complete: Any = libtorrent.bdecode(libtorrent.bencode(written))
        torrent[b"piece layers"] = complete.get(b"piece layers", {})
    limits: Any = {"max_buffer_size": 2 * LARGEST}
    return libtorrent.load_torrent_buffer(libtorrent.bencode(torrent), limits)
