"""The `base64` source: a device written down in base64."""

from __future__ import annotations

import base64

from nbdfs.errors import UserError
from nbdfs.records import Record
from nbdfs.registry import SIZE, OpenContext, SourceDriver, option
from nbdfs.source import Source


class Base64Options(Record):
    size: int | None = option(None, SIZE, "cut to this size, or make that long with zeroes")


def _open(argument: str, options: Base64Options, context: OpenContext) -> Source:
    from nbdfs.backends.data.content import Bytes, resize
    from nbdfs.backends.data.source import DataSource

    try:
        data = base64.b64decode(argument, validate=True)
    except ValueError as error:
        raise UserError(f"base64: '{argument[:40]}' is not base64: {error}") from error
    return DataSource(resize(Bytes(data), len(data) if options.size is None else options.size), "base64")


DRIVER = SourceDriver("base64", "a device written down in base64", Base64Options, open=_open, argument="TEXT")
