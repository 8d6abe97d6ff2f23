"""A torrent in a session, looked after: what libtorrent tells of it goes to the parts, and what must be done is done.

The parts are its `membership` in the session, its `pieces` and their `eviction`, the `swarm` of its peers, the
`sharing` of pieces with them and the limits of `seeding`.

Invariants: a piece with a claim is never dropped; the torrent is out of the session only inside `_drop`, which applies
all claims anew at its end.
"""

from __future__ import annotations

import logging
from typing import Any

import libtorrent
import trio

from nbdfs.backends.torrent import Options
from nbdfs.backends.torrent.cache import Cache
from nbdfs.backends.torrent.circle import Circle
from nbdfs.backends.torrent.eviction import Eviction
from nbdfs.backends.torrent.handover import Handover
from nbdfs.backends.torrent.layout import Layout
from nbdfs.backends.torrent.membership import Membership, rejoining
from nbdfs.backends.torrent.metainfo import Metainfo
from nbdfs.backends.torrent.names import component
from nbdfs.backends.torrent.pieces import Pieces
from nbdfs.backends.torrent.seeding import Seeding
from nbdfs.backends.torrent.session import Session
from nbdfs.backends.torrent.sharing import Sharing
from nbdfs.backends.torrent.swarm import Swarm
from nbdfs.errors import reason
from nbdfs.source import Fetching

log = logging.getLogger(__name__)

_TICK = 1.0  # seconds between two looks at peers, limits and resume data
_HANDSHAKE = 1.0  # seconds until most peers that connect have told who they are
_BLINK = 0.002  # seconds between two looks while nobody is asked yet
_GLANCE = 0.1  # seconds between two looks at who is connected, while somebody waits, and at least
_REST = 10  # times as long as such a look takes: many peers have many pieces
_SAVE_EVERY = 60  # ticks
_TOO_LONELY = 5  # ticks without a peer, though some are known, after which the torrent joins anew
_VERIFY_TIMEOUT = 2.0  # seconds
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 30.0  # seconds between looks at what hashes are known


