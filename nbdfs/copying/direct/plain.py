"""A copy from one plain file to another, by threads that need no event loop."""

from __future__ import annotations

import os
from collections.abc import Callable

from nbdfs.copying import files
from nbdfs.copying.direct.mapped import MappedFile
from nbdfs.copying.direct.work import Work
from nbdfs.copying.options import CopyOptions
from nbdfs.copying.plain import BUFFER, STEP, Files
from nbdfs.copying.plan import Planner
from nbdfs.errors import UserError, reason
from nbdfs.progress import Display
from nbdfs.source import Backing
from nbdfs.undo import unless_done

_LANES = 2  # one moves memory while the other waits for a disk


class FileCopy:
    """The copy; the destination is created, or replaced.  Raises UserError if one of the two cannot be opened."""

    way = "files"
    created = True
    flushes = True

    def __init__(self, source: str, destination: str, options: CopyOptions) -> None:
        from nbdfs.backends.file.opening import open_path

        self.name = destination
        self._lanes = min(options.threads or _LANES, _LANES)
        opened = open_path(source, readonly=True, direct=False, lock=True)
        self._source = Backing(opened.fd, 0, True)
        with unless_done(lambda: os.close(opened.fd)):
            if files.same_file(self._source, destination):
                raise UserError(f"{destination} is both source and destination")
            files.create(destination, opened.size)
            fd = open_path(destination, readonly=False, direct=False, lock=True).fd
        self._destination = Backing(fd, 0, False)
        self._files = Files(self._source, self._destination)
        planner = Planner(MappedFile(opened.fd, opened.size), None, step=STEP, short_holes=False, blank=True)
        self.work = Work(planner, opened.size)

    def run(self, display: Display | None) -> None:
        """Copy; `work` says afterwards how that went."""
        self.work.carry_out([self._lane] * self._lanes, self._flush, _nobody_waits, display)

    def _flush(self) -> bool:
        """Have the file reach its disk.  Raises OSError."""
        os.fsync(self._destination.fd)
        return True

    def close(self) -> None:
        os.close(self._source.fd)
        os.close(self._destination.fd)

    def _lane(self) -> None:
        work = self.work
        buffer = memoryview(bytearray(BUFFER))
        while piece := work.next():
            offset, length, _ = piece
            try:
                self._files.copy(offset, length, buffer)
            except OSError as error:
                work.fail(f"cannot copy at byte {offset}: {reason(error)}")
                return
            work.arrived(piece, copied=length, zeroed=0)


_nobody_waits: Callable[[], None] = lambda: None  # noqa: E731 - what a disk does cannot be interrupted
