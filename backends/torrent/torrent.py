"""A torrent in a session: which pieces are here, who wants which, and the room they take.

Strictly on demand: every piece has priority 0 until somebody *claims* it, and again when the last claim goes.  A claim
on a missing piece gives it a deadline with libtorrent, a claim on a piece that is here keeps it from being dropped.

libtorrent takes a torrent that wants nothing for finished, tells peers so, and seeds then hang up.  In its share mode
it says nothing of the kind and stays connected; the mode's own choice of pieces is switched off by its settings.

With seeds alone, what is wanted is asked for at once, in order.  In a *crowd*, where other readers of the same torrent
are connected, that would make the seed send everything to everybody: there the pieces ahead are fetched rarest first,
so that the readers get different ones and pass them on, and a read waits a little, each reader for another while,
whether somebody else brings its piece before it asks for it with a deadline.

Invariants: `here[p]` is set only after libtorrent has found the piece's hash right and its data is in the file;
`_claims` holds positive counts; a piece with a claim is never dropped; `_handle` is None only inside `_drop`, which
applies all claims anew at its end.
"""

from __future__ import annotations

import bisect
import errno
import logging
import math
import random
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import libtorrent
import trio

from nbdfs.backends.torrent.cache import Cache
from nbdfs.backends.torrent.metainfo import File, Metainfo
from nbdfs.backends.torrent.names import component
from nbdfs.backends.torrent.session import Session
from nbdfs.errors import SourceError
from nbdfs.source import Fetching

log = logging.getLogger(__name__)

_SHORT_QUEUE = 0  # seconds of requests under way in a crowd, the least: what is asked for may come from another reader
_TICK = 1.0  # seconds between two looks at peers, limits and resume data
_GLANCE = 0.1  # seconds between two looks at who is connected, while somebody waits
_SAVE_EVERY = 60  # ticks
_REANNOUNCE_EVERY = 15  # ticks without a peer while somebody waits
_SAVE_TIMEOUT = 2.0  # seconds
_VERIFY_TIMEOUT = 2.0
_KNOWN_PEERS = 200
_FEWEST_PIECES = 8  # that a cache must hold: reads in flight and a little ahead
_KEEP = 0.75  # share of the cache that is left when it overflowed
_BLOCK = 16 << 10
_STEP = 10  # milliseconds between the deadlines of pieces wanted together
_POLITE = 4  # libtorrent's default priority
_ACQUAINTANCE = 0.7  # seconds: a seed that is just being connected has not said yet that it is one
_PATIENCE = 0.5  # seconds a read waits in a crowd before it insists, and
_PATIENCE_EACH = 0.6  # so many more for each other reader, of which it takes a part by chance


