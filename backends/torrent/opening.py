"""From what the user names (a .torrent file, a magnet link) to a torrent in a session."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import libtorrent
import trio

from nbdfs.backends.torrent import Options, magnet, metainfo
from nbdfs.backends.torrent.bencode import BencodeError
from nbdfs.backends.torrent.cache import Cache
from nbdfs.backends.torrent.loading import load
from nbdfs.backends.torrent.membership import resumed
from nbdfs.backends.torrent.metainfo import File, Metainfo, MetainfoError
from nbdfs.backends.torrent.session import Session, settings
from nbdfs.backends.torrent.torrent import Torrent
from nbdfs.errors import UserError
from nbdfs.nursery import serving_nursery
from nbdfs.source import CLOSE_TIMEOUT


@asynccontextmanager
async def joined(argument: str, options: Options) -> AsyncIterator[Torrent]:
    """The torrent, in a session of its own.  Leaving saves resume data and takes a few seconds at most."""
    known, params = await trio.to_thread.run_sync(_parameters, argument)
    identity = known.identity if known else magnet.parse(argument).identity
    cache = Cache.open(options.cache, identity)
    try:
        if resume := cache.load():
            params = resumed(resume, params)
        chosen = settings(options)
        if known and known.private:
            chosen |= {"enable_dht": False, "enable_lsd": False}
        session = Session(chosen)
        try:
            async with serving_nursery() as nursery:
                nursery.start_soon(session.run)
                if params.ti is None:
                    await _fetch_metadata(session, cache, params, options.timeout)
                torrent = Torrent(session, cache, known or _from_info(params.ti, argument), params, options)
                torrent.start()
                nursery.start_soon(torrent.run)
                await torrent.verified()
                try:
                    yield torrent
                finally:
                    with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
                        await torrent.save()
        finally:
            with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
                await session.aclose()
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(cache.close)  # large files take long to remove


def prefetch(torrent: Torrent, files: Iterable[File], amount: int) -> None:
    """Fetch so much from the start of each file.  Raises UserError if that is more than the cache holds."""
    lengths = [(file, min(amount, file.length)) for file in files]
    wanted = {piece for file, length in lengths if length for piece in torrent.pieces.of(file, 0, length)}
    if 0 < torrent.eviction.limit < len(wanted):
        raise UserError("torrent: prefetch= wants more than cache-size= holds")
    if wanted:
        torrent.pieces.prefetch(sorted(wanted))


def _parameters(argument: str) -> tuple[Metainfo | None, Any]:
    """What is known, and libtorrent's parameters for adding it; for a thread, as there may be much to read."""
    try:
        if argument.startswith(magnet.SCHEME):
            magnet.parse(argument)  # stricter, and with better words
            return None, libtorrent.parse_magnet_uri(argument)
        known, data = load(argument)
        limits: Any = {"max_buffer_size": metainfo.LARGEST}
        return known, libtorrent.load_torrent_buffer(data, limits)
    except RuntimeError as error:
        raise UserError(f"torrent: {argument}: {error}") from error


async def _fetch_metadata(
    session: Session, cache: Cache, params: libtorrent.add_torrent_params, seconds: float
) -> None:
    """Ask the swarm for the info dictionary of a magnet link, and put it into `params`."""
    flags = libtorrent.torrent_flags
    params.save_path = str(cache.folder)
    params.flags &= ~(flags.auto_managed | flags.paused)
    params.flags |= flags.default_dont_download
    handle: Any = None

    def start() -> None:
        nonlocal handle
        handle = session.session.add_torrent(params)

    if not await session.wait_for(libtorrent.metadata_received_alert, start, seconds):
        raise UserError(
            f"torrent: no peer gave the metadata of the magnet link within {seconds:g} s; "
            "is anybody sharing it? (timeout=SECONDS waits longer)"
        )
    params.ti = handle.torrent_file()
    params.peers = [peer.ip for peer in handle.get_peer_info()]
    params.flags &= ~flags.default_dont_download
    removed = libtorrent.torrent_removed_alert
    await session.wait_for(removed, lambda: session.session.remove_torrent(handle), seconds)


def _from_info(info: Any, argument: str) -> Metainfo:
    try:
        return metainfo.parse_info(info.info_section())
    except (MetainfoError, BencodeError) as error:
        raise UserError(f"torrent: {argument} {error}") from error
