"""The read-ahead of a file of a torrent: windows of pieces that go before its sequential readers.

Invariant: a stream releases each of its claims once: when it advances and the piece is here or lies behind the reader,
when the piece is here and the cache is full, or when the stream ends.
"""

from __future__ import annotations

from collections import deque

from nbdfs.backends.torrent.metainfo import File
from nbdfs.backends.torrent.torrent import Torrent

_STREAMS = 8  # sequential readers that are told apart
_JITTER = 2 << 20  # bytes a read may lie off where its stream stood: the kernel's requests come out of order
_FIRST_WINDOW = 1 << 20
_CROWD_WINDOW = 16 << 20  # among other readers: enough that each can fetch something else
_LARGEST_WINDOW = 64 << 20
_LEAST_WAIT = 200  # milliseconds: the first deadline ahead, after those that a read waits for


class ReadAhead:
    """Claims the pieces ahead of sequential readers of one file; each read that follows on makes the window larger.

    A window that is never all here also keeps libtorrent's connections fast: one that has nothing to ask for a moment
    starts again with two requests at a time.
    """

    def __init__(self, torrent: Torrent, file: File) -> None:
        self._pieces = torrent.pieces
        self._swarm = torrent.swarm
        self._eviction = torrent.eviction
        self._file = file
        self._streams: deque[_Stream] = deque(maxlen=_STREAMS)  # the one read last at the end
        self._largest = _LARGEST_WINDOW
        self._swarm.entered.append(self.in_crowd)
        self._eviction.tight.append(self.let_go)
        if self._eviction.limit:
            self._largest = min(self._largest, self._eviction.limit * torrent.metainfo.piece_length // 2)

    def follow(self, offset: int, length: int, end: int) -> None:
        """A read of this range has come; `end` is the first piece after it."""
        stream = self._stream(offset)
        if stream is None:
            if len(self._streams) == _STREAMS:
                self._pieces.release(self._streams.popleft().claimed)
            stream = _Stream(offset + length, end)
            self._streams.append(stream)
            if offset == 0:  # whoever begins at the beginning mostly goes on
                stream.window = min(self._first(), self._largest)
                self._advance(stream, end)
            return
        if offset + length <= stream.next:
            return  # a part read again
        stream.next = offset + length
        stream.window = min(max(stream.window * 4, self._first()), self._largest)
        if stream.next + stream.window > stream.asked + stream.window // 4 or stream.top < end:
            self._advance(stream, end)

    def in_crowd(self) -> None:
        """Other readers have come: what was to be read next is no longer enough for each to fetch something else."""
        for stream in self._streams:
            if stream.window:
                stream.window = max(stream.window, min(_CROWD_WINDOW, self._largest))
                self._advance(stream, self._pieces.of(self._file, stream.next - 1, 1).stop)

    def let_go(self) -> None:
        """The cache is full: pieces that have come are kept for a reader no longer, who may have stopped."""
        for stream in self._streams:
            here = [piece for piece in stream.claimed if self._pieces.here[piece]]
            stream.claimed = [piece for piece in stream.claimed if not self._pieces.here[piece]]
            self._pieces.release(here)

    def close(self) -> None:
        """Want nothing any more."""
        self._swarm.entered.remove(self.in_crowd)
        self._eviction.tight.remove(self.let_go)
        while self._streams:
            self._pieces.release(self._streams.pop().claimed)

    def _first(self) -> int:
        return _CROWD_WINDOW if self._swarm.crowd else _FIRST_WINDOW

    def _stream(self, offset: int) -> _Stream | None:
        for stream in reversed(self._streams):
            if abs(offset - stream.next) <= _JITTER:
                if stream is not self._streams[-1]:
                    self._streams.remove(stream)
                    self._streams.append(stream)
                return stream
        return None

    def _advance(self, stream: _Stream, end: int) -> None:
        """Let go of what has come or lies behind, and claim up to the end of the window."""
        pieces, claimed = self._pieces, stream.claimed
        kept = [piece for piece in claimed if piece >= end and not pieces.here[piece]]
        gone = [piece for piece in claimed if piece < end or pieces.here[piece]]
        stream.asked = stream.next + stream.window
        length = min(stream.next + stream.window, self._file.length) - stream.next
        if length > 0:
            top = max(stream.top, end)
            fresh = range(top, pieces.of(self._file, stream.next, length).stop)
            missing = [piece for piece in fresh if not pieces.here[piece]]
            pieces.claim(missing, _LEAST_WAIT)
            kept += missing
            stream.top = max(top, fresh.stop)
        stream.claimed = kept
        pieces.release(gone)


class _Stream:
    """One sequential reader: it read up to byte `next`; pieces before `top` are claimed, here or behind it."""

    __slots__ = ("asked", "claimed", "next", "top", "window")

    def __init__(self, next: int, top: int) -> None:
        self.next = next
        self.top = top
        self.window = 0
        self.asked = 0  # the byte that the last window ended at
        self.claimed: list[int] = []
