"""The `stats` layer: how many requests of which kind and size there were, and how long they took."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from io import FileIO
from typing import TypeVar

import trio

from nbdfs.around import OPERATIONS, AroundLayer, Request
from nbdfs.errors import UserError
from nbdfs.outbox import write_all
from nbdfs.records import Record
from nbdfs.registry import BOOLEAN, PATH, LayerDriver, OpenContext, option
from nbdfs.source import Source

T = TypeVar("T")
log = logging.getLogger(__name__)

_MOVING = ("read", "write", "trim", "zero")  # whose bytes count in all: the others only ask
_PATIENCE = 1.0  # seconds to take the figures


class Figures:
    """What is known of one operation: seconds are those of all its requests added up."""

    def __init__(self) -> None:
        self.requests = 0
        self.failed = 0
        self.bytes = 0
        self.seconds = 0.0
        self.longest = 0.0
        self.sizes: Counter[int] = Counter()  # requests by the bits of their length

    def add(self, length: int, seconds: float) -> None:
        self.requests += 1
        self.bytes += length
        self.seconds += seconds
        self.longest = max(self.longest, seconds)
        self.sizes[length.bit_length()] += 1


class Stats(AroundLayer):
    """`below`, with the figures of each operation; bytes of requests that failed do not count."""

    def __init__(self, below: Source) -> None:
        super().__init__(below)
        self.figures = {operation: Figures() for operation in OPERATIONS}
        self._since = time.monotonic()

    async def around(self, request: Request, call: Callable[[], Awaitable[T]]) -> T:
        figures = self.figures[request.operation]
        began = time.monotonic()
        try:
            result = await call()
        except OSError:
            figures.failed += 1
            figures.add(0, time.monotonic() - began)
            raise
        figures.add(request.length, time.monotonic() - began)
        return result

    def report(self) -> Iterator[str]:
        """Lines for people."""
        elapsed = time.monotonic() - self._since
        every = self.figures.values()
        total = sum(self.figures[operation].bytes for operation in _MOVING)
        rate = _bytes(total / elapsed) if elapsed else "0 bytes"
        yield f"total: {sum(figures.requests for figures in every)} ops, {elapsed:.6f} s, {_bytes(total)}, {rate}/s"
        for operation, figures in self.figures.items():
            if figures.requests:
                yield from _lines(operation, figures, elapsed)


def _lines(operation: str, figures: Figures, elapsed: float) -> Iterator[str]:
    count, seconds = figures.requests, figures.seconds
    failed = f", {figures.failed} failed" if figures.failed else ""
    yield (
        f"{operation}: {count} ops{failed}, {seconds:.6f} s, mean {seconds / count * 1e6:.0f} us, "
        f"longest {figures.longest * 1e6:.0f} us, {_bytes(figures.bytes)}, {_bytes(figures.bytes / elapsed)}/s"
    )
    for bits, number in sorted(figures.sizes.items()):
        if bits:
            yield f"  {_bytes(1 << (bits - 1))} and more: {number / count:6.1%} ({number} ops)"


def _bytes(count: float) -> str:
    if count < 1024:
        return f"{count:.0f} bytes"
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.2f} {unit}"
    return f"{count / 1024:.2f} EiB"


class StatsOptions(Record):
    file: str = option("", PATH, "where the figures go when the source is closed; without it to standard error")
    append: bool = option(False, BOOLEAN, "add to a file that exists; else it is replaced")


@asynccontextmanager
async def _open(below: Source, options: StatsOptions, context: OpenContext) -> AsyncIterator[Source]:
    try:
        file = FileIO(options.file or sys.stderr.fileno(), "a" if options.append else "w", closefd=bool(options.file))
    except OSError as error:
        raise UserError(f"stats: cannot write {options.file}: {error.strerror}") from error
    stats = Stats(below)
    try:
        yield stats
    finally:
        await _tell(file, "".join(f"{line}\n" for line in stats.report()).encode())


async def _tell(file: FileIO, text: bytes) -> None:
    """Write the figures where somebody takes them in time, which who has stopped his terminal does not."""
    with trio.move_on_after(_PATIENCE, shield=True) as scope:
        try:
            await trio.to_thread.run_sync(_write_and_close, file, text, abandon_on_cancel=True)
        except OSError as error:
            log.warning("the figures of stats are lost: %s", error.strerror)
    if scope.cancelled_caught:
        log.warning("the figures of stats are lost: nobody took them within %g s", _PATIENCE)


def _write_and_close(file: FileIO, text: bytes) -> None:
    with file:
        write_all(file.fileno(), text)


DRIVER = LayerDriver("stats", "counts and times of requests, told when it closes", StatsOptions, open=_open)
