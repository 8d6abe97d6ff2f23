"""Plain files and pipes named as an end of a copy: tell them from devices, create them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat

from nbdfs.errors import UserError
from nbdfs.plans import Plan
from nbdfs.source import Backing
from nbdfs.spec import Spec

NULL = "null:"  # the destination that takes everything


def is_null(spec: Spec) -> bool:
    """Whether the spec is `null:` without a size, which takes everything."""
    return not spec.layers and spec.source is not None and spec.source.name == "null" and not spec.argument


def is_standard_stream(spec: Spec) -> bool:
    """Whether the spec is `-`."""
    return spec == Spec(argument="-")


def plain_path(plan: Plan) -> str:
    """The path if the plan is nothing but a file, else the empty string."""
    bare = not plan.layers and plan.source.name == "file" and plan.options == plan.source.options()
    return plan.argument if bare else ""


def is_stream(path: str) -> bool:
    """Whether the path is a pipe or a character device, which can only be read or written in order."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def is_regular(path: str) -> bool:
    """Whether the path is a regular file or does not exist, so that a copy may create it."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        return True
    except OSError as error:
        raise UserError(f"cannot look at {path}: {error.strerror}") from error


def create(path: str, size: int) -> None:
    """Make `path` an empty file of `size` bytes, all hole, whatever it was before.

    A file that another program has locked is left as it is.  Raises UserError.
    """
    from nbdfs.backends.file.opening import open_path

    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666))
        fd = open_path(path, readonly=False, direct=False, lock=True).fd
        try:
            os.ftruncate(fd, 0)
            os.ftruncate(fd, size)
        finally:
            os.close(fd)
    except OSError as error:
        raise UserError(f"cannot create {path}: {error.strerror}") from error


def open_stream(path: str, flags: int) -> int:
    """A descriptor of a pipe or device, opened with `flags`."""
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"cannot open {path}: {error.strerror}") from error


def remaining(fd: int) -> int | None:
    """Bytes from here to the end if the descriptor is a regular file, else None."""
    facts = os.fstat(fd)
    return max(facts.st_size - os.lseek(fd, 0, os.SEEK_CUR), 0) if stat.S_ISREG(facts.st_mode) else None


def same_file(backing: Backing, path: str) -> bool:
    """Whether `path` is the file or block device behind `backing`."""
    try:
        return _identity(os.stat(path)) == _identity(os.fstat(backing.fd))
    except FileNotFoundError:
        return False


def is_read(path: str, stream: int | None = None) -> bool:
    """Whether the file or block device is being read here, by whatever name and under whatever layer.

    By this process, that is, or by way of the descriptor `stream`; others that it has inherited do not count, such as
    one that somebody holds a lock by.
    """
    try:
        facts = os.stat(path)
    except OSError:
        return False
    if not (stat.S_ISREG(facts.st_mode) or stat.S_ISBLK(facts.st_mode)):
        return False
    wanted = _identity(facts)
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that lists them is closed by now
            fd = int(name)
            inherited = os.get_inheritable(fd) and fd != stream
            writes_only = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
            if not (inherited or writes_only) and _identity(os.fstat(fd)) == wanted:
                return True
    return False


def overlap(one: Backing, other: Backing, size: int) -> bool:
    """Whether the first `size` bytes of both lie in the same file and have some in common."""
    same = _identity(os.fstat(one.fd)) == _identity(os.fstat(other.fd))
    return same and abs(one.offset - other.offset) < size


def _identity(facts: os.stat_result) -> tuple[bool, int, int]:
    if stat.S_ISBLK(facts.st_mode):
        return True, facts.st_rdev, 0
    return False, facts.st_dev, facts.st_ino
