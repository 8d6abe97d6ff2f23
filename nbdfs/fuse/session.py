"""A mount from beginning to end: both planes running, and an orderly stop.

Stopping goes: unmount (the kernel then writes back all it holds and closes every file), or if the mount is busy, write
back what open files hold, detach, and answer what is in flight; then the connection is cut.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import pyfuse3
import trio

from nbdfs import libc
from nbdfs.errors import UserError, reason
from nbdfs.fuse import mounting, wire
from nbdfs.fuse.control_link import ControlLink
from nbdfs.fuse.controlplane import ControlPlane
from nbdfs.fuse.dataplane import DataPlane
from nbdfs.fuse.kernel_limit import kernel_limit
from nbdfs.fuse.options import MountOptions
from nbdfs.fuse.passthrough import Passthrough
from nbdfs.fuse.tree import ROOT, File, Tree
from nbdfs.fuse.wire import InitFlag, InitReply, InitRequest, OpenFlag
from nbdfs.records import replace

log = logging.getLogger(__name__)

_READY_TIMEOUT = 20.0  # seconds from mount to the kernel's INIT
_STOP_TIMEOUT = 30.0  # seconds for everything after the block
_GRACE = 3.0  # seconds that requests in flight get once the mount is detached
# What the kernel is asked to do for a mount, where we may set it.  Data in memory is read ahead to save requests, what
# comes from elsewhere to have more in flight.  Without a share of its own a FUSE mount may have 1 % of the machine's
# dirty pages, and writers of mappings wait at every turn.
_READ_AHEAD = {True: 512, False: 4096}  # KiB; by whether all data is in memory
_DIRTY_SHARE = 50  # percent
_MAX_BACKGROUND = 256  # requests that the kernel has under way ahead of readers and for aio, of all files together
_HONEST_RANGE_SYNC = 45  # protocol minor from which sync_file_range(2) really waits for FUSE writes (Linux 6.16 on)


@dataclass
class Session:
    """A live mount.  A request has `options.timeout` seconds from when it last got on, and `limit` in all."""

    target: str
    tree: Tree
    options: MountOptions
    limit: float
    device: mounting.Device
    passthrough: Passthrough
    ready: trio.Event = field(default_factory=trio.Event)
    ended: trio.Event = field(default_factory=trio.Event)  # unmounted, by whomever
    stopped: Callable[[], Awaitable[int]] = trio.sleep_forever  # returns once the process is asked to stop
    minor: int = 0  # FUSE protocol of the kernel, 7.minor
    number: str = ""  # of the file system, MAJOR:MINOR

    def place(self) -> str:
        """Where it is mounted now: a directory above may have got another name."""
        found = mounting.places(self.number)
        return self.target if self.target in found or not found else found[0]

    async def invalidate(self, file: File, offset: int, length: int) -> None:
        """Make the kernel forget a range it has cached.  May wait for the kernel to write back its own changes."""
        message = wire.notification(
            wire.NOTIFY_INVALIDATE_INODE, wire.INVALIDATE_INODE.pack(file.inode, offset, length)
        )
        try:
            await trio.to_thread.run_sync(os.write, self.device.descriptor, message, abandon_on_cancel=True)
        except OSError as error:
            if error.errno != errno.ENOENT:  # the kernel does not know the inode: it has nothing cached
                raise

    def negotiate(self, offer: InitRequest) -> InitReply:
        """Answer the kernel's INIT."""
        self.minor = offer.minor
        wanted = (
            InitFlag.ASYNC_READ
            | InitFlag.BIG_WRITES
            | InitFlag.MAX_PAGES
            | InitFlag.DO_READDIRPLUS
            | InitFlag.PARALLEL_DIROPS
            | InitFlag.EXPLICIT_INVAL_DATA  # we say when cached data is stale; a new mtime alone does not
            # No file here has set-id bits or capabilities to lose at a write, so the kernel need not ask each time.
            | InitFlag.HANDLE_KILLPRIV_V2
            | InitFlag.INIT_EXT
            | InitFlag.DIRECT_IO_ALLOW_MMAP
        )
        if self.options.writeback:
            if not self.options.readonly:
                wanted |= InitFlag.WRITEBACK_CACHE
        else:
            # For io_uring and aio.  A plain read or write stays interruptible, since its handle has FOPEN_DIRECT_IO.
            wanted |= InitFlag.ASYNC_DIO
            if self.options.passthrough is not False:
                wanted |= InitFlag.PASSTHROUGH
        flags = offer.flags & wanted
        self.passthrough.enabled = bool(flags & InitFlag.PASSTHROUGH) and mounting.may_pass_through()
        if not self.passthrough.enabled:
            flags &= ~InitFlag.PASSTHROUGH
        self.ready.set()
        stack_depth = int(self.passthrough.enabled)
        return InitReply(min(offer.minor, 45), flags, wire.MAX_WRITE, _MAX_BACKGROUND, stack_depth)

    def open_flags(self, file: File, flags: int) -> tuple[int, int]:
        """FOPEN_* flags and backing id for a file that is opened with `flags` of open(2)."""
        backing = self.passthrough.open(file)
        if backing:
            return OpenFlag.PASSTHROUGH | OpenFlag.NOFLUSH, backing
        chosen = OpenFlag.KEEP_CACHE
        if flags & os.O_ACCMODE == os.O_RDONLY:
            chosen |= OpenFlag.NOFLUSH  # its close has nothing to make durable
        if flags & os.O_DIRECT and not self.options.writeback:
            chosen |= OpenFlag.DIRECT_IO | OpenFlag.PARALLEL_DIRECT_WRITES
        return chosen, 0


