"""The `zero` source: zeroes, and nothing else can be written to it."""

from __future__ import annotations

from nbdfs.backends.checkwrite import mismatch
from nbdfs.backends.null import Null
from nbdfs.buffers import is_zero
from nbdfs.records import replace
from nbdfs.registry import NoOptions, OpenContext, SourceDriver
from nbdfs.source import Source
from nbdfs.units import parse_size


class Zero(Null):
    """`size` bytes of zero, one hole; a write of anything else fails, so what copies to it proves what it copied."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.info = replace(self.info, description="zero", identity="zero")

    async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        if not is_zero(data):
            raise mismatch(offset, len(data), self.info.description)


def _open(argument: str, options: NoOptions, context: OpenContext) -> Source:
    return Zero(parse_size(argument or "0"))


DRIVER = SourceDriver("zero", "zeroes; nothing else can be written", open=_open, argument="[SIZE]")
