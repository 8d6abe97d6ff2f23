"""What `mount`, `run` and the peers' mounting commands share: from specs and options to a live mount."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from nbdfs import supervise
from nbdfs.checked import Checked
from nbdfs.cli._named import flush, named_plans
from nbdfs.errors import UsageError, UserError
from nbdfs.export import Export
from nbdfs.fuse import session as fuse
from nbdfs.fuse.options import MountOptions
from nbdfs.fuse.session import Session
from nbdfs.fuse.target import prepared
from nbdfs.fuse.tree import File, Tree
from nbdfs.registry import OpenContext
from nbdfs.stack import Plan, open_stack

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """What is to be mounted where: plans by name, under the empty name the one that covers a file."""

    plans: Mapping[str, Plan]
    target: str
    options: MountOptions
    allow_empty: bool = False  # whether a device of 0 bytes may be shown


def order(specs: Sequence[str], target: str, options: MountOptions) -> Order:
    """Read the specs of a command line: one SPEC, or any number of NAME=SPEC.  Raises UsageError."""
    return Order(named_plans(specs), target, options)


@asynccontextmanager
async def live(what: Order) -> AsyncIterator[tuple[Session, Mapping[str, Export]]]:
    """Open the sources, mount, and serve for the block; then all is flushed.

    Raises UserError or UsageError if it does not come up, UserError if a flush at the end fails.
    """
    options = what.options
    async with AsyncExitStack() as stack:
        target = stack.enter_context(prepared(what.target))
        exports = await _open_all(stack, what, target)
        uid = os.geteuid() if options.uid is None else options.uid
        gid = os.getegid() if options.gid is None else options.gid
        if "" in exports:
            tree = Tree.single(exports[""], uid, gid, options.mode)
        else:
            tree = Tree.directory(exports, uid, gid, options.mode)
        fsname = options.fsname or ",".join(str(planned) for planned in what.plans.values())
        mount = fuse.mounted(target, tree, replace(options, fsname=fsname), _attributes)
        # From before the mount exists to after it is gone a signal asks for an orderly end and does not kill.
        with supervise.stop_requests() as stopped:
            async with mount as session:
                session.stopped = stopped
                for path, file in tree.paths():
                    _keep_coherent(session, path, file)
                yield session, exports
            await flush(exports)


async def _open_all(stack: AsyncExitStack, what: Order, target: str) -> Mapping[str, Export]:
    readonly = what.options.readonly
    if "" in what.plans and os.path.isdir(target):
        return await _open_tree(stack, what.plans[""], target, readonly)
    exports = {}
    for name, planned in what.plans.items():
        source = await stack.enter_async_context(open_stack(planned, readonly=readonly))
        if not source.info.size and not what.allow_empty:
            raise UserError(f"{planned} is empty: a device of 0 bytes cannot be used")
        exports[name] = Export(name, source, str(planned))
    return exports


async def _open_tree(stack: AsyncExitStack, planned: Plan, target: str, readonly: bool) -> Mapping[str, Export]:
    """A source that has several files, as the files of a directory."""
    open_tree = planned.source.open_tree
    if open_tree is None or planned.layers:
        raise UsageError(f"{target} is a directory: one source covers a file; write NAME=SPEC for a file in it")
    context = OpenContext(readonly, lambda text: open_stack(text, readonly=readonly))
    sources = await stack.enter_async_context(open_tree(planned.argument, planned.options, context))
    return {
        name: Export(name, Checked(source, readonly=readonly), f"{planned}: {name}") for name, source in sources.items()
    }


def _keep_coherent(session: Session, path: str, file: File) -> None:
    """Let the other front end and the kernel's cache of this file see each other's changes.

    In passthrough there is one memory for all, and nothing to do.
    """

    async def before_access(offset: int, length: int) -> None:
        if file.writers and file.backing_id <= 0:
            await fuse.write_back(session, path, offset, length)

    async def after_write(offset: int, length: int) -> None:
        file.touch()
        if file.handles or not session.passthrough.enabled:
            await session.invalidate(file, offset, length)

    file.export.before_access = before_access
    file.export.after_write = after_write


def _attributes(file: File) -> dict[str, str]:
    """The extended attributes user.nbdfs.* of a file."""
    reads, writes = (file.source.counters[name] for name in ("read", "write"))
    return {
        "spec": file.export.description,
        "pid": str(os.getpid()),
        "reads": str(reads.requests),
        "read-bytes": str(reads.bytes),
        "writes": str(writes.requests),
        "write-bytes": str(writes.bytes),
    }
