"""A file of a torrent as a source."""

from __future__ import annotations

from collections.abc import Mapping

import trio

from nbdfs.backends.torrent.metainfo import File
from nbdfs.backends.torrent.readahead import ReadAhead
from nbdfs.backends.torrent.torrent import Torrent
from nbdfs.source import ALLOCATION, HOLE, RESIDENT, BlockSize, Caps, Extent, Fetching, Health, Source, SourceInfo


class TorrentFile(Source):
    """A file of a torrent.  A read waits for its own pieces only."""

    def __init__(self, torrent: Torrent, file: File, path: str) -> None:
        self._torrent = torrent
        self._file = file
        self._ahead = ReadAhead(torrent, file)
        self._hits = self._misses = 0  # pieces
        self.info = SourceInfo(
            size=file.length,
            caps=Caps.EXTENTS | Caps.CACHE | Caps.MULTI_CONN,
            block=BlockSize(1, 64 << 10),
            description=f"torrent {path}",
            identity=f"{torrent.metainfo.identity}/{file.index}",
            contexts=(ALLOCATION, RESIDENT),
        )

    async def aclose(self) -> None:
        self._ahead.close()

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        torrent = self._torrent
        pieces = torrent.pieces.of(self._file, offset, len(buffer))
        self._ahead.follow(offset, len(buffer), pieces.stop)
        torrent.eviction.touch(pieces)
        missing = torrent.pieces.missing(pieces)
        self._hits += len(pieces) - missing
        self._misses += missing
        if not missing:
            done = torrent.cache.read_now(self._file.index, buffer, offset)
            if done == len(buffer):
                return
            buffer, offset = buffer[done:], offset + done
        with torrent.pieces.claimed(pieces):
            await torrent.pieces.arrived(pieces)
            done = torrent.cache.read_now(self._file.index, buffer, offset)
            if done < len(buffer):
                await trio.to_thread.run_sync(torrent.cache.read, self._file.index, buffer[done:], offset + done)

    def statistics(self) -> Mapping[str, int]:
        torrent = self._torrent
        return {
            "hits_total": self._hits,
            "misses_total": self._misses,
            "evictions_total": torrent.eviction.dropped,
            "resident_bytes": torrent.pieces.here_of(self._file),
            "peers": torrent.swarm.peers,
        }

    def fetching(self) -> Fetching:
        return self._torrent.fetching()

    def health(self) -> Health:
        return Health.STALLED if self._torrent.starving else Health.OK

    async def cache(self, offset: int, length: int) -> None:
        pieces = self._torrent.pieces
        wanted = pieces.of(self._file, offset, length)
        with pieces.claimed(wanted):
            await pieces.arrived(wanted)

    async def extents(self, offset: int, length: int, *, context: str = ALLOCATION, one: bool = False) -> list[Extent]:
        if context == ALLOCATION:  # what is not here yet is data all the same
            return [Extent(offset, length, 0)]
        pieces, size, start = self._torrent.pieces, self._torrent.metainfo.piece_length, self._file.offset
        found: list[Extent] = []
        for run, here in pieces.runs(pieces.of(self._file, offset, length)):
            low, high = max(offset, run.start * size - start), min(offset + length, run.stop * size - start)
            found.append(Extent(low, high - low, 0 if here else HOLE))
            if one:
                break
        return found
