"""The peers of a torrent: who is known, who is connected, and whether some of them read too.

With seeds alone, what is wanted is asked for at once, in order.  In a *crowd*, where other readers of the same torrent
are connected, that would make the seed send everything to everybody: there the pieces ahead are fetched rarest first,
so that the readers get different ones and pass them on, and a read waits a little, each reader for another while,
whether somebody else brings its piece before it asks for it with a deadline (`pieces`).

Invariant: `in_crowd` is called in order, and only after libtorrent's own order and queue are those of a crowd.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import libtorrent
import trio

from nbdfs.backends.torrent.membership import Membership

_SHORT_QUEUE = 0  # seconds of requests under way in a crowd, the least: what is asked for may come from another reader
_REANNOUNCE_EVERY = 15  # ticks without a peer while somebody waits
_KNOWN_PEERS = 200
_ACQUAINTANCE = 0.7  # seconds: a seed that is just being connected has not said yet that it is one
_PATIENCE = 0.5  # seconds a read waits in a crowd before it insists, and
_PATIENCE_EACH = 0.6  # so many more for each other reader, of which it takes a part by chance


class Company:
    """The peers of a torrent, as of libtorrent's last `status`."""

    def __init__(self, membership: Membership, options: Any) -> None:
        self.crowd = 0  # peers that are reading too
        self.in_crowd: list[Callable[[], None]] = []  # called when there are some
        self.status: Any = None
        self._membership = membership
        self._options = options
        self._crowd_since = math.inf
        self._known: OrderedDict[tuple[str, int], None] = OrderedDict()

    @property
    def peers(self) -> int:
        """Peers that are connected, as of the last second."""
        return self.status.num_peers if self.status else 0

    @property
    def candidates(self) -> int:
        """Peers that libtorrent knows and might connect to."""
        return self.status.connect_candidates if self.status else 0

    def patience(self) -> float:
        """Seconds that a read waits before it insists on a piece that it claimed."""
        return _PATIENCE + random.random() * _PATIENCE_EACH * self.crowd if self.crowd else math.inf  # noqa: S311

    def look(self, status: Any) -> None:
        """libtorrent says how things are."""
        self.status = status
        others = status.num_peers - status.num_seeds
        if not others:
            self._crowd_since = math.inf
        elif self._crowd_since == math.inf:
            self._crowd_since = trio.current_time()
        self._notice(others if trio.current_time() - self._crowd_since >= _ACQUAINTANCE else 0)

    def _notice(self, crowd: int) -> None:
        changed = bool(crowd) != bool(self.crowd)
        self.crowd = crowd
        if changed and self._membership.handle:
            self._change_manners()

    def _change_manners(self) -> None:
        queue = _SHORT_QUEUE if self.crowd else self._membership.session.chosen["request_queue_time"]
        self._membership.session.session.apply_settings({"request_queue_time": queue})
        self.choose_order()
        if self.crowd:
            for listener in self.in_crowd:
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