@asynccontextmanager
async def mounted(
    target: str, tree: Tree, options: MountOptions, attributes: Callable[[File], dict[str, str]]
) -> AsyncIterator[Session]:
    """Mount a tree on a prepared target and serve it for the block.  Raises UserError if it does not come up."""
    kind = tree[ROOT].kind
    if mounting.file_type(target) != kind:
        raise UserError(f"{target} cannot be covered: one source covers a file, NAME=SPEC a directory")
    limit = kernel_limit()
    if limit < options.timeout:
        log.warning("the kernel ends mounts with slow requests: they get %g s here, not %g s", limit, options.timeout)
        options = replace(options, timeout=limit)
    device = await trio.to_thread.run_sync(mounting.mount, target, kind, options)
    session = Session(target, tree, options, limit, device, Passthrough(device.descriptor))
    link = ControlLink(device.descriptor, session.negotiate)
    plane = DataPlane(device.descriptor, tree, link, timeout=options.timeout, limit=limit, poll=options.poll)
    try:
        async with trio.open_nursery() as nursery:
            control = ControlPlane(session, link.opened, nursery, attributes)
            pyfuse3.init(control, f"/dev/fd/{link.theirs}", set())
            nursery.start_soon(link.carry_replies)
            nursery.start_soon(pyfuse3.main)
            nursery.start_soon(_serve, session, plane)
            try:
                await _come_up(session)
                for file in tree.files():
                    nursery.start_soon(file.usage.count)
                yield session
            finally:
                with trio.move_on_after(_STOP_TIMEOUT, shield=True) as scope:
                    await _stop(session, plane)
                if scope.cancelled_caught:
                    log.error("%s was not unmounted within %g s", target, _STOP_TIMEOUT)
            nursery.cancel_scope.cancel()
    finally:
        pyfuse3.close(unmount=False)
        link.close()
        device.close()


async def _serve(session: Session, plane: DataPlane) -> None:
    await plane.run()
    session.ended.set()


