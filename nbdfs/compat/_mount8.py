"""What helpers of mount(8) and umount(8) have in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nbdfs.errors import UserError, leaves


class MountError(UserError):
    """A mount or unmount that failed, with the exit status that mount(8) documents for that."""

    exit_status = 32


@contextmanager
def mount_errors() -> Iterator[None]:
    """Turn what the block raises for the user, alone or in a group, into a MountError."""
    try:
        yield
    except* UserError as group:
        error = next(leaves(group))
        raise MountError(str(error)) from error
