"""End mounts: unmount, and wait until the process behind each has flushed and gone.

Also takes away what a killed process left behind ("Transport endpoint is not connected").
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import select

from nbdfs.cli._control import for_each
from nbdfs.errors import UserError
from nbdfs.fuse import mounting
from nbdfs.fuse.target import remove_left_placeholder

_WAIT = 60.0  # seconds for the process behind a mount to end


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("targets", nargs="+", metavar="FILE|DIR", help="what is mounted")
    parser.add_argument("-z", "--lazy", action="store_true", help="detach even while it is in use")


def run(arguments: argparse.Namespace) -> int:
    return for_each(arguments.targets, lambda target: end(os.path.abspath(target), lazy=arguments.lazy))


def end(path: str, *, lazy: bool = False) -> None:
    """Unmount what is on an absolute path and wait for its process.  Raises UserError."""
    target = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    if os.path.islink(target):
        target = os.path.realpath(target)
    mount = mounting.find_mount(target)
    if mount is None:
        raise UserError(f"{path} is not a mount: nothing to end there")
    if not mount.is_fuse:
        raise UserError(f"{path} is a mount of {mount.fstype}, not of nbdfs: umount(8) is for that")
    dead = False
    try:
        process = _process(target)
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise UserError(f"cannot look at {path}: {error.strerror}") from error
        dead, process = True, None
    try:
        mounting.unmount(target, lazy=lazy or dead)
    except OSError as error:
        hint = "close what uses it, or use --lazy" if error.errno == errno.EBUSY else "it needs its owner or root"
        raise UserError(f"cannot unmount {path}: {error.strerror}; {hint}") from error
    if process is not None:
        _wait(process, path)
    if dead:
        remove_left_placeholder(target)


def _process(target: str) -> int | None:
    """A descriptor of the process that serves a mount, if it tells."""
    os.statvfs(target)  # unlike stat, never answered from what the kernel remembers
    with contextlib.suppress(OSError, ValueError):
        return os.pidfd_open(int(os.getxattr(target, "user.nbdfs.pid")))
    return None


def _wait(process: int, path: str) -> None:
    try:
        ended = select.poll()
        ended.register(process, select.POLLIN)
        if not ended.poll(_WAIT * 1000):
            raise UserError(f"{path} is unmounted, but its process did not end within {_WAIT:g} s")
    finally:
        os.close(process)