class Torrent:
    """A torrent whose files can be read.  `start` puts it into the session, `run` looks after it."""

    def __init__(
        self,
        session: Session,
        cache: Cache,
        metainfo: Metainfo,
        params: libtorrent.add_torrent_params,
        options: Options,
    ) -> None:
        self.metainfo = metainfo
        self.cache = cache
        self.eviction = Eviction(options.cache_size, metainfo.piece_length)
        self._membership = Membership(session, cache, metainfo, options)
        self._circle = Circle(self._membership, params, options)
        sharing = Sharing(session.peer_id, metainfo.pieces, metainfo.piece_length)
        self.swarm = Swarm(self._membership, self._circle, sharing, options)
        self.swarm.settled = bool(params.url_seeds)  # libtorrent asks those only when something is wanted
        self.pieces = Pieces(self._membership, self._circle, self.swarm, sharing, self.eviction, options)
        self._seeding = Seeding(session, self.pieces, options)
        self._layout = Layout(metainfo)
        self._handover = Handover(self._membership, self._circle, self.pieces, self._layout, params.ti)
        self._session = session
        self._params = params
        self._came = trio.Event()  # a peer connected
        self._stopped = False  # libtorrent may have stopped at the last trouble
        self._unverified = set(params.unfinished_pieces) if params.unfinished_pieces else set()
        self._verified = trio.Event()  # one of them was looked at

    @property
    def starving(self) -> bool:
        """Whether reads wait while nothing comes, as of the last second."""
        comes = sum(each.download_payload_rate for each in self._statuses())
        return bool(self.pieces.waiting and self.swarm.status and not comes)

    def fetching(self) -> Fetching:
        """The present state; rates and peers are those of the last second."""
        return Fetching(
            component(self.metainfo.name),
            self.metainfo.pieces,
            self.pieces.present,
            self.swarm.peers,
            sum(each.download_payload_rate for each in self._statuses()),
            sum(each.upload_payload_rate for each in self._statuses()),
            tuple(sorted(self.pieces.waiting)),
        )

    def _statuses(self) -> list[libtorrent.torrent_status]:
        """libtorrent's last words on the torrent, and on the circle if there is one."""
        return [status for status in (self.swarm.status, self._circle.status) if status]

    # -- life

    def start(self) -> None:
        """Put the torrent into the session."""
        on = self._session.on
        on(libtorrent.piece_finished_alert, self._on_piece)
        on(libtorrent.state_update_alert, self._on_status)
        on(libtorrent.peer_connect_alert, self._on_peer)
        on(libtorrent.file_error_alert, self._on_trouble)
        on(libtorrent.torrent_error_alert, self._on_trouble)
        on(libtorrent.tracker_error_alert, lambda alert: log.info("torrent: %s", alert.message()))
        on(libtorrent.hash_failed_alert, self._on_hash_failed)
        on(libtorrent.save_resume_data_alert, self._membership.on_resume_data)
        on(libtorrent.alerts_dropped_alert, lambda alert: self._catch_up())
        self._membership.join(self._params, list(self.pieces.background))

    async def verified(self) -> None:
        """Wait until the pieces of an earlier run are hashed, two seconds at most; the rest goes on beside."""
        with trio.move_on_after(_VERIFY_TIMEOUT):
            while self._unverified:
                await self._verified.wait()
                self._verified = trio.Event()

    async def run(self) -> None:
        """Look after the torrent until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_house)
            nursery.start_soon(self._handover.run)
            nursery.start_soon(self._greet)
            nursery.start_soon(self._learn)
            if self.eviction.limit:
                nursery.start_soon(self.eviction.run, self.pieces.claims, self._drop)

    async def save(self) -> None:
        """Write resume data, if the cache is kept.  Gives up after some two seconds."""
        await self._handover.finish()
        await self._membership.save()

    async def _keep_house(self) -> None:
        ticks = lonely = 0
        while True:
            with trio.move_on_after(_TICK):
                while True:
                    await self.pieces.awaited.wait()
                    start = trio.current_time()
                    self._glance()
                    await trio.sleep(max(_GLANCE, _REST * (trio.current_time() - start)))
            ticks += 1
            self._handover.tick()
            if self._circle.deserted:
                self._circle.abandon()
            if not self._membership.handle:
                continue
            if self._stopped and self.pieces.waiting:
                await self._drop([])  # only a fresh start frees blocks that could not be written
                continue
            self._glance()
            lonely = lonely + 1 if self.starving and not self.swarm.seeds else 0
            nobody = not self.swarm.peers
            if nobody and lonely and lonely % _TOO_LONELY == 0 and self.swarm.candidates:
                await self._drop([])  # libtorrent may keep from a peer that it lost over a second connection to it
            elif lonely:
                self.swarm.look_for_peers(lonely)
            if ticks % _SAVE_EVERY == 0 and self._membership.unsaved:
                await self.save()

    async def _greet(self) -> None:
        """Look at peers as soon as they come: readers want to be known before more is asked for."""
        while True:
            await self._came.wait()
            self._came = trio.Event()
            while not self.swarm.settled:
                start = trio.current_time()
                self._glance()
                await trio.sleep(max(_BLINK, _REST * (trio.current_time() - start)))
            with trio.move_on_after(_HANDSHAKE):
                while True:
                    if not self.pieces.waiting:
                        self._glance()
                    await trio.sleep(_GLANCE)

    async def _learn(self) -> None:
        """See what hashes libtorrent has been told when the circle lacks some."""
        pause = _FIRST_PAUSE
        while True:
            await self._circle.lacking.wait()
            self._circle.learn(await self._membership.resume_data())
            await trio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _glance(self) -> None:
        """Have libtorrent tell how things are."""
        self._session.session.post_torrent_updates()
        self.pieces.look()

    async def _drop(self, pieces: list[int]) -> None:
        """Forget pieces that nobody uses.

        libtorrent cannot be told to forget a piece, so the torrent leaves the session for a moment and comes back
        without them: peers learn at once what is no longer to be had from here.
        """
        resume = await self._membership.resume_data()
        if not resume:
            return  # the next piece tries again
        pieces = [piece for piece in pieces if piece not in self.pieces.claims]
        self.eviction.remove(pieces)
        self.pieces.forget(pieces)
        self._circle.abandon()  # first, as what it tells of a piece that is dropped would bring that back
        await self._membership.leave()
        self._handover.clear()
        self.cache.forget_descriptors()
        parts = [part[:3] for piece in pieces for part in self._layout.parts(piece)]
        try:
            await trio.to_thread.run_sync(self.cache.drop, parts)
        except OSError as error:  # not every file system can; the torrent must come back all the same
            log.warning("torrent: dropped pieces still take space: %s", reason(error))
        params = rejoining(resume, self._params.ti, self.pieces.here)
        self._membership.join(params, list(self.pieces.background))
        self._stopped = False
        self.swarm.begin_anew()
        self.pieces.renew()
        self.swarm.choose_order()
        self.swarm.reconnect()

    # -- what libtorrent tells

    def _on_hash_failed(self, alert: Any) -> None:
        log.info("torrent: %s", alert.message())
        self._looked_at(alert.piece_index)

    def _on_piece(self, alert: Any) -> None:
        """A torrent has a piece.  One that left the session may speak of pieces that were dropped."""
        in_circle = alert.handle == self._circle.handle
        if in_circle or alert.handle == self._membership.handle:
            self._finished(alert.piece_index, in_circle)

    def _looked_at(self, piece: int) -> None:
        self._unverified.discard(piece)
        self._verified.set()

    def _finished(self, piece: int, in_circle: bool) -> None:
        self._handover.finished(piece, in_circle)
        if not self.pieces.here[piece]:
            self.pieces.came(piece)
            self._membership.unsaved = True
            self.eviction.add(piece)
        self._looked_at(piece)

    def _on_status(self, alert: Any) -> None:
        """libtorrent tells how its torrents are; of one that left the session it may tell late."""
        for status in alert.status:
            if status.handle == self._circle.handle:
                self._circle.status = status
            elif status.handle == self._membership.handle:
                self._seeding.look(status, self._circle.status)
                self.swarm.status = status
                if not self.swarm.crowd:
                    self.pieces.look()

    def _on_peer(self, alert: Any) -> None:
        self.swarm.meet(alert)
        self._came.set()

    def _on_trouble(self, alert: Any) -> None:
        """A file could not be written, or the torrent is stopped."""
        log.warning("torrent: %s", alert.message())
        self.pieces.fail(alert.message())
        self._stopped = True

    def _catch_up(self) -> None:
        """Alerts were lost: ask libtorrent what is here."""
        for handle, in_circle in (self._membership.handle, False), (self._circle.handle, True):
            if handle:
                for piece, present in enumerate(handle.status(libtorrent.status_flags_t.query_pieces).pieces):
                    if present and not self.pieces.here[piece]:
                        self._finished(piece, in_circle)
