"""An entered export as a source."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping

import trio

from nbdfs import eager
from nbdfs.errors import SourceError, UserError
from nbdfs.nbd.client import Client
from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.proto.answers import RemoteExport
from nbdfs.ranges import pieces
from nbdfs.source import ALLOCATION, MAX_SIZE, BlockSize, Caps, Extent, Health, Source, SourceInfo

_DEFAULT_MAXIMUM = 32 << 20  # bytes; NBD protocol, "Block size constraints": what every server takes
_LONG = 1 << 31  # bytes; the longest request without data, where a length has 32 bits
_CAPS = {
    nbd.FLAG_SEND_FLUSH: Caps.FLUSH,
    nbd.FLAG_SEND_FUA: Caps.FUA,
    nbd.FLAG_SEND_TRIM: Caps.TRIM,
    nbd.FLAG_SEND_WRITE_ZEROES: Caps.ZERO,
    nbd.FLAG_SEND_FAST_ZERO: Caps.FAST_ZERO,
    nbd.FLAG_SEND_CACHE: Caps.CACHE,
    nbd.FLAG_ROTATIONAL: Caps.ROTATIONAL,
}


def source_info(export: RemoteExport, name: str) -> SourceInfo:
    """What an export is, as a source."""
    if export.size > MAX_SIZE:
        raise UserError(f"{name}: the server says that it has {export.size} bytes; a file can have {MAX_SIZE}")
    caps = Caps.NONE if export.has(nbd.FLAG_READ_ONLY) else Caps.WRITE
    for flag, cap in _CAPS.items():
        if export.has(flag):
            caps |= cap
    if ALLOCATION in export.contexts:
        caps |= Caps.EXTENTS
    # One flush covers all: there is one connection only, unless the server itself says that this is so for several.
    caps |= Caps.MULTI_CONN
    minimum, preferred, _ = export.block or (1, 4096, 0)
    return SourceInfo(
        export.reachable,
        caps,
        BlockSize(minimum, preferred, _DEFAULT_MAXIMUM),
        description=name,
        contexts=(ALLOCATION, *(context for context in export.contexts if context != ALLOCATION)),
        missing=export.missing,
    )


class Remote(Source):
    """The export of `client`; `name` says where it is.  With `discard` holes are trimmed before they are zeroed."""

    eager = True

    def __init__(self, client: Client, name: str, *, discard: bool = False) -> None:
        self.client = client
        self._discard = discard and client.export.has(nbd.FLAG_SEND_TRIM)
        export = client.export
        self.info = source_info(export, name)
        minimum, _, maximum = export.block or (1, 0, _DEFAULT_MAXIMUM)
        self._maximum = min(maximum - maximum % minimum, _DEFAULT_MAXIMUM)
        self._changes = 0  # how often anything was changed, and as many of them as a flush has covered
        self._flushed = 0
        self._long = _LONG if not client.server.extended else MAX_SIZE

    def statistics(self) -> Mapping[str, int]:
        return {"connections": self.client.links.connections, "reconnects_total": self.client.links.reconnects}

    def health(self) -> Health:
        return self.client.links.health()

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        if len(buffer) <= self._maximum:
            await self.client.read_into(buffer, offset)
            return

        async def part(at: int, size: int) -> None:
            await self.client.read_into(buffer[at - offset : at - offset + size], at)

        await _all(part, pieces(offset, len(buffer), self._maximum))

    async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        try:
            if len(data) <= self._maximum:
                await self.client.write(data, offset, fua=fua)
            else:
                await self._write_long(data, offset, fua)
        finally:
            self._changes += 1

    async def _write_long(self, data: memoryview, offset: int, fua: bool) -> None:
        async def part(at: int, size: int) -> None:
            await self.client.write(data[at - offset : at - offset + size], at, fua=fua)

        await _all(part, pieces(offset, len(data), self._maximum))

    def poller(self) -> Callable[[], bool]:
        return self.client.links.poll

    async def flush(self) -> None:
        """Nothing to do if nothing was changed: the end of a mount that was only read waits for no server."""
        changes = self._changes
        if changes != self._flushed:  # a flush under way covers nothing yet
            await self.client.flush()
            self._flushed = max(self._flushed, changes)

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        try:
            for at, size in pieces(offset, length, self._long):
                await self.client.trim(at, size, fua=fua)
        finally:
            self._changes += 1

    async def zero(
        self, offset: int, length: int, *, may_trim: bool = True, fast: bool = False, fua: bool = False
    ) -> None:
        try:
            for at, size in pieces(offset, length, self._long):
                if self._discard and may_trim and not fast:
                    with contextlib.suppress(SourceError):  # no more than a hint
                        await self.client.trim(at, size)
                await self.client.write_zeroes(at, size, no_hole=not may_trim, fast=fast, fua=fua)
        finally:
            self._changes += 1

    async def extents(self, offset: int, length: int, *, context: str = ALLOCATION, one: bool = False) -> list[Extent]:
        return await self.client.block_status(offset, min(length, self._long), context, one=one)

    async def cache(self, offset: int, length: int) -> None:
        for at, size in pieces(offset, length, self._long):
            await self.client.cache(at, size)


async def _all(part: Callable[[int, int], Awaitable[None]], ranges: Iterable[tuple[int, int]]) -> None:
    """Do the parts of a request that is longer than the server takes, all at once; raise the first error."""
    await eager.task()
    try:
        async with trio.open_nursery() as nursery:
            for at, size in ranges:
                nursery.start_soon(part, at, size)
    except* OSError as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
