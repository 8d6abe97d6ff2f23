"""The data path: whole sectors, decrypted in the buffer they were read into, encrypted into buffers made once."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import trio

from nbdfs import eager
from nbdfs.backends.luks import LuksOptions
from nbdfs.backends.luks.cipher import CipherName, Piece, SectorCipher
from nbdfs.backends.luks.device import load_header
from nbdfs.backends.luks.kdf import Budget
from nbdfs.backends.luks.keyslot import approves, unlock
from nbdfs.backends.luks.volume import SECTOR, Header, HeaderError, Segment
from nbdfs.backends.luks.xts import CHUNK
from nbdfs.errors import UsageError, UserError
from nbdfs.ranges import align_down, pieces
from nbdfs.records import replace
from nbdfs.registry import OpenContext
from nbdfs.source import ALLOCATION, HOLE, RESIDENT, BlockSize, Caps, Extent, Layer, Source
from nbdfs.together import Together
from nbdfs.window import Window

log = logging.getLogger(__name__)

_SMALL = 16 << 10  # bytes; requests that short are worked on together: starting the loops costs as much as the work
INLINE = 1 << 20  # bytes; a longer request is worth the way to a worker thread
_WORKERS = trio.CapacityLimiter(os.cpu_count() or 1)  # more threads than cores get in each other's way
_PIECE = 1 << 20  # bytes encrypted and written at once
_SPARE = 8  # buffers of that size that are kept
_PASSED = Caps.IMMEDIATE | Caps.WRITE | Caps.FLUSH | Caps.FUA | Caps.CACHE | Caps.MULTI_CONN | Caps.ROTATIONAL


class Luks(Layer):
    """The decrypted form of a segment of `below`, `size` bytes."""

    def __init__(
        self, below: Source, cipher: SectorCipher, segment: Segment, size: int, uuid: str, discards: bool
    ) -> None:
        super().__init__(below)
        self._cipher = cipher
        self._start = segment.offset
        self._tweak = segment.iv_tweak
        self._spare: list[bytearray] = []
        self._decrypting: dict[int, Together[Piece]] = {}  # by length
        self._encrypting: dict[int, Together[Piece]] = {}
        self.eager = below.eager
        self.batches = below.batches
        info, sector = below.info, segment.sector_size
        passed = _PASSED | Caps.TRIM | Caps.EXTENTS if discards else _PASSED
        if info.block.minimum > sector or segment.offset % info.block.minimum:
            raise UserError(f"luks: {info.description} takes only blocks of {info.block.minimum} bytes")
        self.info = replace(
            info,
            size=size,
            caps=info.caps & passed,
            block=BlockSize(sector, max(info.block.preferred, sector), align_down(info.block.maximum, sector)),
            description=f"luks {uuid} on {info.description}",
            identity=f"luks {uuid} on {info.identity}" if info.identity else "",
            contexts=tuple(context for context in info.contexts if context in (ALLOCATION, RESIDENT)),
        )

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        await self.below.pread_into(buffer, self._start + offset)
        first = offset // SECTOR + self._tweak
        if len(buffer) <= _SMALL:
            await self._together(self._decrypting, self._cipher.decrypt_pieces, len(buffer)).do(
                Piece(buffer, buffer, first)
            )
        elif self._inline(len(buffer)):
            self._cipher.decrypt(buffer, buffer, first)
        else:
            await eager.task()
            await trio.to_thread.run_sync(self._cipher.decrypt, buffer, buffer, first, limiter=_WORKERS)

    async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        length = len(data)
        if length <= _SMALL:
            piece = Piece(data, memoryview(bytearray(length)), offset // SECTOR + self._tweak)
            await self._together(self._encrypting, self._cipher.encrypt_pieces, length).do(piece)
            await self.below.pwrite(piece.target, self._start + offset, fua=fua)
            return
        spare = self._spare.pop() if self._spare else bytearray(_PIECE)
        try:
            for at, size in pieces(offset, length, _PIECE):
                result, plain = memoryview(spare)[:size], data[at - offset : at - offset + size]
                number = at // SECTOR + self._tweak
                if self._inline(length):
                    self._cipher.encrypt(plain, result, number)
                else:
                    await eager.task()
                    await trio.to_thread.run_sync(self._cipher.encrypt, plain, result, number, limiter=_WORKERS)
                await self.below.pwrite(result, self._start + at, fua=fua)
        finally:
            if len(self._spare) < _SPARE:
                self._spare.append(spare)

    def read_now(self, buffer: memoryview, length: int, offsets: Sequence[int]) -> int:
        if length > CHUNK:
            return 0
        done = self.below.read_now(buffer, length, [self._start + offset for offset in offsets])
        if done:
            self._cipher.decrypt_runs(buffer[: done * length], self._firsts(offsets[:done]))
        return done

    def write_now(self, data: memoryview, length: int, offsets: Sequence[int]) -> int:
        if length > CHUNK:
            return 0
        result = memoryview(bytearray(len(data)))
        self._cipher.encrypt_runs(data, result, self._firsts(offsets))
        return self.below.write_now(result, length, [self._start + offset for offset in offsets])

    def _firsts(self, offsets: Sequence[int]) -> list[int]:
        """The numbers of the sectors there."""
        return [offset // SECTOR + self._tweak for offset in offsets]

    @staticmethod
    def _together(
        gathered: dict[int, Together[Piece]], work: Callable[[Sequence[Piece]], None], length: int
    ) -> Together[Piece]:
        """Where the pieces of one length are worked on together."""
        found = gathered.get(length)
        if found is None:
            found = gathered[length] = Together(work, CHUNK // length)
        return found

    def _inline(self, length: int) -> bool:
        """Whether to do the work here: a way to a thread is long, and what never waits must not begin to."""
        return length <= INLINE or Caps.IMMEDIATE in self.info.caps

    async def flush(self) -> None:
        await self.below.flush()

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        await self.below.trim(self._start + offset, length, fua=fua)

    async def extents(self, offset: int, length: int, *, context: str = ALLOCATION, one: bool = False) -> list[Extent]:
        """Those of the ciphertext.  A hole in it reads as zero, but what that decrypts to is not zero."""
        if context == ALLOCATION and Caps.EXTENTS not in self.info.caps:
            return [Extent(offset, length, 0)]
        found = await self.below.extents(self._start + offset, length, context=context, one=one)
        return [Extent(start - self._start, size, flags & HOLE) for start, size, flags in found]

    async def cache(self, offset: int, length: int) -> None:
        await self.below.cache(self._start + offset, length)


@asynccontextmanager
async def open_luks(below: Source, options: LuksOptions, context: OpenContext) -> AsyncIterator[Source]:
    """Read the header, derive the key once, and give the decrypted device."""
    device = _from_offset(below, options.offset)
    async with AsyncExitStack() as stack:
        holder = await stack.enter_async_context(context.open(options.header)) if options.header else device
        try:
            header = (await load_header(holder, detached=bool(options.header))).header
            segment = header.data_segment()
            size = _data_size(segment, device.info.size)
            key = await _volume_key(holder, header, segment, options)
            cipher = SectorCipher(CipherName.parse(segment.encryption), key, segment.sector_size)
        except UserError as error:
            raise type(error)(f"luks: {error}") from error
    for note in header.notes:
        log.info("luks: %s", note)
    discards = options.allow_discards or "allow-discards" in header.flags
    layer = Luks(device, cipher, segment, size, header.uuid, discards)
    if context.readonly:
        layer.info = replace(layer.info, caps=layer.info.caps & ~(Caps.WRITE | Caps.TRIM))
    async with layer:
        yield layer


def _from_offset(below: Source, offset: int) -> Source:
    if offset == 0:
        return below
    if offset >= below.info.size:
        raise UserError(f"luks: there is nothing at the offset {offset}: {below.info.description} ends before")
    return Window(below, offset, below.info.size - offset, f"from {offset}")


def _data_size(segment: Segment, device_size: int) -> int:
    """Bytes of data, in whole sectors.  Raises HeaderError if the device has not what the header says."""
    there = device_size - segment.offset
    if there < 0 or (segment.size or 0) > there:
        raise HeaderError(
            f"the data begins at {segment.offset} and has {segment.size or 'some'} bytes, but the device ends at "
            f"{device_size}: it is cut off, or not the one of this header"
        )
    return align_down(there if segment.size is None else segment.size, segment.sector_size)


async def _volume_key(holder: Source, header: Header, segment: Segment, options: LuksOptions) -> bytes:
    digest = header.digest_of(segment)
    budget = Budget(options.pbkdf_memory_limit, options.pbkdf_cost_limit)
    if (options.passphrase is None) == (options.master_key is None):
        raise UsageError("give passphrase=+FILE, passphrase=- (asks), or master-key=+FILE")
    if options.master_key is not None:
        key = await trio.to_thread.run_sync(options.master_key.read, "Volume key")
        if not await trio.to_thread.run_sync(functools.partial(approves, digest, key, budget)):
            raise UserError("this is not the volume key")
        return key
    assert options.passphrase is not None
    offset, length = options.keyfile_offset, options.keyfile_size
    prompt = f"Passphrase of {header.uuid or 'the volume'}"
    passphrase = await trio.to_thread.run_sync(options.passphrase.read, prompt, offset, length)
    if len(passphrase) < length or (offset and not passphrase):
        raise UserError("the key file ends before keyfile-offset= and keyfile-size=")
    slot, key = await unlock(holder, header, digest, passphrase, options.keyslot, budget)
    log.info("luks: key slot %d opened %s", slot, header.uuid)
    return key
