"""A mount with its exports: what `mount`, `run` and the peers' mounting commands bring up."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import trio

from nbdfs import live, supervise
from nbdfs.attributes import attributes
from nbdfs.errors import UsageError, UserError, reason
from nbdfs.export import Export
from nbdfs.fuse import mounting, notices
from nbdfs.fuse import session as fuse
from nbdfs.fuse.options import MountOptions
from nbdfs.fuse.session import Session
from nbdfs.fuse.target import prepared
from nbdfs.fuse.tree import ROOT, Entry, File, Tree
from nbdfs.live import Exports, Facts
from nbdfs.names import named_plans
from nbdfs.records import Record, replace
from nbdfs.stack import Plan

_LONGEST_FSNAME = 200  # bytes: what the mount table shows


class Order(Record):
    """What is to be mounted where: plans by name, under the empty name the one that covers a file."""

    plans: Mapping[str, Plan]
    target: str
    options: MountOptions
    allow_empty: bool = False  # whether a device of 0 bytes may be shown
    metered: bool = False  # whether layers count and time what they do

    @property
    def fsname(self) -> str:
        """What the mount table calls the source."""
        specs = ",".join(str(planned) for planned in self.plans.values())
        return self.options.fsname or (specs if len(specs) <= _LONGEST_FSNAME else "nbdfs")


class Mount(Record):
    """A live mount.  `exports` is where exports are added, removed and replaced."""

    session: Session
    exports: Exports

    async def over(self) -> None:
        """Return once the process is asked to stop, or the mount was ended from outside."""
        async with trio.open_nursery() as nursery:

            async def stopped() -> None:
                await self.session.stopped()
                nursery.cancel_scope.cancel()

            nursery.start_soon(stopped)
            await self.session.ended.wait()
            nursery.cancel_scope.cancel()


class Files:
    """The front end that offers exports as files of a tree, which is mounted once `session` is set."""

    def __init__(self, tree: Tree, target: str) -> None:
        self._tree = tree
        self._target = target
        self._session: Session | None = None

    def mounted(self, session: Session) -> None:
        """From now on the kernel is told of what comes and goes."""
        self._session = session
        for path, file in self._tree.paths():
            _keep_coherent(session, path, file)

    def check(self, name: str) -> None:
        if isinstance(self._tree[ROOT], File):
            raise UserError(f"{self._target} covers a file with one source: only what is in a directory comes and goes")
        path = os.path.join(self._target, name)
        try:
            covered = mounting.find_mount(path)
        except OSError as error:
            raise UserError(f"cannot see whether {path} is a mount point: {reason(error)}") from error
        if covered:
            raise UserError(f"{path} is a mount point: unmount what is on it first")

    async def show(self, export: Export, instead: Export | None = None) -> None:
        if instead:
            file, gone = self._tree.replace(export.name, export)
            entries = [gone]
        else:
            file, entries = self._tree.add(export.name, export), []
        if self._session:
            _keep_coherent(self._session, export.name, file)
            await file.usage.count()
        await self._tell(entries)

    async def hide(self, export: Export) -> None:
        await self._tell(self._tree.remove(export.name))

    async def _tell(self, gone: list[Entry]) -> None:
        if self._session:
            for entry in gone:
                await notices.deleted(self._session, entry)
            await notices.changed(self._session, ROOT)

    def handles(self, export: Export) -> int:
        return sum(file.handles for file in self._tree.files() if file.export is export)

    async def resized(self, export: Export) -> None:
        for path, file in self._tree.paths():
            if file.export is export:
                file.resized()
                if self._session:
                    await notices.resized(self._session, path, file)

    def facts(self) -> Mapping[Export, Facts]:
        return {
            file.export: {
                "handles": file.handles,
                "passthrough": file.backing_id > 0,
                "allocated": file.usage.allocated(),
            }
            for file in self._tree.files()
        }


def order(specs: Sequence[str], target: str, options: MountOptions) -> Order:
    """Read the specs of a command line: one SPEC, or any number of NAME=SPEC.  Raises UsageError."""
    return Order(named_plans(specs), target, options)


@asynccontextmanager
async def mounted(what: Order) -> AsyncIterator[Mount]:
    """Open the sources, mount, and serve for the block; then all is flushed.

    Raises UserError or UsageError if it does not come up, UserError if a flush at the end fails.
    """
    options = replace(what.options, fsname=what.fsname)
    with prepared(what.target, options.subtype) as target:
        # From before the mount exists to after it is gone a signal asks for an orderly end and does not kill.
        async with live.opened(
            readonly=options.readonly, allow_empty=what.allow_empty, metered=what.metered
        ) as exports:
            await _open(exports, what, target)
            tree = _tree(options, covers_file=[export.name for export in exports] == [""])
            files = Files(tree, target)
            async with exports.offered_by(files):
                mount = fuse.mounted(target, tree, options, lambda file: attributes(file.export))
                with supervise.stop_requests() as stopped:
                    async with mount as session:
                        session.stopped = stopped
                        files.mounted(session)
                        yield Mount(session, exports)
                    await exports.close()


async def _open(exports: Exports, what: Order, target: str) -> None:
    alone = what.plans.get("")
    if alone and os.path.isdir(target):
        if alone.source.open_tree is None or alone.layers:
            raise UsageError(f"{target} is a directory: one source covers a file; write NAME=SPEC for a file in it")
        await exports.open_tree(alone)
    elif not alone and not os.path.isdir(target):
        raise UserError(f"{target} is no directory, where files with names are: make one first (mkdir {target})")
    else:
        await exports.open_all(what.plans)


def _tree(options: MountOptions, *, covers_file: bool) -> Tree:
    uid = os.geteuid() if options.uid is None else options.uid
    gid = os.getegid() if options.gid is None else options.gid
    return Tree(uid, gid, options.mode, covers_file=covers_file)


def _keep_coherent(session: Session, path: str, file: File) -> None:
    """Let the other front end and the kernel's cache of this file see each other's changes.

    In passthrough there is one memory for all, and nothing to do.
    """

    async def before_access(offset: int, length: int) -> None:
        if file.writers and file.backing_id <= 0:
            await fuse.write_back(session, path, file, offset, length)

    async def after_write(offset: int, length: int) -> None:
        file.touch()
        if file.handles or not session.passthrough.enabled:
            await session.invalidate(file, offset, length)

    file.export.before_access = before_access
    file.export.after_write = after_write
