"""The `file` source: a regular file or a block device of this machine."""

from __future__ import annotations

import urllib.parse

from nbdfs.errors import UsageError
from nbdfs.records import Record
from nbdfs.registry import BOOLEAN, OpenContext, SourceDriver, option
from nbdfs.source import Source


class Options(Record):
    direct: bool = option(False, BOOLEAN, "go past the page cache (O_DIRECT)")
    discard: bool = option(True, BOOLEAN, "give the space of what is trimmed or zeroed back")
    lock: bool = option(True, BOOLEAN, "let no other program that takes locks write to the file meanwhile")


def _open(argument: str, options: Options, context: OpenContext) -> Source:
    from nbdfs.backends.file.source import File

    return File(_path(argument), options, readonly=context.readonly)


def _path(argument: str) -> str:
    if argument.startswith("file://"):
        parts = urllib.parse.urlsplit(argument)
        if parts.netloc not in ("", "localhost"):
            raise UsageError(f"{argument} is on another machine: a file URI has three slashes, file:///path")
        argument = urllib.parse.unquote(parts.path, errors="surrogateescape")
    if not argument:
        raise UsageError("file: a path is missing")
    if "\0" in argument:
        raise UsageError("file: no path can hold a NUL")
    return argument


DRIVER = SourceDriver(
    "file", "a file or block device of this machine", Options, open=_open, argument="PATH", schemes=("file",)
)
