"""The `offset` layer: a part of what is below."""

from __future__ import annotations

from nbdfs.errors import UserError
from nbdfs.records import Record
from nbdfs.registry import SIZE, LayerDriver, OpenContext, option
from nbdfs.source import Source
from nbdfs.units import format_size
from nbdfs.window import Window


class OffsetOptions(Record):
    offset: int = option(0, SIZE, "where the part begins")
    size: int = option(0, SIZE, "how long it is; 0 stands for all that follows")


def _open(below: Source, options: OffsetOptions, context: OpenContext) -> Source:
    end = options.offset + options.size if options.size else below.info.size
    if not options.offset <= end <= below.info.size:
        raise UserError(f"offset: the part ends at {max(options.offset, end)}, but there are {below.info.size} bytes")
    name = f"{format_size(end - options.offset)} at {format_size(options.offset)}"
    return Window(below, options.offset, end - options.offset, name, to_the_end=not options.size)


DRIVER = LayerDriver("offset", "show only a part", OffsetOptions, open=_open)
