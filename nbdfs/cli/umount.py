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
from nbdfs.mountpoint import mountpoint

_WAIT = 60.0  # seconds for the process behind a mount to end
_ANSWER = {False: 10.0, True: 3.0}  # seconds for it to tell its number; by whether the unmount is lazy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("targets", nargs="+", metavar="FILE|DIR", help="what is mounted")
    parser.add_argument("-z", "--lazy", action="store_true", help="detach even while it is in use, or its process does "
                        "not answer, without waiting for that to end")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    return for_each(arguments.targets, lambda target: end(target, lazy=arguments.lazy))


def end(path: str, *, lazy: bool = False) -> None:
    """Unmount what is on a path and wait for its process, but not if only `lazy` can end it.  Raises UserError."""
    target = mountpoint(path)
    mount = mounting.find_mount(target)
    if mount is None and os.path.islink(target):  # else it is none, and might not answer
        target = os.path.realpath(target)
        mount = mounting.find_mount(target)
    if mount is None:
        raise UserError(f"{path} is not a mount: nothing to end there")
    if not mount.is_fuse:
        raise UserError(f"{path} is a mount of {mount.fstype}, not of nbdfs: umount(8) is for that")
    dead = silent = False
    process = None
    try:
        process = _process(target, _ANSWER[lazy])
    except OSError as error:
        dead, silent = error.errno == errno.ENOTCONN, error.errno == errno.ETIMEDOUT
        if not dead and not (silent and lazy):
            hint = "; its process may be suspended: let it go on, or use --lazy" if silent else ""
            raise UserError(f"cannot look at {path}: {error.strerror}{hint}") from error
    with contextlib.ExitStack() as stack:
        if process is not None:
            stack.callback(os.close, process)
        busy = _unmount(target, path, lazy=lazy, detach=dead or silent)
        if process is not None and not busy:
            _wait(process, path)
    if dead:
        remove_left_placeholder(target)


def _unmount(target: str, path: str, *, lazy: bool, detach: bool) -> bool:
    """Unmount; `lazy` also if it is in use, which is then what is given.  Raises UserError."""
    try:
        mounting.unmount(target, lazy=detach)
    except OSError as error:
        busy = error.errno == errno.EBUSY
        if lazy and busy and not detach:
            _unmount(target, path, lazy=lazy, detach=True)
            return True
        hint = "close what uses it, or use --lazy" if busy else "it needs its owner or root"
        raise UserError(f"cannot unmount {path}: {error.strerror}; {hint}") from error
    return False


def _process(target: str, seconds: float) -> int | None:
    """A descriptor of the process that serves a mount, if it tells.  Raises OSError as `mounting.ask` does."""
    mounting.ask(target, seconds)
    with contextlib.suppress(OSError, ValueError):
        return os.pidfd_open(int(os.getxattr(target, "user.nbdfs.pid")))
    return None


def _wait(process: int, path: str) -> None:
    ended = select.poll()
    ended.register(process, select.POLLIN)
    if not ended.poll(_WAIT * 1000):
        raise UserError(f"{path} is unmounted, but its process did not end within {_WAIT:g} s")
