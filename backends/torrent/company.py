"""The peers of a torrent: who is known, who is connected, and who of them reads too.

With seeds alone, what is wanted is asked for at once, in order.  In a *crowd*, where other readers of the same torrent
are connected, that would make the seed send everything to everybody: there each piece has one reader that asks for it
(`sharing`).

Invariant: `changed` is called after libtorrent's own order and queue are those that fit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any

import libtorrent

from nbdfs.backends.torrent.membership import Membership
from nbdfs.backends.torrent.session import FINGERPRINT
from nbdfs.backends.torrent.sharing import Sharing

_SHORT_QUEUE = 0  # seconds of requests under way in a crowd, the least: another reader may have it in a moment
_REANNOUNCE_EVERY = 15  # ticks without a peer while somebody waits
_KNOWN_PEERS = 200
_NOT_YET = libtorrent.peer_info.handshake | libtorrent.peer_info.connecting


class Company:
    """The peers of a torrent, as of libtorrent's last word."""

    def __init__(self, membership: Membership, sharing: Sharing, options: Any) -> None:
        self.entered: list[Callable[[], None]] = []  # called when there are other readers, and were none before
        self.status: Any = None
        self._membership = membership
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
    def candidates(self) -> int:
        """Peers that libtorrent knows and might connect to."""
        return self.status.connect_candidates if self.status else 0

    def matters(self) -> bool:
        """Whether somebody is, or was, connected who is no seed."""
        return self.crowd or bool(self.status and self.status.num_peers > self.status.num_seeds)

    def look(self, wanted: Collection[int], asking: bool) -> None:
        """See who is connected.  We want these pieces, which are not here, and may ask seeds for some of them."""
        seed = libtorrent.peer_info.seed
        connected = self._membership.handle.get_peer_info()
        peers = [peer for peer in connected if not peer.flags & _NOT_YET and len(peer.pieces) == self._sharing.pieces]
        others = {peer.pid.to_bytes(): bytes(peer.pieces) for peer in peers if not peer.flags & seed}
        readers = {name: pieces for name, pieces in others.items() if name.startswith(FINGERPRINT)}
        crowd = self.crowd
        if asking:
            self._sharing.pace = sum(peer.payload_down_speed for peer in peers if peer.flags & seed)
        self._sharing.look(readers, others.values(), wanted)
        if self.crowd != crowd:
            self._change_manners()

    def _change_manners(self) -> None:
        queue = _SHORT_QUEUE if self.crowd else self._membership.session.chosen["request_queue_time"]
        self._membership.session.session.apply_settings({"request_queue_time": queue})
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
        handle = self._membership.handle
        handle.unset_flags(flag)
        if self._options.sequential and not self.crowd:
            handle.set_flags(flag)

    def meet(self, alert: Any) -> None:
        """A connection is made; whom we could reach is remembered."""
        if "outgoing" in alert.message():
            self._known[alert.endpoint] = None
            if len(self._known) > _KNOWN_PEERS:
                self._known.popitem(last=False)

    def reconnect(self) -> None:
        """Connect to everybody who is known."""
        for address in self._known:
            self._membership.handle.connect_peer(address)

    def look_for_peers(self, ticks: int) -> None:
        """There is nobody, for so many ticks, while somebody waits."""
        self.reconnect()
        if ticks % _REANNOUNCE_EVERY == 1:
            self._membership.handle.force_reannounce(0, -1, libtorrent.reannounce_flags_t.ignore_min_interval)
