"""The inodes of a mount: one file, or a directory tree of files.

Inode numbers are the node ids of the kernel, 1 is the root, and none is used twice.  A file that was
taken out of its directory lives on until the kernel has forgotten it, so open files keep working.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

from nbdfs.errors import SourceError
from nbdfs.export import Export
from nbdfs.fuse.usage import Usage
from nbdfs.source import Caps

ROOT = 1
NodeT = TypeVar("NodeT", bound="Node")


class Entry(NamedTuple):
    """A name in a directory that the kernel may know: inode of the directory, inode it stands for, name."""

    parent: int
    inode: int
    name: bytes


class Node:
    """What a file and a directory have in common: owner, permissions, times (ns), links from the kernel."""

    kind: int

    def __init__(self, inode: int, permissions: int, uid: int, gid: int) -> None:
        self.inode = inode
        self.permissions = permissions
        self.uid = uid
        self.gid = gid
        self.lookups = 0  # references that the kernel holds
        self.linked = True  # whether a directory (or the mount itself) still names it
        self.atime = self.mtime = self.ctime = time.time_ns()

    @property
    def mode(self) -> int:
        return self.kind | self.permissions


class File(Node):
    """A regular file that is an export, which it holds as long as the tree or the kernel knows it."""

    kind = stat.S_IFREG

    def __init__(self, inode: int, export: Export, permissions: int, uid: int, gid: int) -> None:
        super().__init__(inode, permissions, uid, gid)
        self.export = export
        self.source = export.source
        self.size = export.source.info.size
        self.immediate = Caps.IMMEDIATE in export.source.info.caps
        self.eager = export.source.eager
        self.poller = export.source.poller()
        self.usage = Usage(export)
        self.writers = 0  # open handles that can write: only then can the kernel hold dirty pages
        self.backing_id = 0  # of the kernel's passthrough while handles are open, else 0
        self.handles = 0
        self._backing_mtime = self._modified()

    def notice_changes(self) -> None:
        """Take over the time of writes that went past us: in passthrough only the backing file knows them."""
        modified = self._modified()
        if modified != self._backing_mtime:
            self._backing_mtime = self.mtime = self.ctime = modified

    def _modified(self) -> int:
        backing = self.source.backing()
        return os.fstat(backing.fd).st_mtime_ns if backing else 0

    def resized(self) -> None:
        """The size changed."""
        self.size = self.source.info.size
        self.touch()

    def touch(self) -> None:
        """The content changed."""
        self.mtime = self.ctime = time.time_ns()
        self.usage.changed()


class Directory(Node):
    """A directory, in the order its entries were added."""

    kind = stat.S_IFDIR

    def __init__(self, inode: int, permissions: int, uid: int, gid: int, parent: Directory | None) -> None:
        super().__init__(inode, permissions, uid, gid)
        self.parent = parent or self
        self.children: dict[bytes, Node] = {}

    def changed(self) -> None:
        """An entry came or went."""
        self.mtime = self.ctime = time.time_ns()


class Tree:
    """All nodes of a mount, by inode.

    The root is an empty directory at first, or with `covers_file` the file that is then added under the empty path.
    """

    def __init__(self, uid: int, gid: int, mode: int | None = None, *, covers_file: bool = False) -> None:
        self._uid = uid
        self._gid = gid
        self._mode = mode
        self._next = ROOT
        self._nodes: dict[int, Node] = {}
        if not covers_file:
            self._new_directory(None)

    def __getitem__(self, inode: int) -> Node:
        try:
            return self._nodes[inode]
        except KeyError:
            raise SourceError(errno.ESTALE, f"no inode {inode}") from None

    def file(self, inode: int) -> File:
        node = self[inode]
        if not isinstance(node, File):
            raise SourceError(errno.EISDIR)
        return node

    def folder(self, inode: int) -> Directory:
        node = self[inode]
        if not isinstance(node, Directory):
            raise SourceError(errno.ENOTDIR)
        return node

    def files(self) -> Iterator[File]:
        """All files, also those that are only open still."""
        return (node for node in list(self._nodes.values()) if isinstance(node, File))

    def paths(self) -> Iterator[tuple[str, File]]:
        """Every file that has a name, with its path below the root; the path of a root file is empty."""
        waiting: list[tuple[str, Node]] = [("", self[ROOT])]
        for path, node in waiting:
            if isinstance(node, File):
                yield path, node
            elif isinstance(node, Directory):
                waiting.extend((os.path.join(path, os.fsdecode(name)), child) for name, child in node.children.items())

    def lookup(self, parent: int, name: bytes) -> Node:
        folder = self.folder(parent)
        if name == b".":
            return folder
        if name == b"..":
            return folder.parent
        try:
            return folder.children[name]
        except KeyError:
            raise SourceError(errno.ENOENT) from None

    def add(self, path: str, export: Export) -> File:
        """Put a file at a relative path, making the directories it needs.  EEXIST if something is there."""
        if not path and not self._nodes:
            return self._new_file(export)
        *folders, name = (os.fsencode(part) for part in path.split("/"))
        at = self.folder(ROOT)
        for part in folders:
            child = at.children.get(part)
            if child is None:
                child = at.children[part] = self._new_directory(at)
            if not isinstance(child, Directory):
                raise SourceError(errno.EEXIST, f"'{path}' passes through a file")
            at = child
        if name in at.children or name in (b"", b".", b".."):
            raise SourceError(errno.EEXIST, f"'{path}' is already there")
        file = self._new_file(export)
        at.children[name] = file
        at.changed()
        return file

    def replace(self, path: str, export: Export) -> tuple[File, Entry]:
        """Put another file in the place of one; gives it, and the entry that the kernel must forget."""
        trail = self._trail(path)
        at, name = trail[-1]
        old = self.lookup(at.inode, name)
        file = at.children[name] = self._new_file(export)
        at.changed()
        self._unlink(old)
        return file, Entry(at.inode, old.inode, name)

    def remove(self, path: str) -> list[Entry]:
        """Take a file out, and the directories that become empty.  Gives the entries that the kernel must forget."""
        gone = []
        for at, name in reversed(self._trail(path)):
            node = at.children.pop(name)
            gone.append(Entry(at.inode, node.inode, name))
            at.changed()
            self._unlink(node)
            if at.children:
                break
        return gone

    def _trail(self, path: str) -> list[tuple[Directory, bytes]]:
        """The directories that a path passes through, each with the name of the next step in it."""
        trail = []
        at: Node = self[ROOT]
        for name in (os.fsencode(part) for part in path.split("/")):
            folder = self.folder(at.inode)
            trail.append((folder, name))
            at = self.lookup(folder.inode, name)
        return trail

    def forget(self, inode: int, count: int) -> None:
        """The kernel drops `count` of its references."""
        node = self._nodes.get(inode)
        if node:
            node.lookups -= count
            self._drop(node)

    def _unlink(self, node: Node) -> None:
        node.linked = False
        self._drop(node)

    def _drop(self, node: Node) -> None:
        if not node.linked and node.lookups <= 0 and node.inode in self._nodes:
            del self._nodes[node.inode]
            if isinstance(node, File):
                node.export.release()

    def _new_file(self, export: Export) -> File:
        permissions = 0o600 if self._mode is None else self._mode
        if not export.source.writable:
            permissions &= ~0o222
        export.hold()
        return self._enter(File(self._next, export, permissions, self._uid, self._gid))

    def _new_directory(self, parent: Directory | None) -> Directory:
        readers = 0 if self._mode is None else self._mode & 0o444
        permissions = 0o700 | readers | readers >> 2  # who may read may also search
        return self._enter(Directory(self._next, permissions, self._uid, self._gid, parent))

    def _enter(self, node: NodeT) -> NodeT:
        self._nodes[self._next] = node
        self._next += 1
        return node