class Torrent:
    """A torrent whose files can be read.  `start` puts it into the session, `run` looks after it."""

    def __init__(self, session: Session, cache: Cache, metainfo: Metainfo, params: Any, options: Any) -> None:
        self.metainfo = metainfo
        self.cache = cache
        self.here = bytearray(metainfo.pieces)
        self.timeout: float = options.timeout
        self.crowd = 0  # peers that are reading too
        self.in_crowd: list[Callable[[], None]] = []  # called when there are some
        self._crowd_since = math.inf
        self._session = session
        self._params = params
        self._options = options
        self._handle: Any = None
        self._claims: Counter[int] = Counter()
        self._waiting: Counter[int] = Counter()
        self._background = bytearray(metainfo.pieces)  # priorities of pieces that nobody claims
        self._awaited = trio.Event()  # somebody waits
        self._arrivals: dict[int, trio.Event] = {}
        self._used: OrderedDict[int, None] = OrderedDict()  # pieces here, the one unused for longest first
        self._room = max(options.cache_size // metainfo.piece_length, _FEWEST_PIECES) if options.cache_size else 0
        self._full = trio.Event()
        self._trouble = ""  # the disk's or libtorrent's last error
        self._troubles = 0
        self.dropped = 0  # pieces that had to make room
        self._stopped = False  # libtorrent may have stopped at the last trouble
        self._unverified = set(params.unfinished_pieces) if params.unfinished_pieces else set()
        self._verified = trio.Event()  # one of them was looked at
        self._known: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._status: Any = None
        self._unsaved = False
        self._resume = b""
        self._quiet = False  # no more uploads
        self._files = sorted({file.offset: file for file in metainfo.files if file.length}.values(), key=_offset)
        self._starts = [file.offset for file in self._files]

    # -- what readers use

    @property
    def room(self) -> int:
        """The pieces that the cache may hold; 0 for no limit."""
        return self._room

    def pieces(self, file: File, offset: int, length: int) -> range:
        """The pieces that hold a range of a file."""
        size = self.metainfo.piece_length
        start = file.offset + offset
        return range(start // size, -(-(start + length) // size))

    def missing(self, pieces: range) -> int:
        """How many of the pieces are not here."""
        return self.here.count(0, pieces.start, pieces.stop)

    def here_of(self, file: File) -> int:
        """How many bytes of a file are here."""
        size, pieces = self.metainfo.piece_length, self.pieces(file, 0, file.length)
        if not pieces:
            return 0
        start, end = file.offset - pieces.start * size, pieces.stop * size - file.offset - file.length
        outside = start * self.here[pieces.start] + end * self.here[pieces.stop - 1]  # of its first and last piece
        return self.here.count(1, pieces.start, pieces.stop) * size - outside

    @property
    def peers(self) -> int:
        """Peers that are connected, as of the last second."""
        return self._status.num_peers if self._status else 0

    @property
    def starving(self) -> bool:
        """Whether reads wait while nothing comes, as of the last second."""
        return bool(self._waiting and self._status and not self._status.download_payload_rate)

    @contextmanager
    def claimed(self, pieces: range) -> Iterator[None]:
        """Want these pieces at once, and keep them, for the block."""
        self.claim(pieces)
        try:
            yield
        finally:
            self.release(pieces)

    def claim(self, pieces: Iterable[int], after: int = 0) -> None:
        """Want pieces, in this order, the first of them in `after` milliseconds.  Each call needs its `release`."""
        for index, piece in enumerate(pieces):
            self._claims[piece] += 1
            if not self.here[piece]:
                if self.crowd or (after and not self._options.sequential):
                    self._want_politely(piece)
                else:
                    self._want(piece, after + index * _STEP)

    def release(self, pieces: Iterable[int]) -> None:
        """Want the pieces no more."""
        for piece in pieces:
            self._claims[piece] -= 1
            if not self._claims[piece]:
                del self._claims[piece]
                if not self.here[piece] and self._handle:
                    self._handle.reset_piece_deadline(piece)
                    self._handle.piece_priority(piece, self._background[piece])
        self._check_room()

    async def arrived(self, pieces: range) -> None:
        """Wait until the pieces, which are claimed, are here.  Raises SourceError (EIO) after the timeout."""
        with trio.move_on_after(self.timeout) as scope:
            for piece in pieces:
                if not self.here[piece]:
                    await self._arrived(piece)
        if scope.cancelled_caught:
            missing = [piece for piece in pieces if not self.here[piece]]
            raise SourceError(errno.EIO, self._complaint(missing), where="torrent", retryable=True)

    def touch(self, pieces: range) -> None:
        """Note that pieces are in use, for the choice of what to drop."""
        if self._room:
            for piece in pieces:
                if piece in self._used:
                    self._used.move_to_end(piece)

    def prefetch(self, pieces: range) -> None:
        """Fetch pieces when there is nothing more urgent."""
        for piece in pieces:
            self._background[piece] = 1
            if not self._claims[piece] and not self.here[piece]:
                self._handle.piece_priority(piece, 1)
        self._choose_order()

    def fetching(self) -> Fetching:
        """The present state; rates and peers are those of the last second."""
        status = self._status
        return Fetching(
            component(self.metainfo.name),
            self.metainfo.pieces,
            self.here.count(1),
            self.peers,
            status.download_payload_rate if status else 0,
            status.upload_payload_rate if status else 0,
            tuple(sorted(self._waiting)),
        )

    # -- life

    def start(self) -> None:
        """Put the torrent into the session."""
        on = self._session.on
        on(libtorrent.piece_finished_alert, lambda alert: self._finished(alert.piece_index))
        on(libtorrent.state_update_alert, self._on_status)
        on(libtorrent.peer_connect_alert, self._on_peer)
        on(libtorrent.file_error_alert, self._on_trouble)
        on(libtorrent.torrent_error_alert, self._on_trouble)
        on(libtorrent.tracker_error_alert, lambda alert: log.info("torrent: %s", alert.message()))
        on(libtorrent.hash_failed_alert, self._on_hash_failed)
        on(libtorrent.save_resume_data_alert, self._on_resume_data)
        on(libtorrent.alerts_dropped_alert, lambda alert: self._catch_up())
        self._add(self._params)

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
            if self._room:
                nursery.start_soon(self._keep_room)

    async def save(self) -> None:
        """Write resume data, if the cache is kept.  Gives up after two seconds."""
        if self.cache.kept and self._handle:
            await self._resume_data()

    def _add(self, params: Any) -> None:
        flags = libtorrent.torrent_flags
        options = self._options
        params.save_path = str(self.cache.folder)
        params.piece_priorities = list(self._background)
        params.renamed_files = _names(params.ti, self.metainfo, self.cache)
        params.flags |= flags.share_mode | flags.update_subscribe
        params.flags &= ~(flags.auto_managed | flags.paused | flags.upload_mode | flags.stop_when_ready)
        switches = {flags.sequential_download: options.sequential, flags.disable_dht: not options.dht,
                    flags.disable_lsd: not options.lsd, flags.disable_pex: not options.pex}  # fmt: skip
        for flag, on in switches.items():
            params.flags = params.flags | flag if on else params.flags & ~flag
        self._handle = self._session.session.add_torrent(params)

    # -- pieces

    def _want(self, piece: int, after: int) -> None:
        if self._handle:
            self._handle.set_piece_deadline(piece, after)

    def _want_politely(self, piece: int) -> None:
        if self._handle:
            self._handle.reset_piece_deadline(piece)
            self._handle.piece_priority(piece, _POLITE)

    async def _arrived(self, piece: int) -> None:
        """Wait for one piece.  Raises SourceError if fetching it meets trouble."""
        self._waiting[piece] += 1
        self._awaited.set()
        patience = _PATIENCE + random.random() * _PATIENCE_EACH * self.crowd if self.crowd else math.inf  # noqa: S311
        try:
            while not self.here[piece]:
                troubles = self._troubles
                event = self._arrivals.setdefault(piece, trio.Event())
                with trio.move_on_after(patience) as scope:
                    await event.wait()
                if scope.cancelled_caught:
                    patience = math.inf
                    self._want(piece, 0)
                if not self.here[piece] and self._troubles != troubles:
                    raise SourceError(errno.EIO, self._trouble, where="torrent", retryable=True)
        finally:
            self._waiting[piece] -= 1
            if not self._waiting[piece]:
                del self._waiting[piece]
                if not self._waiting:
                    self._awaited = trio.Event()
                self._arrivals.pop(piece, None)

    def _on_hash_failed(self, alert: Any) -> None:
        log.info("torrent: %s", alert.message())
        self._looked_at(alert.piece_index)

    def _looked_at(self, piece: int) -> None:
        self._unverified.discard(piece)
        self._verified.set()

    def _finished(self, piece: int) -> None:
        self.here[piece] = 1
        self._looked_at(piece)
        self._unsaved = True
        event = self._arrivals.pop(piece, None)
        if event is not None:
            event.set()
        if self._room:
            self._used[piece] = None
            self._check_room()

    def _complaint(self, missing: list[int]) -> str:
        peers = self.peers
        trouble = f"; last trouble: {self._trouble}" if self._trouble else ""
        which = f"piece {missing[0]}" if len(missing) == 1 else f"{len(missing)} pieces from {missing[0]} on"
        return f"{which} did not come within {self.timeout:g} s from {peers} peers{trouble}"

    def _on_trouble(self, alert: Any) -> None:
        """A file could not be written, or the torrent is stopped: present waiters fail, later ones try again."""
        self._trouble = alert.message()
        self._troubles += 1
        log.warning("torrent: %s", self._trouble)
        for event in self._arrivals.values():
            event.set()
        self._arrivals.clear()
        self._stopped = True

    def _catch_up(self) -> None:
        """Alerts were lost: ask libtorrent what is here."""
        if self._handle:
            for piece, present in enumerate(self._handle.status(libtorrent.status_flags_t.query_pieces).pieces):
                if present and not self.here[piece]:
                    self._finished(piece)

    # -- peers, limits and resume data

    async def _keep_house(self) -> None:
        ticks = lonely = 0
        while True:
            with trio.move_on_after(_TICK):
                while True:
                    await self._awaited.wait()
                    self._session.session.post_torrent_updates()
                    await trio.sleep(_GLANCE)
            ticks += 1
            if not self._handle:
                continue
            if self._stopped and self._waiting:
                self._stopped = False
                await self._drop([])  # only a fresh start frees blocks that could not be written
                continue
            self._session.session.post_torrent_updates()
            lonely = lonely + 1 if self._waiting and not self.peers else 0
            if lonely:
                self._look_for_peers(lonely)
            if ticks % _SAVE_EVERY == 0 and self._unsaved:
                await self.save()

    def _look_for_peers(self, ticks: int) -> None:
        for address in self._known:
            self._handle.connect_peer(address)
        if ticks % _REANNOUNCE_EVERY == 1:
            self._handle.force_reannounce(0, -1, libtorrent.reannounce_flags_t.ignore_min_interval)

    def _limit_seeding(self, status: Any) -> None:
        options = self._options
        if self._quiet:
            return
        downloaded = max(status.all_time_download, 1)
        shared = options.seed_ratio and status.all_time_upload >= options.seed_ratio * downloaded
        waited = options.seed_time and status.finished_duration.total_seconds() >= options.seed_time
        if shared or (waited and self.here.count(1) == self.metainfo.pieces):
            self._quiet = True
            self._session.session.apply_settings({"unchoke_slots_limit": 0})
            log.info("torrent: uploads stopped, the limit of seeding is reached")

    def _on_status(self, alert: Any) -> None:
        for status in alert.status:
            self._status = status
            self._limit_seeding(status)
            others = status.num_peers - status.num_seeds
            if not others:
                self._crowd_since = math.inf
            elif self._crowd_since == math.inf:
                self._crowd_since = trio.current_time()
            self._notice(others if trio.current_time() - self._crowd_since >= _ACQUAINTANCE else 0)

    def _notice(self, crowd: int) -> None:
        changed = bool(crowd) != bool(self.crowd)
        self.crowd = crowd
        if changed and self._handle:
            self._change_manners()

    def _change_manners(self) -> None:
        queue = _SHORT_QUEUE if self.crowd else self._session.chosen["request_queue_time"]
        self._session.session.apply_settings({"request_queue_time": queue})
        self._choose_order()
        if self.crowd:
            for piece in self._claims:
                if not self.here[piece] and not self._waiting[piece]:
                    self._want_politely(piece)
            for listener in self.in_crowd:
                listener()

    def _choose_order(self) -> None:
        """In which order what has no deadline is fetched.

        libtorrent goes through the range of pieces in order that was wanted when it was told to, and takes what is
        wanted since then by rarity: the flag is taken away first, so that it is told again.
        """
        flag = libtorrent.torrent_flags.sequential_download
        self._handle.unset_flags(flag)
        if self._options.sequential and not self.crowd:
            self._handle.set_flags(flag)

    def _on_peer(self, alert: Any) -> None:
        if "outgoing" in alert.message():
            self._known[alert.endpoint] = None
            if len(self._known) > _KNOWN_PEERS:
                self._known.popitem(last=False)

    async def _resume_data(self) -> bytes:
        """libtorrent's present resume data; nothing if it does not come in time."""
        self._resume = b""
        handle, alert = self._handle, libtorrent.save_resume_data_alert
        await self._session.wait_for(alert, lambda: handle.save_resume_data(_SAVE_INFO), _SAVE_TIMEOUT)
        return self._resume

    def _on_resume_data(self, alert: Any) -> None:
        self._resume = libtorrent.write_resume_data_buf(alert.params)
        if self.cache.kept:
            try:
                self.cache.save(self._resume)
                self._unsaved = False
            except OSError as error:
                log.warning("torrent: cannot keep the resume data: %s", error)

    # -- room

    def _check_room(self) -> None:
        if self._room and len(self._used) > self._room:
            self._full.set()

    async def _keep_room(self) -> None:
        while True:
            await self._full.wait()
            self._full = trio.Event()
            keep = int(self._room * _KEEP)
            idle = [piece for piece in self._used if piece not in self._claims]
            if excess := idle[: len(self._used) - keep]:
                await self._drop(excess)

    async def _drop(self, pieces: list[int]) -> None:
        """Forget pieces that nobody uses.

        libtorrent cannot be told to forget a piece, so the torrent leaves the session for a moment and comes back
        without them: peers learn at once what is no longer to be had from here.
        """
        resume = await self._resume_data()
        if not resume:
            return  # the next piece tries again
        session, handle = self._session, self._handle
        pieces = [piece for piece in pieces if piece not in self._claims]
        self.dropped += len(pieces)
        for piece in pieces:
            self.here[piece] = 0
            del self._used[piece]
        self._handle = None
        removed = await session.wait_for(
            libtorrent.torrent_removed_alert, lambda: session.session.remove_torrent(handle), _SAVE_TIMEOUT
        )
        if not removed:
            log.info("torrent: slow to leave the session")
        self.cache.forget_descriptors()
        await trio.to_thread.run_sync(self.cache.drop, [part for piece in pieces for part in self._parts(piece)])
        params = libtorrent.read_resume_data(resume)
        params.have_pieces = [bool(present) for present in self.here]
        params.unfinished_pieces = {}
        params.ti = self._params.ti
        self._add(params)
        for piece in self._claims:
            if not self.here[piece]:
                self._want(piece, 0)
        self._choose_order()
        for address in self._known:
            self._handle.connect_peer(address)

    def _parts(self, piece: int) -> Iterator[tuple[int, int, int]]:
        """The parts of files that a piece covers: (index, offset, length)."""
        start, end = piece * self.metainfo.piece_length, (piece + 1) * self.metainfo.piece_length
        first = max(bisect.bisect_right(self._starts, start) - 1, 0)
        for file in self._files[first:]:
            if file.offset >= end:
                return
            low, high = max(start, file.offset), min(end, file.offset + file.length)
            if low < high:
                yield file.index, low - file.offset, high - low


_SAVE_INFO = libtorrent.save_resume_flags_t.save_info_dict


def resumed(data: bytes, fresh: Any) -> Any:
    """Parameters for adding a torrent from the resume data of an earlier run; `fresh` if that is not usable.

    Every piece that was here is handed over as complete but not verified, so that libtorrent hashes it first.
    """
    try:
        params = libtorrent.read_resume_data(data)
    except RuntimeError as error:
        log.warning("torrent: the resume data is damaged, starting anew: %s", error)
        return fresh
    info = fresh.ti or params.ti
    if info is None or (fresh.ti and fresh.ti.info_hashes() != params.info_hashes):
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


def _names(info: Any, metainfo: Metainfo, cache: Cache) -> dict[int, str]:
    """Names in the cache for libtorrent's files, which count padding too.  Raises if it sees other files than we."""
    layout = info.layout()
    padding = libtorrent.file_flags_t.flag_pad_file
    shown = [number for number in range(layout.num_files()) if not layout.file_flags(number) & padding]
    for file in metainfo.files:
        number = shown[file.index]
        theirs = layout.file_size(number), layout.file_offset(number)
        if file.length and theirs != (file.length, file.offset) and not _is_link(layout, number):
            raise SourceError(errno.EIO, f"file {file.index} is not where libtorrent has it", where="torrent")
    return {number: cache.name(index) for index, number in enumerate(shown)}


def _is_link(layout: Any, number: int) -> bool:
    return bool(layout.file_flags(number) & libtorrent.file_flags_t.flag_symlink)


def _offset(file: File) -> int:
    return file.offset
