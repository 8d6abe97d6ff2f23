"""The `raw` source: the text of the spec is the content."""

from __future__ import annotations

from nbdfs.records import Record
from nbdfs.registry import SIZE, OpenContext, SourceDriver, option
from nbdfs.source import Source


class RawOptions(Record):
    size: int | None = option(None, SIZE, "cut to this size, or make that long with zeroes")


def _open(argument: str, options: RawOptions, context: OpenContext) -> Source:
    from nbdfs.backends.data.content import Bytes, resize
    from nbdfs.backends.data.source import DataSource

    data = argument.encode("utf-8", "surrogateescape")
    return DataSource(resize(Bytes(data), len(data) if options.size is None else options.size), "raw")


DRIVER = SourceDriver("raw", "a device of the very bytes of the spec", RawOptions, open=_open, argument="TEXT")
