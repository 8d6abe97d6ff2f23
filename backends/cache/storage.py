"""Where the `cache` layer keeps blocks: a store in memory, a file without a name, or a file kept between runs.

A kept file is sparse:

    0          header: magic, version, flags, block size, size of the device, where the content begins, a number drawn
               when it was made, hash of the source's identity, CRC of all that
    4096       eight bytes a block: CRC-32 of the content and a check of that; zeroes where there is none
    content    the blocks at their own offsets

Nothing is ever synced for a block, since nothing need be: a block is used after a restart only if its content has the
CRC that its entry says.  What a CRC cannot tell is a block that was right until the source was written to.  So before
the first write of a session the header is marked, durably, and an orderly end takes the mark away; a file found with
the mark is emptied.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import struct
import zlib
from collections.abc import Iterator

from nbdfs.errors import UserError
from nbdfs.libc import punch_hole
from nbdfs.ranges import align_up
from nbdfs.records import Record, replace
from nbdfs.scratch import Scratch, memory_scratch, unnamed_scratch
from nbdfs.source import SourceInfo
from nbdfs.undo import unless_done

log = logging.getLogger(__name__)

_MAGIC = b"nbdfs cache\0\0\0\0\0"
_HEADER = struct.Struct("<16s II QQQ I 32s")  # magic, version, flags, block, size, content, number, identity
_CHECKSUM = struct.Struct("<I")
_ENTRY = struct.Struct("<II")
_CHECKED = struct.Struct("<QII")  # block, CRC of its content, the file's number
_VERSION = 1
_WRITTEN = 1  # flag: the source may have been written to since the entries were made
_INDEX = 4096
_MOST_WRITTEN = 64 << 10  # bytes of entries taken out by writing zeroes
_ALIGN = 1 << 20


class _Header(Record):
    block: int
    size: int
    number: int
    identity: bytes
    flags: int = 0

    @property
    def content(self) -> int:
        blocks = -(-self.size // self.block)
        return align_up(_INDEX + blocks * _ENTRY.size, _ALIGN)

    def pack(self) -> bytes:
        body = _HEADER.pack(
            _MAGIC, _VERSION, self.flags, self.block, self.size, self.content, self.number, self.identity
        )
        return body + _CHECKSUM.pack(zlib.crc32(body))


class Storage:
    """Content of blocks, and for a kept file the index beside it."""

    def __init__(self, scratch: Scratch, block: int, header: _Header | None = None) -> None:
        self.scratch = scratch
        self._block = block
        self._header = header  # of a kept file
        self._trusted = True  # no entry remains that should be gone

    def remember(self, first: int, data: memoryview) -> None:
        """Enter the blocks from `first` on, whose whole content `data` was written before."""
        if self._header:
            parts = (data[at : at + self._block] for at in range(0, len(data), self._block))
            entries = [self._entry(first + index, zlib.crc32(part)) for index, part in enumerate(parts)]
            with contextlib.suppress(OSError):  # a missing entry costs a fetch after the next start
                self._write_entries(first, b"".join(entries))

    def forget(self, first: int, last: int) -> None:
        """Take the entries of blocks [first, last) out."""
        if self._header:
            length = (last - first) * _ENTRY.size
            try:
                if length <= _MOST_WRITTEN:
                    self._write_entries(first, bytes(length))
                else:
                    punch_hole(self.scratch.descriptor, _INDEX + first * _ENTRY.size, length)
            except OSError:
                self._trusted = False

    def before_write(self) -> None:
        """Mark the file before the source is written to for the first time.  Raises OSError if that is impossible."""
        if self._header and not self._header.flags & _WRITTEN:
            self._write_header(replace(self._header, flags=_WRITTEN))

    def entries(self) -> Iterator[tuple[int, int]]:
        """(block, CRC of its content) of every entry that is whole."""
        if not self._header:
            return
        length = -(-self.scratch.size // self._block) * _ENTRY.size
        index = Scratch(self.scratch.descriptor, length, start=_INDEX)
        for start, end, data in index.data_runs(0, length):
            if not data:
                continue
            start -= start % _ENTRY.size
            content = os.pread(self.scratch.descriptor, end - start, _INDEX + start)
            whole = len(content) - len(content) % _ENTRY.size
            for at, (crc, check) in enumerate(_ENTRY.iter_unpack(content[:whole]), start // _ENTRY.size):
                if (crc, check) != (0, 0) and self._entry(at, crc) == _ENTRY.pack(crc, check):
                    yield at, crc

    def close(self) -> None:
        """Close, with no mark left if content, entries and source agree."""
        try:
            if self._trusted and self._header and self._header.flags & _WRITTEN:
                os.fdatasync(self.scratch.descriptor)
                self._write_header(replace(self._header, flags=0))
        finally:
            self.scratch.close()

    def _entry(self, block: int, crc: int) -> bytes:
        assert self._header
        return _ENTRY.pack(crc, zlib.crc32(_CHECKED.pack(block, crc, self._header.number)))

    def _write_entries(self, first: int, entries: bytes) -> None:
        os.pwrite(self.scratch.descriptor, entries, _INDEX + first * _ENTRY.size)

    def _write_header(self, header: _Header) -> None:
        os.pwrite(self.scratch.descriptor, header.pack(), 0)
        os.fdatasync(self.scratch.descriptor)
        self._header = header


def open_storage(directory: str, info: SourceInfo, block: int) -> Storage:
    """A store in `directory`, or in memory if that is empty.

    It is kept between runs if the source has an identity and no other process uses the same file.
    """
    if not directory:
        return Storage(memory_scratch("nbdfs-cache", info.size), block)
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        storage = _open_kept(directory, info, block) or Storage(unnamed_scratch(directory, info.size), block)
        with unless_done(storage.scratch.close):
            _check_holes(storage.scratch.descriptor, directory)
        return storage
    except OSError as error:
        raise UserError(f"cache={directory}: {error.strerror}") from error


def _check_holes(descriptor: int, directory: str) -> None:
    """Raise UserError where evicted blocks would go on taking space."""
    try:
        punch_hole(descriptor, os.fstat(descriptor).st_size, _MOST_WRITTEN)  # behind its end: nothing changes
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        raise UserError(f"cache={directory}: its file system has no holes, and so could give no space back") from error


def _open_kept(directory: str, info: SourceInfo, block: int) -> Storage | None:
    if not info.identity:
        log.warning("%s: nothing names its version, so its cache is not kept between runs", info.description)
        return None
    name = hashlib.sha256(info.description.encode()).hexdigest()[:32]
    path = f"{directory}/{name}.cache"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with unless_done(lambda: os.close(descriptor)):
        if os.fstat(descriptor).st_uid not in (0, os.geteuid()):
            raise UserError(f"the cache {path} is of another user, who may have put anything there: name another")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            header = _read_header(descriptor, info, block) or _make(descriptor, info, block)
        except BlockingIOError:
            os.close(descriptor)
            log.warning("%s: its cache is in use by another process; this one has a cache of its own", info.description)
            return None
    return Storage(Scratch(descriptor, info.size, start=header.content), block, header)


def _read_header(descriptor: int, info: SourceInfo, block: int) -> _Header | None:
    """The header if the file is a whole cache of just this content, else None."""
    data = os.pread(descriptor, _HEADER.size + _CHECKSUM.size, 0)
    if len(data) < _HEADER.size + _CHECKSUM.size:
        return None
    *_, number, _ = _HEADER.unpack_from(data)
    header = _Header(block, info.size, number, _hash(info.identity))
    if data == header.pack() and os.fstat(descriptor).st_size == header.content + info.size:
        return header
    log.info("%s: the cache is of other content, damaged or not orderly closed, and is emptied", info.description)
    return None


def _make(descriptor: int, info: SourceInfo, block: int) -> _Header:
    header = _Header(block, info.size, int.from_bytes(os.urandom(4), "little"), _hash(info.identity))
    os.ftruncate(descriptor, 0)
    os.ftruncate(descriptor, header.content + info.size)
    os.pwrite(descriptor, header.pack(), 0)
    return header


def _hash(identity: str) -> bytes:
    return hashlib.sha256(identity.encode()).digest()
