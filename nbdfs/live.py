"""Exports that come and go while the process runs.

A removed export takes no new users; its source is flushed and closed when the last one has let go (see `nbdfs.export`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Protocol

import trio

from nbdfs import supervise
from nbdfs.errors import UserError, reason
from nbdfs.export import Export
from nbdfs.names import check_free, check_name
from nbdfs.nursery import serving_nursery
from nbdfs.open_sources import Manner, OpenSources
from nbdfs.source import MAX_SIZE
from nbdfs.stack import Plan

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

    def __init__(self, nursery: trio.Nursery, manner: Manner) -> None:
        self._sources = OpenSources(nursery, manner, self._failed)
        self._exports: dict[str, Export] = {}
        self._coming: set[str] = set()
        self.failed: set[str] = set()  # names that are free because their source ended by itself
        self._front_ends: list[FrontEnd] = []

    def __iter__(self) -> Iterator[Export]:
        """Those that are offered."""
        return iter(list(self._exports.values()))

    def __getitem__(self, name: str) -> Export:
        try:
            return self._exports[name]
        except KeyError:
            raise UserError(f"there is no '{name}' here" if name else "files here have names: give one") from None

    @property
    def leaving(self) -> list[Export]:
        """Those that were removed and are in use still."""
        return sorted((export for export in self._sources.exports if export.removed), key=lambda export: export.name)

    async def open_all(self, plans: Mapping[str, Plan]) -> None:
        """Open what a command line names, all at once.  Raises the first UserError, with nothing left open."""
        self._exports |= {export.name: export for export in await self._sources.open_all(plans)}

    async def open_tree(self, planned: Plan) -> None:
        """Open a source that has several files, each an export."""
        self._exports |= {export.name: export for export in await self._sources.open_tree(planned)}

    async def add(self, name: str, planned: Plan) -> Export:
        """Open a source and offer it.  Raises UserError; nothing has changed then."""
        self._check(name)
        with self._reserved(name):
            export = await self._sources.open(name, planned)
            self._exports[name] = export
            self.failed.discard(name)
            with trio.CancelScope(shield=True):  # by all or none
                for front_end in self._front_ends:
                    await front_end.show(export)
        return export

    async def replace(self, name: str, planned: Plan) -> Export:
        """Offer another source under a name; users of the one that was there keep it.  Raises UserError.

        The new one is opened first.  If it cannot be, the old one stays.
        """
        old = self[name]
        self._check(name)
        export = await self._sources.open(name, planned)
        if old.removed:
            export.release()
            raise UserError(f"'{name}' was removed or replaced meanwhile")
        self._exports[name] = export
        old.removed = True
        with trio.CancelScope(shield=True):
            for front_end in self._front_ends:
                await front_end.show(export, old)
        old.release()
        return export

    async def resize(self, name: str, size: int, *, shrink: bool = False) -> Export:
        """Change the size of an export, in bytes; `shrink` allows to cut off what is there.  Raises UserError."""
        export = self[name]
        if not 0 <= size <= MAX_SIZE:
            raise UserError(f"cannot change the size of '{export.called}': {size} is not from 0 to {MAX_SIZE}")
        source = export.source
        await export.settled()
        if export.removed:
            raise UserError(f"'{export.called}' was removed meanwhile")
        if size < source.info.size and not shrink:
            raise UserError(
                f"'{export.called}' has {source.info.size} bytes: what is beyond {size} would be lost (--shrink)"
            )
        backing = source.backing()
        if size < source.info.size or (backing and backing.fixed_size):
            self._check_unused(export)
        with export.held(), export.unsettled():
            try:
                await source.resize(size)
            except OSError as error:
                raise UserError(f"cannot change the size of '{export.called}': {reason(error)}") from error
            for front_end in self._front_ends:
                await front_end.resized(export)
        return export

    def _check_unused(self, export: Export) -> None:
        handles = sum(front_end.handles(export) for front_end in self._front_ends)
        if handles or export.clients:
            raise UserError(
                f"'{export.called}' is in use ({handles} open, {export.clients} NBD clients): its size can be changed "
                "only while nobody has it open"
            )

    async def remove(self, name: str) -> Export:
        """Offer an export no more.  Its `closed` tells when its last user is gone.  Raises UserError."""
        export = self[name]
        self._check(name)
        await self._take_away(export)
        return export

    async def _failed(self, export: Export) -> None:
        """A source has ended by itself: others go on without it, but not what had nothing else to offer."""
        if not export.name:
            raise UserError(f"{export.description} failed, and there is nothing else here: the end")
        if self._exports.get(export.name) is export:
            self.failed.add(export.name)
            await self._take_away(export)

    async def _take_away(self, export: Export) -> None:
        del self._exports[export.name]
        export.removed = True
        with trio.CancelScope(shield=True):
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
        await self._sources.close()

    def check_flushed(self) -> None:
        """Raise UserError if the last flush of a source failed."""
        self._sources.check_flushed()

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


@asynccontextmanager
async def opened(*, readonly: bool = False, allow_empty: bool = False, metered: bool = False) -> AsyncIterator[Exports]:
    """Exports for the block; at its end, and however it ends, all of them are flushed and closed.

    The arguments are those of `Manner`.  Raises UserError if a flush failed.
    """
    supervise.allow_many_files()
    async with serving_nursery() as nursery:
        exports = Exports(nursery, Manner(readonly, allow_empty, metered))
        try:
            yield exports
        finally:
            with trio.CancelScope(shield=True):
                await exports.close()
        exports.check_flushed()