async def _come_up(session: Session) -> None:
    with trio.move_on_after(_READY_TIMEOUT):
        await session.ready.wait()
    if not session.ready.is_set():
        raise UserError(f"the kernel did not answer the mount of {session.target} within {_READY_TIMEOUT:g} s")
    if session.options.passthrough and not session.passthrough.enabled:
        raise UserError("passthrough needs Linux 6.9 or newer and root: leave out -o passthrough")
    # Until the kernel has asked once, the root has no permissions at all, and an invalidation at the wrong moment
    # makes the kernel throw its first answer away.
    status = await trio.to_thread.run_sync(os.stat, session.target, abandon_on_cancel=True)
    session.number = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    if not session.passthrough.enabled:
        await trio.to_thread.run_sync(_tune, session)
    root = session.tree[ROOT]
    if session.options.writeback and not session.options.readonly and isinstance(root, File):
        # With a write-back cache the kernel trusts the size it knows, and for a root inode it knows 0.
        try:
            await trio.to_thread.run_sync(os.truncate, session.target, root.size)
        except OSError as error:
            raise UserError(
                f"-o writeback needs a file that you may write: {reason(error)}; leave it out, or mount with -o ro"
            ) from error


def _tune(session: Session) -> None:
    """Set the kernel's read-ahead and its limit of dirty pages for this mount."""
    mount = mounting.find_mount(session.target)
    if mount is None or not mounting.privileged():
        return
    immediate = all(file.immediate for file in session.tree.files())
    for name, value in (("read_ahead_kb", _READ_AHEAD[immediate]), ("max_ratio", _DIRTY_SHARE)):
        try:
            with open(f"/sys/class/bdi/{mount.device}/{name}", "w", encoding="ascii") as setting:
                setting.write(str(value))
        except OSError as error:
            log.info("the kernel's %s of %s stays as it is: %s", name, session.target, error.strerror)


async def _stop(session: Session, plane: DataPlane) -> None:
    if not session.ended.is_set():
        try:
            await trio.to_thread.run_sync(mounting.unmount, session.place(), abandon_on_cancel=True)
        except OSError as error:
            if error.errno == errno.EBUSY:
                await _detach(session)
                plane.finish()
            elif error.errno != errno.EINVAL:  # EINVAL: somebody else has unmounted it
                raise
    with trio.move_on_after(_GRACE):
        await session.ended.wait()


async def _detach(session: Session) -> None:
    place = session.place()
    log.info("%s is in use: detaching it", place)
    paths = {file: path for path, file in session.tree.paths()}
    for file in session.tree.files():
        if file.writers:
            try:
                if file in paths:
                    path = os.path.join(place, paths[file])
                    await trio.to_thread.run_sync(_write_back, path, abandon_on_cancel=True)
                else:
                    await session.invalidate(file, 0, file.size)
            except OSError as error:
                log.error("%s: %s", file.source.info.description, reason(error))
    detach = partial(mounting.unmount, place, lazy=True)
    await trio.to_thread.run_sync(detach, abandon_on_cancel=True)


def _write_back(path: str) -> None:
    descriptor = os.open(path.rstrip("/"), os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def write_back(session: Session, path: str, file: File, offset: int, length: int) -> None:
    """Have the kernel hand over what it holds dirty in a range of a mounted file, which had this path when added."""

    def run() -> None:
        descriptor = os.open(os.path.join(session.target, path).rstrip("/"), os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.fstat(descriptor).st_ino != file.inode:
                raise FileNotFoundError(errno.ENOENT, "another file has the name now", path)
            if session.minor >= _HONEST_RANGE_SYNC:
                libc.sync_file_range(descriptor, offset, length)
            else:
                os.fdatasync(descriptor)
        finally:
            os.close(descriptor)

    try:
        await trio.to_thread.run_sync(run, abandon_on_cancel=True)
    except (FileNotFoundError, PermissionError):
        # A removed file has no path, and one with other permissions does not let us in: forgetting writes back too.
        await session.invalidate(file, offset, length)
