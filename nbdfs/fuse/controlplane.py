"""The control plane: lookup, attributes, open, directories, extended attributes, through pyfuse3.

pyfuse3 ends its main loop on any exception but FUSEError, so every handler goes through `_guarded`.
Reads and writes never come here; the data plane answers them.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pyfuse3
import trio
from pyfuse3 import FUSEError

from nbdfs.barrier import Barrier
from nbdfs.errors import SourceError
from nbdfs.fuse import notices
from nbdfs.fuse.operations import zero
from nbdfs.fuse.tree import Directory, File, Node

if TYPE_CHECKING:
    from nbdfs.fuse.session import Session

log = logging.getLogger(__name__)

_ATTRIBUTE_TIMEOUT = 1.0  # seconds the kernel may keep attributes; our own changes reach it at once
_ENTRY_TIMEOUT = 300.0
_ACCESS_MODES = (os.O_WRONLY, os.O_RDWR)

Handler = TypeVar("Handler", bound=Callable[..., Awaitable[Any]])


def _fail(number: int) -> None:
    raise FUSEError(number)


def _guarded(handler: Handler) -> Handler:
    @functools.wraps(handler)
    async def guarded(*arguments: Any) -> Any:
        with Barrier(handler.__name__, _fail):
            return await handler(*arguments)

    return guarded  # type: ignore[return-value]


class ControlPlane(pyfuse3.Operations):
    """pyfuse3's view of a mount.  `opened` takes what the reply to each OPEN shall say (see ControlLink)."""

    supports_dot_lookup = True
    enable_writeback_cache = False

    def __init__(
        self,
        session: Session,
        opened: dict[int, tuple[int, int]],
        nursery: trio.Nursery,
        attributes: Callable[[File], dict[str, str]],
    ) -> None:
        super().__init__()
        self._session = session
        self._tree = session.tree
        self._opened = opened
        self._nursery = nursery
        self._attributes = attributes
        self._handles: dict[int, tuple[Node, bool]] = {}  # handle: node, whether it can write
        self._next_handle = 1

    # Names and attributes.

    @_guarded
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        node = self._tree.lookup(parent_inode, name)
        node.lookups += 1
        return self._entry(node)

    @_guarded
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext | None) -> pyfuse3.EntryAttributes:
        return self._entry(self._tree[inode])

    @_guarded
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        node = self._tree[inode]
        emptied = False
        if fields.update_size:
            emptied = await self._truncate(self._tree.file(inode), attr.st_size)
        if isinstance(node, File):
            node.notice_changes()  # those until now: the times that are set come after them
        if fields.update_mode:
            node.permissions = attr.st_mode & 0o777  # set-id bits have no meaning on a disk
        if fields.update_uid:
            node.uid = attr.st_uid
        if fields.update_gid:
            node.gid = attr.st_gid
        if fields.update_atime:
            node.atime = attr.st_atime_ns
        if fields.update_mtime:
            node.mtime = attr.st_mtime_ns
        node.ctime = time.time_ns()
        entry = self._entry(node)
        if emptied:
            # The kernel drops its cached pages only if it is told the size that it asked for.  It may keep this
            # answer for no time at all, so whoever looks next sees the true size.
            entry.st_size = 0
            entry.attr_timeout = 0
            if self._session.options.writeback:  # unless the kernel trusts the size it was told
                self._nursery.start_soon(self._tell_size, self._tree.file(inode))
        return entry

    async def _tell_size(self, file: File) -> None:
        for path, found in self._tree.paths():
            if found is file:
                await notices.resized(self._session, path, file)

    async def _truncate(self, file: File, size: int) -> bool:
        """Truncation to 0 clears the content; True if it did.  Any other change of size is refused."""
        await file.export.settled()
        if size == file.size:
            return False
        if size:
            raise SourceError(errno.EPERM)
        if not file.source.writable:
            raise SourceError(errno.EROFS)
        timeout, end = self._session.options.timeout, trio.current_time() + self._session.limit
        with trio.move_on_after(timeout) as scope:

            def progress() -> None:
                scope.deadline = min(trio.current_time() + timeout, end)

            await zero(file, 0, file.size, punch=True, progress=progress)
        if scope.cancelled_caught:
            raise SourceError(errno.EIO)
        return True

    def _entry(self, node: Node) -> pyfuse3.EntryAttributes:
        if isinstance(node, File):
            node.notice_changes()
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = node.inode
        entry.st_mode = node.mode
        entry.st_uid, entry.st_gid = node.uid, node.gid
        entry.st_blksize = 4096
        entry.entry_timeout = _ENTRY_TIMEOUT
        entry.attr_timeout = _ATTRIBUTE_TIMEOUT
        entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns = node.atime, node.mtime, node.ctime
        if isinstance(node, File):
            entry.st_size = node.size
            entry.st_nlink = int(node.linked)
            entry.st_blocks = -(-node.usage.allocated() // 512)
            if node.usage.due():
                self._nursery.start_soon(node.usage.count)
        elif isinstance(node, Directory):
            entry.st_nlink = 2 + sum(isinstance(child, Directory) for child in node.children.values())
        return entry

    @_guarded
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        files = [node for node in self._tree.files() if node.linked]
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_blocks = sum(-(-node.size // 4096) for node in files)
        data.f_bfree = data.f_bavail = max(data.f_blocks - sum(node.usage.allocated() // 4096 for node in files), 0)
        data.f_files = len(files)
        data.f_ffree = data.f_favail = 0
        data.f_namemax = 255
        return data

    # Open files.

    @_guarded
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        file = self._tree.file(inode)
        writes = flags & os.O_ACCMODE in _ACCESS_MODES
        if writes and not file.source.writable:
            raise SourceError(errno.EROFS)
        await file.export.settled()
        reply = self._session.open_flags(file, flags)
        handle = self._new_handle(file, writes)
        self._opened[handle] = reply
        file.handles += 1
        file.writers += writes
        return pyfuse3.FileInfo(fh=handle)

    @_guarded
    async def release(self, fh: int) -> None:
        node, writes = self._handles.pop(fh)
        if isinstance(node, File):
            node.handles -= 1
            node.writers -= writes
            if not node.handles:
                self._session.passthrough.close(node)

    # Directories.

    @_guarded
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        return self._new_handle(self._tree.folder(inode), False)

    @_guarded
    async def releasedir(self, fh: int) -> None:
        del self._handles[fh]

    @_guarded
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        folder = self._handles[fh][0]
        assert isinstance(folder, Directory)
        for place, name, node in self._listing(folder):
            if place > start_id:
                # The kernel counts a lookup for each entry it takes, except for the two dots.
                if not pyfuse3.readdir_reply(token, name, self._entry(node), place):
                    return
                node.lookups += name not in (b".", b"..")

    @staticmethod
    def _listing(folder: Directory) -> Iterator[tuple[int, bytes, Node]]:
        """The entries with their places, which stay when others come and go: whoever is half-way misses none."""
        yield 1, b".", folder
        yield 2, b"..", folder.parent
        for name, node in sorted(folder.children.items(), key=lambda child: child[1].inode):
            yield 2 + node.inode, name, node

    @_guarded
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        return

    # What a mount does not let anyone do.

    async def _refuse(self, *arguments: Any) -> Any:
        raise FUSEError(errno.EPERM)

    mknod = mkdir = unlink = rmdir = symlink = rename = link = create = cast(Any, _refuse)  # whatever they are given

    # Extended attributes.

    @_guarded
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        try:
            return self._attributes_of(inode)[name]
        except KeyError:
            raise SourceError(errno.ENODATA) from None

    @_guarded
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> list[bytes]:
        return list(self._attributes_of(inode))

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        raise FUSEError(errno.ENOTSUP)

    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        raise FUSEError(errno.ENOTSUP)

    def _attributes_of(self, inode: int) -> dict[bytes, bytes]:
        node = self._tree[inode]
        found = self._attributes(node) if isinstance(node, File) else {"pid": str(os.getpid())}
        return {f"user.nbdfs.{key}".encode(): os.fsencode(value) for key, value in found.items()}

    def _new_handle(self, node: Node, writes: bool) -> int:
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        self._handles[handle] = (node, writes)
        return handle
