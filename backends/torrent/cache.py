"""Where the pieces of a torrent lie on disk.

Each file of the torrent is a sparse file named by its number, so that no name from a torrent ever names a file here.
A kept cache is a folder named by the torrent's hash in a folder of the user's.  It holds the resume data too, and a
lock, since two sessions that write one folder would undo each other.  Otherwise the folder is temporary and goes at
the end.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

from nbdfs.errors import UserError
from nbdfs.fileio import read_whole
from nbdfs.libc import punch_hole
from nbdfs.scratch import temporary_directory

_OPEN_FILES = 64


class Cache:
    """A folder for one torrent."""

    def __init__(self, folder: Path, kept: bool) -> None:
        self.folder = folder
        self.kept = kept
        self._resume = folder / "resume"
        self._descriptors: OrderedDict[int, int] = OrderedDict()
        self._lock = self._locked() if kept else -1

    @classmethod
    def open(cls, parent: str, identity: str) -> Cache:
        """The cache of the torrent in `parent`, or a temporary one if that is empty.  Raises UserError."""
        try:
            if not parent:
                return cls(Path(tempfile.mkdtemp(prefix="nbdfs-torrent-", dir=temporary_directory())), False)
            folder = Path(parent) / identity
            folder.mkdir(0o700, parents=True, exist_ok=True)
            return cls(folder, True)
        except OSError as error:
            raise UserError(f"torrent: no cache in {parent or temporary_directory()}: {error.strerror}") from error

    def _locked(self) -> int:
        fd = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise UserError(f"torrent: the cache {self.folder} is in use by another process") from None
        return fd

    def load(self) -> bytes | None:
        """The resume data of the last run."""
        try:
            return self._resume.read_bytes()
        except FileNotFoundError:
            return None

    def save(self, resume: bytes) -> None:
        """Keep resume data, whole or not at all."""
        fresh = self._resume.with_suffix(".new")
        with open(fresh, "wb") as file:
            file.write(resume)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._resume)

    def name(self, index: int) -> str:
        """The name of a file of the torrent, inside `folder`."""
        return str(index)

    def read_now(self, index: int, buffer: memoryview, offset: int) -> int:
        """Read what is in memory, without waiting for a disk: the number of bytes, which may be 0."""
        try:
            return os.preadv(self._descriptor(index), [buffer], offset, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
                return 0
            raise

    def read(self, index: int, buffer: memoryview, offset: int) -> None:
        """Read all of it, waiting for the disk; for a thread."""
        with open(self.folder / self.name(index), "rb", buffering=0) as file:
            read_whole(file.fileno(), buffer, offset)

    def drop(self, parts: Iterable[tuple[int, int, int]]) -> None:
        """Give back the space of parts of files: (index, offset, length)."""
        for index, offset, length in parts:
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(self.folder / self.name(index), os.O_WRONLY | os.O_CLOEXEC)
                try:
                    punch_hole(fd, offset, length)
                finally:
                    os.close(fd)

    def forget_descriptors(self) -> None:
        """Close every file."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def close(self) -> None:
        """Let go of the folder; a temporary one is removed."""
        self.forget_descriptors()
        if self.kept:
            os.close(self._lock)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _descriptor(self, index: int) -> int:
        fd = self._descriptors.get(index)
        if fd is None:
            fd = os.open(self.folder / self.name(index), os.O_RDONLY | os.O_CLOEXEC)
            self._descriptors[index] = fd
            if len(self._descriptors) > _OPEN_FILES:
                os.close(self._descriptors.popitem(last=False)[1])
        else:
            self._descriptors.move_to_end(index)
        return fd
