"""The `delay` layer: requests that take longer, as those to a slow or distant device do."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

from nbdfs.around import OPERATIONS, AroundLayer, Request
from nbdfs.errors import SourceError
from nbdfs.records import Record, replace
from nbdfs.registry import BOOLEAN, DURATION, LayerDriver, OpenContext, option
from nbdfs.source import CLOSE_TIMEOUT, Caps, Source

T = TypeVar("T")


class DelayOptions(Record):
    read: float = option(0.0, DURATION, "how much later reads are done")
    write: float = option(0.0, DURATION, "how much later writes are done")
    flush: float = option(0.0, DURATION, "how much later flushes are done")
    trim: float = option(0.0, DURATION, "how much later trims are done")
    zero: float = option(0.0, DURATION, "how much later zeroing is done")
    extents: float = option(0.0, DURATION, "how much later extents are told")
    cache: float = option(0.0, DURATION, "how much later fetching ahead is done")
    fast_zero: bool = option(
        True, BOOLEAN, "a fast zero is possible, and takes as long as any; else it is refused at once"
    )
    open: float = option(0.0, DURATION, "how much later the source is open")
    close: float = option(0.0, DURATION, "how much later it is closed; no more than the 30 s that closing may take")


class Delay(AroundLayer):
    """`below`, with seconds to wait before each operation; requests at the same time wait at the same time."""

    def __init__(self, below: Source, seconds: dict[str, float], *, fast_zero: bool) -> None:
        super().__init__(below, without=Caps.IMMEDIATE if any(seconds.values()) else Caps.NONE)
        if not fast_zero and Caps.WRITE in self.info.caps:  # it is offered to be refused
            self.info = replace(self.info, caps=self.info.caps | Caps.ZERO | Caps.FAST_ZERO)
        self._fast_zero = fast_zero
        self._seconds = seconds

    async def around(self, request: Request, call: Callable[[], Awaitable[T]]) -> T:
        if not self._fast_zero and "fast" in request.words:
            raise SourceError(errno.ENOTSUP, "no fast way to zero", where=self.info.description)
        if seconds := self._seconds[request.operation]:
            await trio.sleep(seconds)
        return await call()


@asynccontextmanager
async def _open(below: Source, options: DelayOptions, context: OpenContext) -> AsyncIterator[Source]:
    if options.open:
        await trio.sleep(options.open)
    seconds = {operation: getattr(options, operation) for operation in OPERATIONS}
    try:
        yield Delay(below, seconds, fast_zero=options.fast_zero)
    finally:
        if options.close:
            with trio.move_on_after(min(options.close, CLOSE_TIMEOUT), shield=True):
                await trio.sleep_forever()


DRIVER = LayerDriver("delay", "requests that take longer", DelayOptions, open=_open)
