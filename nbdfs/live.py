"""Exports that come and go while the process runs.

Each source is opened, kept and closed by a task of its own, and many at once: one that is dead or slow holds up neither
the opening nor the closing of another.  A removed export takes no new users; its source is flushed and closed when the
last one has let go (see `nbdfs.export`).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Protocol

import trio

from nbdfs import supervise
from nbdfs.checked import Checked
from nbdfs.errors import UsageError, UserError
from nbdfs.export import Export
from nbdfs.names import check_free, check_name
from nbdfs.nursery import serving_nursery
from nbdfs.registry import OpenContext
from nbdfs.source import CLOSE_TIMEOUT, Source
from nbdfs.stack import Plan, behind_door, open_stack

log = logging.getLogger(__name__)

_AT_ONCE = 64  # sources being opened
_FLUSH_TIMEOUT = 60.0  # seconds for the last flush of a source


Facts = Mapping[str, object]  # what JSON can hold, by name


class FrontEnd(Protocol):
    """What offers exports to users: a mount, an NBD server."""

    def check(self, name: str) -> None:
        """Raise UserError if exports cannot come and go under this name here."""

    async def show(self, export: Export, instead: Export | None = None) -> None:
        """Offer an export, in the place of another one if that is given."""

    async def hide(self, export: Export) -> None:
        """Take no new users for an export; those it has go on."""

    def handles(self, export: Export) -> int:
        """How many users have it open here, clients of servers left out."""

    async def resized(self, export: Export) -> None:
        """The size of an export has changed."""

    def facts(self) -> Mapping[Export, Facts]:
        """What is known here of the exports and their users, for `nbdfs list`."""


class Exports:
    """The exports of a process, by name in the order in which they came.  `opened` makes one."""

    def __init__(self, nursery: trio.Nursery, *, readonly: bool, allow_empty: bool, metered: bool) -> None:
        self._nursery = nursery
        self._readonly = readonly
        self._allow_empty = allow_empty
        self._metered = metered
        self._exports: dict[str, Export] = {}
        self._alive: set[Export] = set()  # whatever has a task
        self._coming: set[str] = set()
        self._front_ends: list[FrontEnd] = []
        self._turns = trio.CapacityLimiter(_AT_ONCE)
        self._failures: list[str] = []

    def __iter__(self) -> Iterator[Export]:
        """Those that are offered."""
        return iter(list(self._exports.values()))

    def __getitem__(self, name: str) -> Export:
        try:
            return self._exports[name]
        except KeyError:
            raise UserError(f"there is no '{name}' here") from None

    @property
    def leaving(self) -> list[Export]:
        """Those that were removed and are in use still."""
        return sorted((export for export in self._alive if export.removed), key=lambda export: export.name)

    async def open_all(self, plans: Mapping[str, Plan]) -> None:
        """Open what a command line names, all at once.  Raises the first UserError, with nothing left open."""
        opened: dict[str, Export] = {}
        failures: list[UserError] = []

        async def open_one(name: str, planned: Plan) -> None:
            try:
                opened[name] = await self._open(name, planned)
            except UserError as error:
                failures.append(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for name, planned in plans.items():
                nursery.start_soon(open_one, name, planned)
        if failures:
            raise failures[0]
        self._exports |= {name: opened[name] for name in plans}  # in the order of the command line

    async def open_tree(self, planned: Plan) -> None:
        """Open a source that has several files, each an export."""
        for export in await self._nursery.start(self._keep, self._tree(planned), name=str(planned)):
            self._exports[export.name] = export

    async def add(self, name: str, planned: Plan) -> Export:
        """Open a source and offer it.  Raises UserError; nothing has changed then."""
        self._check(name)
        with self._reserved(name):
            export = await self._open(name, planned)
            self._exports[name] = export
            for front_end in self._front_ends:
                await front_end.show(export)
        return export

    async def replace(self, name: str, planned: Plan) -> Export:
        """Offer another source under a name; users of the one that was there keep it.  Raises UserError.

        The new one is opened first.  If it cannot be, the old one stays.
        """
        old = self[name]
        self._check(name)
        export = await self._open(name, planned)
        if old.removed:
            export.release()
            raise UserError(f"'{name}' was removed meanwhile")
        self._exports[name] = export
        old.removed = True
        for front_end in self._front_ends:
            await front_end.show(export, old)
        old.release()
        return export

    async def resize(self, name: str, size: int, *, shrink: bool = False) -> Export:
        """Change the size of an export, in bytes; `shrink` allows to cut off what is there.  Raises UserError."""
        export = self[name]
        source = export.source
        if size < source.info.size and not shrink:
            raise UserError(f"'{name}' has {source.info.size} bytes: what is beyond {size} would be lost (--shrink)")
        await export.settled()
        backing = source.backing()
        if size < source.info.size or (backing and backing.fixed_size):
            self._check_unused(export)
        with export.unsettled():
            try:
                await source.resize(size)
            except OSError as error:
                raise UserError(f"cannot change the size of '{name}': {error}") from error
            for front_end in self._front_ends:
                await front_end.resized(export)
        return export

    def _check_unused(self, export: Export) -> None:
        handles = sum(front_end.handles(export) for front_end in self._front_ends)
        if handles or export.clients:
            raise UserError(
                f"'{export.name}' is in use ({handles} open, {export.clients} NBD clients): its size can be changed "
                "only while nobody has it open"
            )

    async def remove(self, name: str) -> Export:
        """Offer an export no more.  Its `closed` tells when its last user is gone.  Raises UserError."""
        export = self[name]
        self._check(name)
        await self._take_away(export)
        return export

    async def _take_away(self, export: Export) -> None:
        del self._exports[export.name]
        export.removed = True
        for front_end in self._front_ends:
            await front_end.hide(export)
        export.release()

    @asynccontextmanager
    async def offered_by(self, front_end: FrontEnd) -> AsyncIterator[None]:
        """Have a front end offer all exports, those to come too, while the block runs."""
        for export in self:
            await front_end.show(export)
        self._front_ends.append(front_end)
        try:
            yield
        finally:
            self._front_ends.remove(front_end)

    def facts(self) -> dict[Export, Facts]:
        """What the front ends know of the exports, also of those that were removed and are in use still."""
        found: dict[Export, Facts] = {export: {} for export in [*self, *self.leaving]}
        for front_end in self._front_ends:
            for export, facts in front_end.facts().items():
                found[export] = {**found.get(export, {}), **facts}
        return found

    async def close(self) -> None:
        """Flush and close everything, whoever uses it."""
        everything = list(self._alive)
        for export in everything:
            export.unused.set()
        for export in everything:
            await export.closed.wait()

    def check_flushed(self) -> None:
        """Raise UserError if the last flush of a source failed."""
        if self._failures:
            raise UserError(f"the last flush failed, data may be lost: {'; '.join(self._failures)}")

    def _check(self, name: str) -> None:
        if name:
            check_name(name)
        for front_end in self._front_ends:
            front_end.check(name)

    @contextmanager
    def _reserved(self, name: str) -> Iterator[None]:
        check_free(name, self._exports.keys() | self._coming)
        self._coming.add(name)
        try:
            yield
        finally:
            self._coming.discard(name)

    # The task of a source.

    async def _open(self, name: str, planned: Plan) -> Export:
        async with self._turns:
            (export,) = await self._nursery.start(self._keep, self._stack(name, planned), name=str(planned))
        assert isinstance(export, Export)
        return export

    async def _keep(
        self,
        opening: AbstractAsyncContextManager[list[Export]],
        *,
        task_status: trio.TaskStatus[list[Export]],
    ) -> None:
        """Open a source, keep it until nobody holds its exports, flush and close it.

        Once open it is closed in order even if everything around it is cancelled; its time for that is bounded.
        """
        exports: list[Export] = []
        try:
            with trio.CancelScope() as scope:
                async with opening as exports:
                    await trio.lowlevel.checkpoint_if_cancelled()  # from here on `started` is sure to be heard
                    for export in exports:
                        export.hold()
                    self._alive.update(exports)
                    task_status.started(exports)
                    scope.shield = True
                    for export in exports:
                        await export.unused.wait()
                    scope.deadline = trio.current_time() + _FLUSH_TIMEOUT + CLOSE_TIMEOUT
                    for export in exports:
                        await self._flush(export)
            if scope.cancelled_caught:
                log.error("%s: was not closed in time", exports[0].description)
        except Exception:
            if not self._alive.intersection(exports):
                raise
            log.exception("%s failed", exports[0].description)
            for export in exports:
                if self._exports.get(export.name) is export:
                    await self._take_away(export)
        finally:
            for export in exports:
                self._alive.discard(export)
                export.closed.set()

    async def _flush(self, export: Export) -> None:
        if not export.source.writable:
            return
        failure = f"not done within {_FLUSH_TIMEOUT:g} s"
        with trio.move_on_after(_FLUSH_TIMEOUT):
            try:
                await export.source.flush()
            except OSError as error:
                failure = str(error)
            else:
                return
        log.error("%s: the last flush failed, data may be lost: %s", export.description, failure)
        self._failures.append(f"{export.description}: {failure}")

    @asynccontextmanager
    async def _stack(self, name: str, planned: Plan) -> AsyncIterator[list[Export]]:
        async with open_stack(planned, readonly=self._readonly, metered=self._metered) as source:
            if not source.info.size and not self._allow_empty:
                raise UserError(f"{planned} is empty: a device of 0 bytes cannot be used")
            yield [Export(name, source, str(planned))]

    @asynccontextmanager
    async def _tree(self, planned: Plan) -> AsyncIterator[list[Export]]:
        open_tree = planned.source.open_tree
        if open_tree is None or planned.layers:
            raise UsageError(f"{planned} has no files of its own: write NAME=SPEC for a file in a directory")
        context = OpenContext(self._readonly, lambda text: open_stack(text, readonly=self._readonly))
        async with open_tree(planned.argument, planned.options, context) as sources:
            yield [
                Export(name, self._behind_door(planned, source), f"{planned}: {name}")
                for name, source in sources.items()
            ]

    def _behind_door(self, planned: Plan, source: Source) -> Checked:
        return behind_door(planned.source.name, source, readonly=self._readonly, metered=self._metered)


@asynccontextmanager
async def opened(*, readonly: bool = False, allow_empty: bool = False, metered: bool = False) -> AsyncIterator[Exports]:
    """Exports for the block; at its end, and however it ends, all of them are flushed and closed.

    `readonly` opens every source without write access; `allow_empty` takes devices of 0 bytes;
    `metered` counts and times what their layers do.
    Raises UserError if a flush failed.
    """
    supervise.allow_many_files()
    async with serving_nursery() as nursery:
        exports = Exports(nursery, readonly=readonly, allow_empty=allow_empty, metered=metered)
        try:
            yield exports
        finally:
            with trio.CancelScope(shield=True):
                await exports.close()
        exports.check_flushed()
