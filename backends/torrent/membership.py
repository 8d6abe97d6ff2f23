"""A torrent's place in the session: joining it, leaving it, and the resume data to come back with.

libtorrent takes a torrent that wants nothing for finished, tells peers so, and seeds then hang up.  In its share mode
it says nothing of the kind and stays connected; the mode's own choice of pieces is switched off by its settings.

Invariant: `handle` is None only between `leave` and the next `join`, and before the first.
"""

from __future__ import annotations

import logging
from typing import Any

import libtorrent
import trio

from nbdfs.backends.torrent import Options
from nbdfs.backends.torrent.cache import Cache
from nbdfs.backends.torrent.layout import names
from nbdfs.backends.torrent.metainfo import Metainfo
from nbdfs.backends.torrent.session import Session
from nbdfs.errors import reason

log = logging.getLogger(__name__)

_SAVE_TIMEOUT = 2.0  # seconds
_SAVE_INFO = libtorrent.save_resume_flags_t.save_info_dict
_BLOCK = 16 << 10


class Membership:
    """The torrent that was added to a session: `handle`, None while it is out."""

    def __init__(self, session: Session, cache: Cache, metainfo: Metainfo, options: Options) -> None:
        self.session = session
        self.handle: libtorrent.torrent_handle | None = None
        self.unsaved = False  # there is something new to keep
        self.cache = cache
        self.metainfo = metainfo
        self._options = options
        self._resume = b""
        self._saving = trio.Lock()

    def join(self, params: libtorrent.add_torrent_params, priorities: list[int]) -> None:
        """Put the torrent into the session."""
        flags = libtorrent.torrent_flags
        options = self._options
        params.save_path = str(self.cache.folder)
        params.piece_priorities = priorities
        params.file_priorities = []  # resume data of a torrent in share mode has 0: such files go to another place
        params.renamed_files = names(params.ti, self.metainfo, self.cache)
        params.flags |= flags.share_mode | flags.update_subscribe
        params.flags &= ~(flags.auto_managed | flags.paused | flags.upload_mode | flags.stop_when_ready)
        switches = {flags.sequential_download: options.sequential, flags.disable_dht: not options.dht,
                    flags.disable_lsd: not options.lsd, flags.disable_pex: not options.pex}  # fmt: skip
        for flag, on in switches.items():
            params.flags = params.flags | flag if on else params.flags & ~flag
        self.handle = self.session.session.add_torrent(params)

    async def leave(self) -> None:
        """Take the torrent out of the session, which ends all writing."""
        session, handle = self.session, self.handle
        if not handle:
            return
        self.handle = None
        hashes = handle.info_hashes()
        handle.replace_trackers([])  # who were told that we stop might hear of it after our return
        removed = await session.wait_for(
            libtorrent.torrent_removed_alert,
            lambda: session.session.remove_torrent(handle),
            _SAVE_TIMEOUT,
            lambda alert: alert.info_hashes == hashes,
        )
        if not removed:
            log.info("torrent: slow to leave the session")

    async def save(self) -> None:
        """Write resume data, if the cache is kept."""
        if self.cache.kept and self.handle:
            await self.resume_data()

    async def resume_data(self) -> bytes:
        """libtorrent's present resume data, kept if the cache is; nothing if it does not come in time."""
        async with self._saving:
            self._resume = b""
            alert = libtorrent.save_resume_data_alert
            if handle := self.handle:
                self.unsaved = False  # what comes from now on need not be in it
                await self.session.wait_for(alert, lambda: handle.save_resume_data(_SAVE_INFO), _SAVE_TIMEOUT)
                if not (self._resume and await self._keep(self._resume)):
                    self.unsaved = True
            return self._resume

    def on_resume_data(self, alert: Any) -> None:
        """libtorrent has made resume data."""
        self._resume = libtorrent.write_resume_data_buf(alert.params)

    async def _keep(self, resume: bytes) -> bool:
        """Have the cache keep it, if it is kept itself; whether that went well."""
        try:
            if self.cache.kept:
                await trio.to_thread.run_sync(self.cache.save, resume)
        except OSError as error:
            log.warning("torrent: cannot keep the resume data: %s", reason(error))
            return False
        return True


def resumed(data: bytes, fresh: libtorrent.add_torrent_params) -> libtorrent.add_torrent_params:
    """Parameters for adding a torrent from the resume data of an earlier run; `fresh` if that is not usable.

    Every piece that was here is handed over as complete but not verified, so that libtorrent hashes it first.
    """
    try:
        params = libtorrent.read_resume_data(data)
    except RuntimeError as error:
        log.warning("torrent: the resume data is damaged, starting anew: %s", error)
        return fresh
    info = fresh.ti or params.ti
    if info is None or not _names(fresh.info_hashes, params.info_hashes):
        return fresh
    params.ti = info
    params.unfinished_pieces = {
        piece: [True] * -(-info.piece_size(piece) // _BLOCK)
        for piece, present in enumerate(params.have_pieces) if present and piece < info.num_pieces()
    }  # fmt: skip
    params.have_pieces = []
    params.trackers, params.tracker_tiers = fresh.trackers, fresh.tracker_tiers
    params.url_seeds = fresh.url_seeds
    return params


def _names(hashes: libtorrent.info_hash_t, torrent: libtorrent.info_hash_t) -> bool:
    """Whether the hashes, of which a magnet link has one as a rule, are those of the torrent."""
    v1_fits = not hashes.has_v1() or hashes.v1 == torrent.v1
    return bool(v1_fits and (not hashes.has_v2() or hashes.v2 == torrent.v2))


def rejoining(resume: bytes, info: libtorrent.torrent_info | None, here: bytearray) -> libtorrent.add_torrent_params:
    """Parameters for adding a torrent again, with just the pieces that are here."""
    params = libtorrent.read_resume_data(resume)
    params.have_pieces = [bool(present) for present in here]
    params.unfinished_pieces = {}
    params.ti = info
    return params
