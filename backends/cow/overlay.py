"""The overlay of the `cow` layer: which blocks were written, and their content.

A kept overlay is one sparse file:

    0          header: magic, version, flags, block size, size of the device, where the content begins, what the
               base was (hashes of its identity and of its first 64 KiB), CRC of all that
    4096       a bitmap, one bit a block, lowest bit first: the block is in the overlay
    content    the blocks at their own offsets; a hole is a block of zeroes

Invariants, which hold at every instant and so after a kill or a power failure too:

* a bit is on the disk only if the content of its block was durable before (`flush` syncs the content, then writes the
  bits, then syncs again);
* `flush` returns only when the bits of all blocks written before it are durable;
* an overlay that is being made is an empty file or a header alone until it has its size, and so whoever comes later
  can make it to its end.

While a commit is under way the base is neither what it was nor what it will be, but base and overlay together show the
same at every instant: the header then holds the hash of what both show, and only a commit may open the overlay.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Self

import trio

from nbdfs.errors import NotWritableError, UserError
from nbdfs.fileio import version
from nbdfs.libc import punch_hole
from nbdfs.ranges import RangeSet, align_up
from nbdfs.records import Record, replace
from nbdfs.scratch import Scratch, memory_scratch, temporary_directory, unnamed_scratch
from nbdfs.undo import unless_done

_MAGIC = b"nbdfs cow\0\0\0\0\0\0\0"
_HEADER = struct.Struct("<16s II QQQ 32s 32s")  # magic, version, flags, block, size, content, identity, beginning
_CHECKSUM = struct.Struct("<I")
_VERSION = 1
_COMMITTING = 1  # flag: a commit has begun
_BITMAP = 4096
_PAGE = 4096  # bytes of the bitmap that are read or written at once
_ALIGN = 1 << 20
LARGEST_BLOCK = 1 << 20
FINGERPRINTED = 64 << 10  # bytes at the beginning of a base: partition tables and superblocks have their UUIDs there


class Base(Record):
    """What an overlay lies over."""

    size: int
    identity: str
    beginning: bytes  # the first FINGERPRINTED bytes

    @property
    def hashes(self) -> tuple[bytes, bytes]:
        identity = hashlib.sha256(self.identity.encode()).digest() if self.identity else bytes(32)
        return identity, hashlib.sha256(self.beginning).digest()


def is_block(size: int) -> bool:
    """Whether an overlay can have blocks of that size in bytes."""
    return 512 <= size <= LARGEST_BLOCK and not size & (size - 1)


def _content_at(size: int, block: int) -> int:
    """Where the content begins, behind the bitmap."""
    bits = -(-size // block)
    return align_up(_BITMAP + align_up(-(-bits // 8), _PAGE), _ALIGN)


class Header(Record):
    """The first bytes of an overlay file."""

    block: int
    size: int
    content: int
    identity: bytes
    beginning: bytes
    flags: int = 0

    @classmethod
    def for_base(cls, base: Base, block: int) -> Self:
        return cls(block, base.size, _content_at(base.size, block), *base.hashes)

    def pack(self) -> bytes:
        fields = (self.flags, self.block, self.size, self.content, self.identity, self.beginning)
        body = _HEADER.pack(_MAGIC, _VERSION, *fields)
        return body + _CHECKSUM.pack(zlib.crc32(body))

    @classmethod
    def unpack(cls, data: bytes, path: str) -> Self:
        """Raises UserError for anything but a good header."""
        body, rest = data[: _HEADER.size], data[_HEADER.size :]
        if not body.startswith(_MAGIC):
            raise UserError(f"{path} is no cow overlay and is left alone: name another file or remove it")
        if len(rest) < _CHECKSUM.size or _CHECKSUM.unpack_from(rest)[0] != zlib.crc32(body):
            raise UserError(f"{path}: the header of the overlay is damaged")
        _, version, flags, block, size, content, identity, beginning = _HEADER.unpack(body)
        if version != _VERSION:
            raise UserError(f"{path}: overlays of version {version} are not known to this nbdfs")
        header = cls(block, size, content, identity, beginning, flags)
        if not is_block(block) or content != _content_at(size, block):
            raise UserError(f"{path}: the header of the overlay makes no sense")
        return header


class Overlay:
    """The blocks that differ from the base, and the file (if any) that keeps them."""

    def __init__(self, content: Scratch, header: Header, *, kept: bool, readonly: bool = False) -> None:
        self.content = content
        self.header = header
        self.kept = kept
        self.readonly = readonly
        self.block = header.block
        self.present = RangeSet()  # blocks that are in the overlay
        self._durable = RangeSet()  # those whose bit may be on the disk
        self._fresh = RangeSet()  # those added since the last flush
        self._flushing = trio.Lock()

    @property
    def version(self) -> str:
        """What names the content of one for reading only; whoever may write to it stamps its header anew."""
        return version(self.content.descriptor)

    def add(self, first: int, last: int) -> None:
        """Blocks [first, last) are in the overlay from now on.  Their content must be written already."""
        if not self.present.covers(first, last):
            self.present.add(first, last)
            self._fresh.add(first, last)

    async def flush(self) -> None:
        """Make all blocks written so far durable, content before bits."""
        if not self.kept or self.readonly:
            return
        async with self._flushing:  # whoever comes second must not return before the bits of the first are durable
            fresh, self._fresh = self._fresh, RangeSet()
            with unless_done(lambda: self._fresh.update(fresh)):
                await self.content.sync()
                if len(fresh):
                    await trio.to_thread.run_sync(self._write_bits, fresh)
                    await self.content.sync()

    def _write_bits(self, fresh: RangeSet) -> None:
        for start, end in fresh:
            self._durable.add(start, end)
            first, last = start // 8, -(-end // 8)
            for at in range(first, last, _PAGE):
                stop = min(at + _PAGE, last)
                os.pwrite(self.content.descriptor, _bits(self._durable, at, stop), _BITMAP + at)

    def load(self) -> None:
        """Read the bitmap of a kept overlay."""
        blocks = -(-self.header.size // self.block)
        length = -(-blocks // 8)
        for at in _data_pages(self.content.descriptor, _BITMAP, length):
            page = os.pread(self.content.descriptor, min(_PAGE, length - at), _BITMAP + at)
            for start, end in _runs_of_ones(page):
                first, last = at * 8 + start, min(at * 8 + end, blocks)
                self.present.add(first, last)
                self._durable.add(first, last)

    def rewrite_header(self, header: Header) -> None:
        """Replace the header durably (it is within one sector)."""
        os.pwrite(self.content.descriptor, header.pack(), 0)
        os.fdatasync(self.content.descriptor)
        self.header = header

    def begin_commit(self, base: Base) -> None:
        """From now on the base may be changed."""
        _, shown = replace(base, beginning=self.over(base.beginning)).hashes
        self.rewrite_header(replace(self.header, beginning=shown, flags=_COMMITTING))

    def over(self, beginning: bytes) -> bytes:
        """What base and overlay together show at their beginning."""
        shown = bytearray(beginning)
        for first, last in self.present:
            start, end = first * self.block, min(last * self.block, len(shown))
            if start >= end:
                break
            shown[start:end] = os.pread(self.content.descriptor, end - start, self.header.content + start)
        return bytes(shown)

    def clear(self) -> None:
        """Forget every block, and give its space back.  The base must hold them durably."""
        zeroes = bytes(_PAGE)
        length = self.header.content - _BITMAP
        for at in list(_data_pages(self.content.descriptor, _BITMAP, length)):
            os.pwrite(self.content.descriptor, zeroes, _BITMAP + at)
        os.fdatasync(self.content.descriptor)
        self.present, self._durable, self._fresh = RangeSet(), RangeSet(), RangeSet()
        self.rewrite_header(replace(self.header, flags=0))
        with suppress(OSError):  # a file system without holes
            punch_hole(self.content.descriptor, self.header.content, self.header.size)

    def close(self) -> None:
        self.content.close()


def temporary_overlay(size: int, block: int, *, memory: bool) -> Overlay:
    """An overlay that is gone in the end."""
    content = memory_scratch("nbdfs-cow", size) if memory else unnamed_scratch(temporary_directory(), size)
    return Overlay(content, Header.for_base(Base(size, "", b""), block), kept=False)


def open_overlay(
    path: str, base: Base, block: int, *, accept: bool = False, readonly: bool = False, committing: bool = False
) -> Overlay:
    """Open a kept overlay, or make it if it is neither for reading only nor for committing.

    Raises UserError if it is none, is damaged, in use, or of another base; `accept` overlooks the last.
    """
    access = os.O_RDONLY if readonly else os.O_RDWR
    create = 0 if readonly or committing else os.O_CREAT
    try:
        descriptor = os.open(path, access | create | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise (UserError if readonly else NotWritableError)(f"overlay: {path}: {error.strerror}") from error
    with unless_done(lambda: os.close(descriptor)):
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if readonly else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            if create and os.fstat(descriptor).st_size == 0:
                return _made(descriptor, path, base, block)
            overlay = _loaded(descriptor, path, base, readonly)
            _bind(overlay, path, base, accept, committing)
        except BlockingIOError:
            raise NotWritableError(f"the overlay {path} is in use by another process") from None
        except OSError as error:
            raise UserError(f"overlay: {path}: {error.strerror}") from error
    return overlay


def _loaded(descriptor: int, path: str, base: Base, readonly: bool) -> Overlay:
    header = Header.unpack(os.pread(descriptor, _HEADER.size + _CHECKSUM.size, 0), path)
    if header.size != base.size:
        raise UserError(f"the overlay {path} is for a device of {header.size} bytes; this one has {base.size}")
    length = os.fstat(descriptor).st_size
    if length == len(header.pack()):
        if not readonly:
            _give_size(descriptor, header)
    elif length < header.content + header.size:
        raise UserError(f"the overlay {path} is truncated")
    overlay = Overlay(Scratch(descriptor, header.size, start=header.content), header, kept=True, readonly=readonly)
    overlay.load()
    return overlay


def _bind(overlay: Overlay, path: str, base: Base, accept: bool, committing: bool) -> None:
    """Make sure that it is this base that the overlay lies over; an empty one takes any."""
    header = overlay.header
    interrupted = bool(header.flags & _COMMITTING)
    if interrupted and not committing:
        raise UserError(f"a commit of the overlay {path} was interrupted: run nbdfs commit again first")
    if len(overlay.present) and not accept:
        shown = replace(base, identity="", beginning=overlay.over(base.beginning)) if interrupted else base
        identity, beginning = shown.hashes
        known = header.identity != bytes(32) and identity != bytes(32)
        if beginning != header.beginning or (known and identity != header.identity):
            raise UserError(
                f"the overlay {path} lies over another base than this, or the base has changed: "
                "give the right one, or accept-base if you know that its content is the same"
            )
    if not overlay.readonly and not interrupted:
        overlay.rewrite_header(Header.for_base(base, header.block))


def _made(descriptor: int, path: str, base: Base, block: int) -> Overlay:
    header = Header.for_base(base, block)
    overlay = Overlay(Scratch(descriptor, header.size, start=header.content), header, kept=True)
    overlay.rewrite_header(header)
    try:
        _give_size(descriptor, header)
    except OSError:
        os.ftruncate(descriptor, 0)  # it can still be one for another device
        raise
    directory = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return overlay


def _give_size(descriptor: int, header: Header) -> None:
    """Make a header a whole overlay, which has nothing in it."""
    os.ftruncate(descriptor, header.content + header.size)
    os.fsync(descriptor)


def _bits(blocks: RangeSet, first: int, last: int) -> bytes:
    """Bytes [first, last) of the bitmap."""
    value = 0
    for start, end, inside in blocks.runs(first * 8, last * 8):
        if inside:
            value |= ((1 << (end - start)) - 1) << (start - first * 8)
    return value.to_bytes(last - first, "little")


def _runs_of_ones(page: bytes) -> Iterator[tuple[int, int]]:
    """The runs [start, end) of bits that are set."""
    value = int.from_bytes(page, "little")
    at = 0
    while value:
        skipped = (value & -value).bit_length() - 1
        value >>= skipped
        at += skipped
        length = (~value & (value + 1)).bit_length() - 1
        yield at, at + length
        value >>= length
        at += length


def _data_pages(descriptor: int, start: int, length: int) -> Iterator[int]:
    """The offsets from `start` of the pages that are no holes: the empty bitmap of a huge device costs nothing."""
    scratch = Scratch(descriptor, length, start=start)
    for first, last, data in scratch.data_runs(0, length):
        if data:
            yield from range(first - first % _PAGE, last, _PAGE)
