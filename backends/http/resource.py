"""A file on a web server as a block device.

Every response is held against what was asked for and what was found at opening: a server that sends something else, or
a file that has changed, is an error and never wrong bytes.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from contextlib import aclosing

import trio

from nbdfs.backends.http.remote import Remote
from nbdfs.backends.http.wire import Response, WireError
from nbdfs.errors import SourceError
from nbdfs.ranges import pieces
from nbdfs.records import Record
from nbdfs.source import MAX_SIZE, BlockSize, Caps, Health, Source, SourceInfo

log = logging.getLogger(__name__)

_PIECE = 1 << 20  # bytes of one HTTP request; longer reads become several at once
_BLOCK = BlockSize(1, 256 << 10, 64 << 20)
_RANGE = re.compile(r"bytes (?:(\d{1,19})-(\d{1,19})|\*)/(\d{1,19}|\*)")


class Facts(Record):
    """What a probe found.  `ranges` says whether the server sent just the range; `size` is None if it did not tell."""

    size: int | None
    etag: str
    modified: str
    ranges: bool

    @property
    def version(self) -> str:
        """What changes when the content does; empty if the server tells nothing."""
        return self.etag or self.modified


class Resource(Source):
    """`facts` are pinned, except that in a `writable` file only the size is: our own writes change the rest."""

    def __init__(self, remote: Remote, facts: Facts, *, writable: bool) -> None:
        if facts.size is None:
            raise remote.failure("the server does not tell how long the file is")
        if facts.size > MAX_SIZE:
            raise remote.failure("the server says that the file is longer than a file can be")
        self._remote = remote
        self._pinned = facts.version if not writable else ""
        self._size = facts.size
        self._proved = False  # whether a write has been seen to leave the size as it was
        self._proving = trio.Lock()
        if not self._pinned and not writable:
            log.warning("%s: the server gives neither ETag nor Last-Modified: changes cannot be seen", remote.shown)
        caps = Caps.MULTI_CONN | (Caps.WRITE if writable else Caps.NONE)
        identity = f"{remote.identity} {facts.size} {self._pinned}" if self._pinned else ""
        self.info = SourceInfo(facts.size, caps, _BLOCK, description=remote.shown, identity=identity)

    def statistics(self) -> Mapping[str, int]:
        return {"retries_total": self._remote.retries}

    def health(self) -> Health:
        return Health.RECONNECTING if self._remote.in_trouble else Health.OK

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        if len(buffer) <= _PIECE:
            await self._read(buffer, offset)
            return
        errors: list[OSError] = []
        async with trio.open_nursery() as nursery:

            async def read_piece(at: int, size: int) -> None:
                try:
                    await self._read(buffer[at - offset : at - offset + size], at)
                except OSError as error:
                    errors.append(error)
                    nursery.cancel_scope.cancel()

            for at, size in pieces(offset, len(buffer), _PIECE):
                nursery.start_soon(read_piece, at, size)
        if errors:
            raise errors[0]

    async def _read(self, buffer: memoryview, offset: int) -> None:
        done = 0  # what has come is kept: an attempt continues where the last one broke off

        async def attempt() -> None:
            nonlocal done
            while done < len(buffer):
                first, last = offset + done, offset + len(buffer) - 1
                async with await self._remote.exchange("GET", [("Range", f"bytes={first}-{last}")]) as response:
                    end = self._check(response, first, last) + 1 - offset
                    while done < end:
                        count = await response.receive_into(buffer[done:end])
                        if not count:
                            raise WireError(f"the body ended after {done} of {end} bytes")
                        done += count
                    if await response.receive_into(memoryview(bytearray(1))):
                        raise self._remote.failure("the server sends more than was asked for")

        await self._remote.persist(f"reading {len(buffer)} bytes at {offset}", attempt)

    async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        for at, size in pieces(offset, len(data), _PIECE):
            piece = bytes(data[at - offset : at - offset + size])
            if self._proved:
                await self._put(piece, at)
                continue
            async with self._proving:
                await self._put(piece, at)
                await self._prove()

    async def _put(self, piece: bytes, offset: int) -> None:
        where = f"bytes {offset}-{offset + len(piece) - 1}/{self._size}"
        extra = [("Content-Range", where), ("Content-Length", str(len(piece)))]

        async def attempt() -> None:
            async with await self._remote.exchange("PUT", extra, piece) as response:
                if response.status not in (200, 201, 204):
                    raise self._remote.failure(f"the server answers a write with {response.status}")

        # Seen through even if cancelled: a server may act on a request long after its connection is gone, and an old
        # write must not arrive after a newer one.
        with trio.CancelScope(shield=True):
            await self._remote.persist(f"writing {len(piece)} bytes at {offset}", attempt)

    async def _prove(self) -> None:
        """After the first write: a server that knows no Content-Range has replaced the file by the piece."""
        facts = await self._remote.persist("looking at the size", lambda: probe(self._remote))
        if facts.size != self._size:
            raise self._remote.failure(
                f"the server took a write of a part for the whole file, which now has {facts.size} bytes"
            )
        self._proved = True

    def _check(self, response: Response, first: int, last: int) -> int:
        """The last byte that is sent: a server may send less than the range, from its beginning on (RFC 9110, 15.3.7).

        Raise EIO unless it is of this range and of just this file.
        """
        headers = response.headers
        if response.status == 416:
            raise self._changed(f"the file no longer has {last + 1} bytes")
        if response.status != 206:
            raise self._remote.failure(f"the server answers a range request with {response.status} instead of 206")
        refuse_coding(self._remote, response)
        sent = _RANGE.fullmatch(headers.get("content-range", ""))
        if not sent or sent[1] is None or int(sent[1]) != first or not first <= int(sent[2]) <= last:
            total = int(sent[3]) if sent and sent[3] != "*" else self._size
            if total != self._size:
                raise self._changed(f"the file now has {total} bytes")
            shown = headers.get("content-range", "nothing")
            raise self._remote.failure(f"asked for bytes {first}-{last}, the server sends {shown}")
        if sent[3] != "*" and int(sent[3]) != self._size:
            raise self._changed(f"the file now has {sent[3]} bytes")
        sends, length = int(sent[2]) - first + 1, headers.get("content-length")
        if length is not None and length != str(sends):
            raise self._remote.failure(f"the server sends {length} bytes for a range of {sends}")
        if self._pinned and (version := _version(headers)) != self._pinned:
            raise self._changed(f"it was {self._pinned} and is {version or 'unnamed'}")
        return int(sent[2])

    def _changed(self, how: str) -> SourceError:
        log.error("%s: the file has changed on the server (%s): open it again", self._remote.shown, how)
        return self._remote.failure(f"the file has changed on the server: {how}")


async def probe(remote: Remote) -> Facts:
    """Ask for the first byte: one request that shows size, version and whether ranges work.

    A promise (Accept-Ranges, the length that HEAD tells) is not taken for a proof; HEAD is asked only where the size
    is still unknown.  Raises as `Remote.exchange` does.
    """
    async with await remote.exchange("GET", [("Range", "bytes=0-0")]) as response:
        headers = response.headers
        refuse_coding(remote, response)
        sent = _RANGE.fullmatch(headers.get("content-range", ""))
        if response.status == 206 and sent:
            size = None if sent[3] == "*" else int(sent[3])
            async with aclosing(response.body()) as body:
                came = sum([len(chunk) async for chunk in body])
            if came != 1:
                raise remote.failure(f"the server sends {came} bytes for a range of 1")
            if size is None:
                size = await _head_size(remote)
            return Facts(size, *_names(headers), ranges=True)
        if response.status == 416:
            empty = bool(sent and sent[3] == "0") or await _head_size(remote) == 0
            if not empty:
                raise remote.failure("the server refuses the first byte of the file")
            return Facts(0, *_names(headers), ranges=True)
        size = _length(headers)
        return Facts(size, *_names(headers), ranges=size == 0)


async def _head_size(remote: Remote) -> int | None:
    async with await remote.exchange("HEAD", []) as response:
        return _length(response.headers) if response.status == 200 else None


def _length(headers: dict[str, str]) -> int | None:
    length = headers.get("content-length", "")
    return int(length) if re.fullmatch(r"\d{1,19}", length) else None


def refuse_coding(remote: Remote, response: Response) -> None:
    """Raise EIO for a body that is compressed on the way: ranges of it are not ranges of the file."""
    coding = response.headers.get("content-encoding", "identity")
    if coding.lower() not in ("identity", ""):
        raise remote.failure(f"the server sends the content coded as {coding}, though asked not to")


def _names(headers: dict[str, str]) -> tuple[str, str]:
    return headers.get("etag", "").removeprefix("W/"), headers.get("last-modified", "")


def _version(headers: dict[str, str]) -> str:
    etag, modified = _names(headers)
    return etag or modified
