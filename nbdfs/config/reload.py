"""Bring what a process offers in line with a configuration that has changed, and touch nothing else."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from nbdfs import supervise, systemd
from nbdfs.barrier import Barrier
from nbdfs.config.files import current
from nbdfs.control.server import Method
from nbdfs.errors import UserError
from nbdfs.live import Exports
from nbdfs.nursery import serving_nursery
from nbdfs.secret import far_away
from nbdfs.stack import plan

log = logging.getLogger(__name__)

Contents = Mapping[str, tuple[str, ...]]  # files by name, each with all that its source rests on


@dataclass
class Outcome:
    """What a reload has done: names of files, and what went wrong or has to wait, in words."""

    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        done = [f"{what} {', '.join(sorted(names))}" for what, names in
                (("added", self.added), ("removed", self.removed), ("replaced", self.replaced)) if names]  # fmt: skip
        return "; ".join([*(done or ["nothing to change"]), *self.problems])


class Reloader:
    """Applies changes of [KIND.NAME] to the exports of a process.

    `_applied` are the files that come from the configuration, each with all that its source rests on.  Files that were
    added by hand are not among them, and are left alone.
    """

    def __init__(self, name: str, exports: Exports) -> None:
        """The process offers what the configuration says now.  Raises UserError."""
        config = current()
        self._exports = exports
        self._command = config.command(name)
        self._applied = config.contents(self._command)
        self._turn = trio.Lock()

    async def reload(self) -> Outcome:
        """Read the configuration again and apply it.  Raises UserError, and changes nothing, if it is wrong."""
        async with self._turn:
            config = await trio.to_thread.run_sync(current)
            command = config.command(self._command.name)
            wanted = config.contents(command)
            outcome = Outcome()
            if command.frame != self._command.frame:
                outcome.problems.append("what is not about files takes effect at the next start")
            with far_away():
                await self._apply(wanted, outcome)
            return outcome

    async def _apply(self, wanted: Contents, outcome: Outcome) -> None:
        there = {export.name for export in self._exports}
        gone = [name for name in self._applied if name not in wanted]
        for name in gone:
            if name not in there:
                del self._applied[name]
        ours = self._applied.keys() & there
        changed = [name for name in wanted if self._applied.get(name) != wanted[name] or name in self._exports.failed]
        steps = (  # in this order, so that names become free before others need them
            (outcome.removed, [name for name in gone if name in there], lambda name: self._exports.remove(name)),
            (outcome.added, [name for name in changed if name not in ours],
             lambda name: self._exports.add(name, plan(wanted[name][0]))),
            (outcome.replaced, [name for name in changed if name in ours],
             lambda name: self._exports.replace(name, plan(wanted[name][0]))),
        )  # fmt: skip
        for done, names, change in steps:
            async with trio.open_nursery() as nursery:
                for name in names:
                    nursery.start_soon(self._try, name, wanted, change, done, outcome.problems)

    async def _try(
        self, name: str, wanted: Contents, change: Callable[[str], Awaitable[object]], done: list[str],
        problems: list[str],
    ) -> None:  # fmt: skip
        """Change one file, and note it at once: whoever asked may not wait for the others."""
        try:
            await change(name)
        except UserError as error:
            problems.append(f"{name or 'the source'}: {error}")
            return
        done.append(name)
        if name in wanted:
            self._applied[name] = wanted[name]
        else:
            del self._applied[name]

    async def on_call(self) -> Mapping[str, object]:
        """The method of the control socket."""
        outcome = await self.reload()
        log.info("reload: %s", outcome)
        return {"outcome": str(outcome), "problems": outcome.problems}

    async def on_signals(self, signals: AsyncIterator[int]) -> None:
        async for _ in signals:
            # What is in use goes on, whatever is found.
            with systemd.reloading(), Barrier("reload", _failed):
                try:
                    outcome = await self.reload()
                except UserError as error:
                    log.error("reload: nothing is changed: %s", error)
                else:
                    log.log(logging.ERROR if outcome.problems else logging.INFO, "reload: %s", outcome)


def _failed(number: int) -> None:
    log.error("reload: nothing more is changed: %s", os.strerror(number))


@asynccontextmanager
async def reloading(name: str, exports: Exports) -> AsyncIterator[Mapping[str, Method]]:
    """For the block, apply changes of the mount or server `name` at SIGHUP; gives the control method that does so too.

    Nothing of the kind if the name is empty, since then the process does not come from a configuration.
    """
    if not name:
        yield {}
        return
    reloader = Reloader(name, exports)
    with supervise.reload_requests() as signals:
        async with serving_nursery() as nursery:
            nursery.start_soon(reloader.on_signals, signals)
            yield {"reload": Method(reloader.on_call)}
