"""The sources of a process: each is opened, kept and closed by a task of its own.

One that is dead or slow holds up neither the opening nor the closing of another, and one that fails by itself takes
nothing else with it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio

from nbdfs.checked import Checked
from nbdfs.errors import UsageError, UserError, reason
from nbdfs.export import Export
from nbdfs.records import Record
from nbdfs.registry import OpenContext
from nbdfs.source import CLOSE_TIMEOUT, Source
from nbdfs.stack import Plan, behind_door, open_stack

log = logging.getLogger(__name__)

_AT_ONCE = 64  # sources being opened
_FLUSH_TIMEOUT = 60.0  # seconds for the last flush of a source, from when it last got on
_FLUSH_LOOKS = 1.0  # seconds from one look at that to the next


class Manner(Record):
    """How sources are opened.

    `readonly`: without write access.  `allow_empty`: devices of 0 bytes too.  `metered`: counting and timing what their
    layers do.
    """

    readonly: bool = False
    allow_empty: bool = False
    metered: bool = False


class OpenSources:
    """Opens sources in tasks of `nursery`.  `failed` is awaited for each export whose source ended by itself."""

    def __init__(self, nursery: trio.Nursery, manner: Manner, failed: Callable[[Export], Awaitable[None]]) -> None:
        self._nursery = nursery
        self._manner = manner
        self._failed = failed
        self._turns = trio.CapacityLimiter(_AT_ONCE)
        self._flush_failures: list[str] = []
        self.exports: set[Export] = set()  # of whatever is open

    async def open(self, name: str, planned: Plan) -> Export:
        """Open a source.  It stays open until nobody holds its export; the caller does at first.  Raises UserError."""
        async with self._turns:
            exports: list[Export] = await self._nursery.start(self._keep, self._stack(name, planned), name=str(planned))
        (export,) = exports
        return export

    async def open_all(self, plans: Mapping[str, Plan]) -> list[Export]:
        """Open many at once; they come in the order of the plans.  Raises the first UserError."""
        opened: dict[str, Export] = {}
        failures: list[UserError] = []

        async def open_one(name: str, planned: Plan) -> None:
            try:
                opened[name] = await self.open(name, planned)
            except UserError as error:
                failures.append(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for name, planned in plans.items():
                nursery.start_soon(open_one, name, planned)
        if failures:
            raise failures[0]
        return [opened[name] for name in plans]

    async def open_tree(self, planned: Plan) -> list[Export]:
        """Open a source that has several files, each an export."""
        exports: list[Export] = await self._nursery.start(self._keep, self._tree(planned), name=str(planned))
        return exports

    async def close(self) -> None:
        """Flush and close everything, whoever holds it."""
        everything = list(self.exports)
        for export in everything:
            export.unused.set()
        for export in everything:
            await export.closed.wait()

    def check_flushed(self) -> None:
        """Raise UserError if the last flush of a source failed, or if it ended without one."""
        if self._flush_failures:
            raise UserError(f"the last flush failed, data may be lost: {'; '.join(self._flush_failures)}")

    async def _keep(
        self, opening: AbstractAsyncContextManager[list[Export]], *, task_status: trio.TaskStatus[list[Export]]
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
                    self.exports.update(exports)
                    task_status.started(exports)
                    scope.shield = True
                    for export in exports:
                        await export.unused.wait()
                    for export in exports:
                        await self._flush(export)
                    scope.deadline = trio.current_time() + _FLUSH_TIMEOUT + CLOSE_TIMEOUT
            if scope.cancelled_caught:
                log.error("%s: was not closed in time", exports[0].description)
        except Exception:
            if not self.exports.intersection(exports):
                raise  # it was not open yet: whoever wanted it is told
            log.exception("%s failed", exports[0].description)
            for export in exports:
                if export.source.writable:
                    self._flush_failures.append(f"{export.description}: it failed by itself, without one")
                await self._failed(export)
        finally:
            self.exports.difference_update(exports)
            for export in exports:
                export.closed.set()

    async def _flush(self, export: Export) -> None:
        if not export.source.writable:
            return
        failure = f"not done within {_FLUSH_TIMEOUT:g} s"
        with trio.move_on_after(_FLUSH_TIMEOUT) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_prolong, scope, export)
                try:
                    await export.source.flush()
                    failure = ""
                except OSError as error:
                    failure = reason(error)
                nursery.cancel_scope.cancel()
        if not failure:
            return
        log.error("%s: the last flush failed, data may be lost: %s", export.description, failure)
        self._flush_failures.append(f"{export.description}: {failure}")

    @asynccontextmanager
    async def _stack(self, name: str, planned: Plan) -> AsyncIterator[list[Export]]:
        manner = self._manner
        async with open_stack(planned, readonly=manner.readonly, metered=manner.metered) as source:
            if not source.info.size and not manner.allow_empty:
                raise UserError(f"{planned} is empty: a device of 0 bytes cannot be used")
            if source.info.missing:
                log.warning("%s: %s", planned, source.info.missing)
            yield [Export(name, source, str(planned))]

    @asynccontextmanager
    async def _tree(self, planned: Plan) -> AsyncIterator[list[Export]]:
        open_tree = planned.source.open_tree
        if open_tree is None or planned.layers:
            raise UsageError(f"{planned} has no files of its own: write NAME=SPEC for a file in a directory")
        readonly = self._manner.readonly
        context = OpenContext(readonly, lambda text: open_stack(text, readonly=readonly))
        async with open_tree(planned.argument, planned.options, context) as sources:
            yield [
                Export(name, self._behind_door(planned, source), f"{planned}: {name}")
                for name, source in sources.items()
            ]

    def _behind_door(self, planned: Plan, source: Source) -> Checked:
        manner = self._manner
        return behind_door(planned.source.name, source, readonly=manner.readonly, metered=manner.metered)


async def _prolong(scope: trio.CancelScope, export: Export) -> None:
    """Give a flush time for as long as it gets on."""
    before = export.source.written_back()
    while True:
        await trio.sleep(_FLUSH_LOOKS)
        if (now := export.source.written_back()) > before:
            before = now
            scope.deadline = trio.current_time() + _FLUSH_TIMEOUT
