"""The peers of a torrent: who is known, who is connected, and who of them reads too.

With seeds alone, what is wanted is asked for at once, in order.  In a *crowd*, where other readers of the same torrent
are connected, that would make the seed send everything to everybody: there each piece has one reader that asks for it
(`sharing`).

Invariants: while the torrent is out of the session nobody is asked for anything; `entered` is called after libtorrent's
own order is the one that fits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any

import libtorrent
import trio

from nbdfs.backends.torrent import Options
from nbdfs.backends.torrent.circle import Circle
from nbdfs.backends.torrent.membership import Membership
from nbdfs.backends.torrent.session import FINGERPRINT
from nbdfs.backends.torrent.sharing import Sharing

_REANNOUNCE_EVERY = 15  # ticks without a peer while somebody waits
_KNOWN_PEERS = 200
_MOMENT = 0.05  # seconds from the first peer until seeds are asked: readers nearby have said by then who they are
_KNOWN_AFTER = 2.0  # seconds from a connection until libtorrent has told of it
_START = 1.0  # seconds until they are asked at the latest
_NOT_YET = libtorrent.peer_info.handshake | libtorrent.peer_info.connecting


class Swarm:
    """The peers of a torrent, as of libtorrent's last word."""

    def __init__(self, membership: Membership, circle: Circle, sharing: Sharing, options: Options) -> None:
        self.entered: list[Callable[[], None]] = []  # called when there are other readers, and were none before
        self.status: libtorrent.torrent_status | None = None
        self.settled = False  # it is known who is there, as far as is worth waiting for
        self._began = trio.current_time()
        self._first = 0.0  # when the first peer was connected
        self._met = self._began  # when the last one was
        self._membership = membership
        self._circle = circle
        self._sharing = sharing
        self._options = options
        self._known: OrderedDict[tuple[str, int], None] = OrderedDict()

    @property
    def crowd(self) -> bool:
        """Whether others read too."""
        return not self._sharing.alone

    @property
    def peers(self) -> int:
        """Peers that are connected, as of the last second."""
        return self.status.num_peers if self.status else 0

    @property
    def seeds(self) -> int:
        """Peers that have everything, as of the last second."""
        return self.status.num_seeds if self.status else 0

    @property
    def candidates(self) -> int:
        """Peers that libtorrent knows and might connect to."""
        return self.status.connect_candidates if self.status else 0

    def matters(self) -> bool:
        """Whether somebody is, or was, connected who is no seed, or that is not known."""
        unknown = not self.settled or trio.current_time() - self._met < _KNOWN_AFTER
        return self.crowd or unknown or bool(self.status and self.status.num_peers > self.status.num_seeds)

    def look(self, wanted: Collection[int], here: bytearray, asking: bool) -> None:
        """See who is connected.  We want some pieces, have others, and may ask seeds for some."""
        if not (handle := self._membership.handle):
            return
        met = handle.get_peer_info()
        peers = self._connected(met)
        expected = self._circle.meet([peer for peer in peers if _is_reader(peer)], here)
        readers = {peer.pid.to_bytes(): peer for peer in self._connected(self._circle.peers()) if _is_reader(peer)}
        known = {*readers, *expected}
        others = [bytes(peer.pieces) for peer in peers if not _is_seed(peer) and peer.pid.to_bytes() not in known]
        if not self.settled:
            self._settle(bool(peers), any(peer.flags & _NOT_YET for peer in met))
        crowd = self.crowd
        if asking:
            self._sharing.pace = sum(peer.payload_down_speed for peer in peers if _is_seed(peer))
        self._sharing.flow = sum(peer.payload_down_speed for peer in readers.values())
        has = {name: bytes(peer.pieces) for name, peer in readers.items()}
        seeds = any(map(_is_seed, peers))
        self._sharing.look(has, others, wanted, expected=expected, seeds=seeds, now=trio.current_time())
        if self.crowd != crowd:
            self._change_manners()

    def begin_anew(self) -> None:
        """All peers are gone, and come back."""
        self._began, self._first = trio.current_time(), 0.0
        self.settled = not self.crowd
        self._sharing.look({}, (), (), expected=(), seeds=False, now=self._began)

    def _settle(self, somebody: bool, more: bool) -> None:
        """See whether it is time to ask: somebody is connected, and no more are about to be."""
        now = trio.current_time()
        if somebody and not self._first:
            self._first = now
        late = now - self._began > _START or (somebody and now - self._first > _MOMENT)
        self.settled = late or (somebody and not more)

    def _connected(self, peers: Collection[libtorrent.peer_info]) -> list[libtorrent.peer_info]:
        """Those who have said what they have, but ourselves, whose address others may have told us."""
        known = [peer for peer in peers if not peer.flags & _NOT_YET and len(peer.pieces) == self._sharing.pieces]
        return [peer for peer in known if peer.pid.to_bytes() != self._membership.session.peer_id]

    def _change_manners(self) -> None:
        self.choose_order()
        if self.crowd:
            for listener in self.entered:
                listener()

    def choose_order(self) -> None:
        """In which order what has no deadline is fetched.

        libtorrent goes through the range of pieces in order that was wanted when it was told to, and takes what is
        wanted since then by rarity: the flag is taken away first, so that it is told again.
        """
        flag = libtorrent.torrent_flags.sequential_download
        if handle := self._membership.handle:
            handle.unset_flags(flag)
            if self._options.sequential and not self.crowd:
                handle.set_flags(flag)

    def meet(self, alert: Any) -> None:
        """A connection is made; whom we could reach is remembered."""
        self._met = trio.current_time()
        if "outgoing" in alert.message():
            self._known[alert.endpoint] = None
            if len(self._known) > _KNOWN_PEERS:
                self._known.popitem(last=False)

    def reconnect(self) -> None:
        """Connect to everybody who is known."""
        if handle := self._membership.handle:
            for address in self._known:
                handle.connect_peer(address)

    def look_for_peers(self, ticks: int) -> None:
        """There is nobody to have anything from, for so many ticks, while somebody waits."""
        self.reconnect()
        if ticks % _REANNOUNCE_EVERY == 1 and (handle := self._membership.handle):
            handle.force_reannounce(0, -1, libtorrent.reannounce_flags_t.ignore_min_interval)


def _is_reader(peer: libtorrent.peer_info) -> bool:
    return bool(peer.pid.to_bytes().startswith(FINGERPRINT))


def _is_seed(peer: libtorrent.peer_info) -> bool:
    return bool(peer.flags & libtorrent.peer_info.seed)
