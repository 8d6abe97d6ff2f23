"""A plain file, and nothing at all, as ends of a copy by lanes, which share one descriptor."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections import deque
from collections.abc import Iterable, Sequence

from nbdfs.copying import files
from nbdfs.copying.direct.lane import Chunk, Move
from nbdfs.copying.direct.mapped import MappedFile
from nbdfs.copying.direct.work import Work
from nbdfs.copying.options import LARGEST_REQUEST, NEAR_REQUEST, REQUEST
from nbdfs.copying.plain import BUFFER, Writeback
from nbdfs.errors import SourceError, reason
from nbdfs.fileio import read_whole, write_whole
from nbdfs.source import BlockSize, Caps, SourceInfo

_MOST_LANES = 64
_DISCARD = "/dev/null"


class _Local:
    """What local ends have in common: any number of lanes, and no connection that could be lost."""

    lanes = _MOST_LANES
    request = NEAR_REQUEST
    created = False
    blank = True
    map = None
    work: Work

    def __init__(self, name: str) -> None:
        self.name = name
        self._fd = -1

    def interrupt(self) -> None:
        """Nothing: who waits for a disk cannot be woken."""

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


class FileSource(MappedFile, _Local):
    """A file to read.  Raises UserError if it cannot be opened."""

    def __init__(self, path: str) -> None:
        from nbdfs.backends.file.opening import open_path

        _Local.__init__(self, path)
        opened = open_path(path, readonly=True, direct=False, lock=True)
        MappedFile.__init__(self, opened.fd, opened.size)
        self._local = opened.local

    def intake(self, longest: int, whole: bool) -> FileIntake:
        return FileIntake(self._fd, longest, splices=self._local)


class FileDestination(_Local):
    """A file to be made, or replaced, once the size is known."""

    flushes = True
    request = REQUEST
    info = SourceInfo(0, Caps.WRITE | Caps.FLUSH, BlockSize())

    def accept(self, size: int) -> None:
        """Make the file.  Raises UserError."""
        from nbdfs.backends.file.opening import open_path

        files.create(self.name, size)
        self.created = True
        self._fd = open_path(self.name, readonly=False, direct=False, lock=True).fd
        self._writing = threading.Lock()  # the kernel lets one write to a file at a time, and spins meanwhile

    def outlet(self, blank: bool) -> FileOutlet:
        return FileOutlet(self._fd, self._writing)


class NullDestination(_Local):
    """What takes everything."""

    flushes = False
    info = SourceInfo(0, Caps.WRITE, BlockSize())

    def __init__(self) -> None:
        super().__init__("")

    def accept(self, size: int) -> None:
        self._fd = os.open(_DISCARD, os.O_WRONLY | os.O_CLOEXEC)

    def outlet(self, blank: bool) -> NullOutlet:
        return NullOutlet(self._fd)


class FileIntake:
    """What a lane reads from.  All of a piece comes at once."""

    def __init__(self, fd: int, longest: int, *, splices: bool) -> None:
        self._fd = fd
        self.splices = splices
        self._buffer = memoryview(mmap.mmap(-1, longest))
        self._coming: deque[Chunk | Move] = deque()

    @property
    def busy(self) -> bool:
        return bool(self._coming)

    def begin(self, moves: Sequence[Move]) -> None:
        for move in moves:
            self._coming += Chunk(move, move.piece.offset, move.piece.length), move

    def hear(self) -> Chunk | Move:
        return self._coming.popleft()

    def take(self, offset: int, length: int) -> memoryview:
        data = self._buffer[:length]
        try:
            read_whole(self._fd, data, offset)
        except OSError as error:
            raise _failed("read", offset, error) from error
        return data

    def fill(self, pipe: int, offset: int, most: int) -> int:
        try:
            count = os.splice(self._fd, pipe, most, offset_src=offset)
        except OSError as error:
            raise _failed("read", offset, error) from error
        if not count:
            raise SourceError(errno.EIO, f"cannot read at byte {offset}: the file ends there, it has become shorter")
        return count

    def give_up(self) -> None:
        """Nothing: a file is not used up."""


class NullOutlet:
    """What a lane throws away."""

    busy = False
    splices = True
    step = LARGEST_REQUEST

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, move: Move, offset: int, data: memoryview) -> None:
        """Nothing."""

    def zero(self, move: Move, offset: int, length: int) -> None:
        """Nothing."""

    def announce(self, pipe: int, move: Move, offset: int, length: int) -> int:
        return 0

    def drain(self, pipe: int, length: int) -> None:
        while length:
            length -= os.splice(pipe, self._fd, length)

    def hear(self, *, wait: bool) -> Iterable[Move]:
        return ()

    def flush(self) -> None:
        """Nothing."""

    def give_up(self) -> None:
        """Nothing."""


class FileOutlet(NullOutlet):
    """What a lane writes to: a file made for the copy, so that it reads as zero."""

    splices = False  # what a socket gives comes in pages; longer writes make longer folios of the page cache
    step = BUFFER

    def __init__(self, fd: int, writing: threading.Lock) -> None:
        super().__init__(fd)
        self._writing = writing
        self._writeback = Writeback(fd)

    def write(self, move: Move, offset: int, data: memoryview) -> None:
        try:
            with self._writing:
                write_whole(self._fd, data, offset)
        except OSError as error:
            raise _failed("write", offset, error) from error
        self._writeback.wrote(len(data))

    def flush(self) -> None:
        os.fsync(self._fd)


def _failed(verb: str, offset: int, error: OSError) -> SourceError:
    return SourceError(error.errno or errno.EIO, f"cannot {verb} at byte {offset}: {reason(error)}")
