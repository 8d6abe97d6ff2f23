"""An export: an open stack under a name, as every front end offers it.

A front end that still needs the source holds the export (a mount for each inode that the kernel knows, a server for
each client), so that an export that was removed is closed when the last one has let go, and not before.

Where a second front end keeps a cache of its own over the same source (the kernel's page cache of a mounted file), it
sets the two hooks, and the NBD server keeps to this order for each request:

* `before_access` is awaited before the source is read, written, trimmed or zeroed: it writes back what the cache holds
  dirty in the range, so that a read sees it and a later write-back cannot undo a completed NBD write;
* `after_write` is awaited after the source was changed and before the client is told so: it makes the cache forget (or
  take over) the range, so that the next read of the file sees the change.

A hook may raise OSError; the request then fails with it.  Without hooks the source alone decides.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import trio

from nbdfs.checked import Checked

Hook = Callable[[int, int], Awaitable[None]]  # (offset, length) in bytes


@dataclass(eq=False)
class Export:
    """What is offered under `name` (the empty name is the default export).

    `description` is its spec without secrets.  `number` tells it from others of its name, before and after it.
    `removed`: no front end offers it any more.
    """

    name: str
    source: Checked
    description: str = ""
    before_access: Hook | None = None
    after_write: Hook | None = None
    clients: int = 0  # of NBD servers
    removed: bool = False
    number: int = field(default_factory=itertools.count(1).__next__)
    unused: trio.Event = field(default_factory=trio.Event)  # nobody holds it any more
    closed: trio.Event = field(default_factory=trio.Event)  # its source is closed
    _holds: int = 0
    _settled: trio.Event | None = None  # set once its size is no longer being changed

    @property
    def called(self) -> str:
        """What a message calls it: its name, or what it is if it has none."""
        return self.name or self.description

    def hold(self) -> None:
        """Keep the source open until `release`."""
        self._holds += 1

    def release(self) -> None:
        """The other end of `hold`; after the last one the source is closed."""
        self._holds -= 1
        if not self._holds:
            self.unused.set()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the source open for the block."""
        self.hold()
        try:
            yield
        finally:
            self.release()

    async def settled(self) -> None:
        """Wait while the size is being changed.  No checkpoint if it is not."""
        while self._settled is not None:
            await self._settled.wait()

    @contextmanager
    def unsettled(self) -> Iterator[None]:
        """Change the size in the block: new users wait in `settled`."""
        self._settled = event = trio.Event()
        try:
            yield
        finally:
            self._settled = None
            event.set()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[None]:
        """Serve a client of an NBD server for the block."""
        await self.settled()
        self.clients += 1
        try:
            with self.held():
                yield
        finally:
            self.clients -= 1


def activity(exports: Iterable[Export]) -> str:
    """One line on what is offered and how often it was asked; what the kernel does in passthrough is not seen."""
    present = list(exports)
    counters = [counter for export in present for counter in export.source.counters.values()]
    requests, failed = (sum(getattr(counter, what) for counter in counters) for what in ("requests", "errors"))
    return f"sources: {len(present)}, requests: {requests}, failed: {failed}"
