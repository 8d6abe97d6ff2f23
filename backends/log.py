"""The `log` layer: a line for each request when it comes and when it is done."""

from __future__ import annotations

import errno
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from io import FileIO
from typing import TypeVar

import trio

from nbdfs.around import AroundLayer, Request
from nbdfs.errors import UserError
from nbdfs.records import Record
from nbdfs.registry import BOOLEAN, PATH, LayerDriver, OpenContext, option
from nbdfs.source import Source

T = TypeVar("T")
log = logging.getLogger(__name__)


class Log(AroundLayer):
    """`below`; `write` gets each line."""

    def __init__(self, below: Source, write: Callable[[str], None]) -> None:
        super().__init__(below)
        self._write = write
        self._ids = itertools.count(1)

    async def around(self, request: Request, call: Callable[[], Awaitable[T]]) -> T:
        action, number = request.operation.capitalize(), next(self._ids)
        where = f" offset={request.offset:#x} count={request.length:#x}" if request.length else ""
        self._write(f"{action} id={number}{where}{''.join(f' {word}=1' for word in request.words)} ...")
        try:
            result = await call()
        except OSError as error:
            name = errno.errorcode.get(error.errno or errno.EIO, str(error.errno))
            self._write(f"...{action} id={number} return=-1 error={name}")
            raise
        except trio.Cancelled:
            self._write(f"...{action} id={number} cancelled")
            raise
        self._write(f"...{action} id={number} return=0")
        return result


class LogFile:
    """Writes lines with the time in front.  A file that cannot be written any more is given up, with a warning."""

    def __init__(self, file: FileIO) -> None:
        self._file: FileIO | None = file

    def write(self, line: str) -> None:
        if self._file is None:
            return
        try:
            self._file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S.%f} {line}\n".encode())
        except OSError as error:
            log.warning("the log %s ends here: %s", self._file.name, error.strerror)
            self._file = None


class LogOptions(Record):
    file: str = option("", PATH, "where the lines go; without it they are messages of nbdfs, shown with -v")
    append: bool = option(False, BOOLEAN, "add to a file that exists; else it is replaced")


@asynccontextmanager
async def _open(below: Source, options: LogOptions, context: OpenContext) -> AsyncIterator[Source]:
    if not options.file:
        yield Log(below, log.info)
        return
    try:
        file = FileIO(options.file, "a" if options.append else "w")
    except OSError as error:
        raise UserError(f"log: cannot write {options.file}: {error.strerror}") from error
    with file:
        yield Log(below, LogFile(file).write)


DRIVER = LayerDriver("log", "a line for each request", LogOptions, open=_open)
