"""What the kernel is told of its own accord: entries that are gone, attributes that changed.

Telling it may wait for a lock that a request of ours holds, so it is done by a thread, and for a bounded time.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
from typing import TYPE_CHECKING

import trio

from nbdfs.errors import reason
from nbdfs.fuse import wire
from nbdfs.fuse.tree import Entry, File

if TYPE_CHECKING:
    from nbdfs.fuse.session import Session

log = logging.getLogger(__name__)

_TIMEOUT = 5.0  # seconds
_NOTIFY_DELETE = 6  # enum fuse_notify_code
_DELETE = struct.Struct("=QQII")  # nodeids of directory and entry, length of the name, padding; then the name and NUL
_ATTRIBUTES = -1  # as the offset of what is invalidated: no data, only attributes
_UNKNOWN = (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENOTCONN)  # nothing known of it, or no mount any more


async def deleted(session: Session, entry: Entry) -> None:
    """A name is gone, or stands for something else: what it stood for lives on for those who have it open."""
    body = _DELETE.pack(entry.parent, entry.inode, len(entry.name), 0) + entry.name + b"\0"
    await _tell(session, wire.notification(_NOTIFY_DELETE, body))


async def changed(session: Session, inode: int) -> None:
    """The attributes of an inode are no longer what the kernel was told."""
    body = wire.INVALIDATE_INODE.pack(inode, _ATTRIBUTES, 0)
    await _tell(session, wire.notification(wire.NOTIFY_INVALIDATE_INODE, body))


async def resized(session: Session, path: str, file: File) -> None:
    """A file has another size."""
    await changed(session, file.inode)
    if session.options.writeback:  # then the kernel trusts the size it knows: only who truncates can change it
        where = os.path.join(session.target, path).rstrip("/")
        try:
            with trio.move_on_after(_TIMEOUT, shield=True):
                await trio.to_thread.run_sync(os.truncate, where, file.size, abandon_on_cancel=True)
        except OSError as error:
            log.warning("%s: the kernel goes on with another size of it: %s", where, reason(error))


async def _tell(session: Session, message: bytes) -> None:
    with trio.move_on_after(_TIMEOUT, shield=True) as scope:
        try:
            await trio.to_thread.run_sync(os.write, session.device.descriptor, message, abandon_on_cancel=True)
        except OSError as error:
            if error.errno not in _UNKNOWN:
                log.warning("%s: the kernel does not take a notice: %s", session.target, error.strerror)
    if scope.cancelled_caught:
        log.warning("%s: the kernel did not take a notice within %g s", session.target, _TIMEOUT)
