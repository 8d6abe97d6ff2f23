"""The `cow` layer: writes go to an overlay, what is below is only read."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from nbdfs.records import Record
from nbdfs.registry import BOOLEAN, PATH, SIZE, LayerDriver, OpenContext, option
from nbdfs.source import Source


class CowOptions(Record):
    overlay: str = option("", PATH, "file that keeps what is written, made if absent; else a temporary one")
    memory: bool = option(False, BOOLEAN, "keep what is written in memory and forget it in the end")
    block: int = option(4096, SIZE, "bytes that are taken over at once, a power of two")
    accept_base: bool = option(False, BOOLEAN, "use an overlay although what is below seems another one than it was")


def _open(below: Source, options: CowOptions, context: OpenContext) -> AbstractAsyncContextManager[Source]:
    from nbdfs.backends.cow.layer import open_cow

    return open_cow(below, options, context)


DRIVER = LayerDriver(
    "cow", "keep writes in an overlay; what is below stays as it is", CowOptions, open=_open, reads_only=True
)
