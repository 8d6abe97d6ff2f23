"""The place a mount covers: checked before, left as it was after.

A file that does not exist is made as an empty placeholder, marked with an extended attribute where the file system
has them, and removed at the end; the mark tells the next run that a placeholder left by a killed process is ours.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Iterator

from nbdfs.errors import UserError
from nbdfs.fuse import mounting
from nbdfs.mountpoint import mountpoint

log = logging.getLogger(__name__)

_MARK = "user.nbdfs.placeholder"
_ANSWER = 5.0  # seconds for what is mounted there


@contextlib.contextmanager
def prepared(path: str, subtype: str) -> Iterator[str]:
    """The absolute path of a file or directory that can be covered; what was made for it is removed at the end.

    A mount of this subtype that a killed process left there is taken away.  Raises UserError.
    """
    target = mountpoint(path)
    clear_stale(target, subtype)
    if os.path.islink(target):
        target = os.path.realpath(target)
        clear_stale(target, subtype)
    made = _ensure(target)
    try:
        yield target
    finally:
        if made:
            _remove_placeholder(target)


def _ensure(target: str) -> bool:
    """Make the placeholder if nothing is there; True if it is ours to remove."""
    try:
        kind = stat.S_IFMT(os.lstat(target).st_mode)
    except FileNotFoundError:
        return _make_placeholder(target)
    except OSError as error:
        raise UserError(f"cannot look at {target}: {error.strerror}") from error
    if mounting.find_mount(target):
        raise UserError(f"{target} is already a mount: end it first (nbdfs umount {target})")
    if kind not in (stat.S_IFREG, stat.S_IFDIR):
        raise UserError(f"{target} is neither a regular file nor a directory: only those can be covered")
    return kind == stat.S_IFREG and _is_placeholder(target)


def _make_placeholder(target: str) -> bool:
    try:
        descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except FileNotFoundError as error:
        raise UserError(f"there is no directory {os.path.dirname(target)}: create it first") from error
    except OSError as error:
        raise UserError(f"cannot create the file {target} to mount on: {error.strerror}") from error
    with contextlib.suppress(OSError):  # without extended attributes only a killed process leaves a file behind
        os.setxattr(descriptor, _MARK, b"1")
    os.close(descriptor)
    return True


def _is_placeholder(target: str) -> bool:
    try:
        return os.stat(target).st_size == 0 and os.getxattr(target, _MARK) == b"1"
    except OSError:
        return False


def remove_left_placeholder(target: str) -> None:
    """Remove what a killed process made to mount on; a file that is somebody's stays."""
    if _is_placeholder(target):
        _remove_placeholder(target)


def _remove_placeholder(target: str) -> None:
    try:
        if os.stat(target).st_size == 0:
            os.unlink(target)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("the placeholder %s stays: %s", target, error.strerror)


def clear_stale(target: str, subtype: str) -> None:
    """Take away a mount of ours, known by its subtype, whose process is gone.

    Raises UserError for one that does not answer.
    """
    try:
        mounting.ask(target, _ANSWER)
    except OSError as error:
        if error.errno == errno.ETIMEDOUT:
            raise UserError(
                f"{target} is a mount that does not answer, perhaps suspended: nbdfs umount --lazy {target} ends it"
            ) from error
        if error.errno != errno.ENOTCONN:
            return
        mount = mounting.find_mount(target)
        if mount is None or mount.fstype != f"fuse.{subtype}":
            raise UserError(
                f"{target} is a dead mount of another program: unmount it first (umount {target})"
            ) from error
        mounting.unmount(target, lazy=True)
        log.warning("took away a mount that a killed process had left on %s", target)
        clear_stale(target, subtype)
