"""The errors that cross a boundary of nbdfs, and the one table from errno to NBD.

Three kinds exist.  A `UserError` ends a command with one line on stderr; a `UsageError` is one
that the command line itself is to blame for.  A `SourceError` fails one request: it is born
with an errno, and each front end hands that errno to its client.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import TypeVar

E = TypeVar("E", bound=BaseException)


class UserError(Exception):
    """What a command could not do, in one line that says what is wrong and what to do."""

    exit_status = 1


class UsageError(UserError):
    """A command line, spec or option that makes no sense."""

    exit_status = 2


class NotWritableError(UserError):
    """It cannot be opened for writing, but perhaps for reading only."""


def reason(error: Exception) -> str:
    """What went wrong, for people: of a failed system call its file and text, without the number."""
    if isinstance(error, SourceError) or not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return f"{os.fsdecode(error.filename)}: {error.strerror}" if error.filename else error.strerror


def printable(text: str, *, keep: str = "") -> str:
    """`text` as one line in which nothing commands the terminal: strangers have written some of it.

    What cannot be printed, but for `keep`, is written as Python writes it.
    """
    return "".join(letter if letter.isprintable() or letter in keep else repr(letter)[1:-1] for letter in text)


def leaves(group: BaseExceptionGroup[E]) -> Iterator[E]:
    """The errors in a group, however deep."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error


class SourceError(OSError):
    """One request failed.

    `errno` is what the client of a front end is told, `strerror` what the log says, `where` the
    source or layer it comes from.  `retryable` says that the same request may succeed later.
    """

    def __init__(self, number: int, message: str = "", *, where: str = "", retryable: bool = False) -> None:
        super().__init__(number, message or os.strerror(number))
        self.where = where
        self.retryable = retryable

    def __str__(self) -> str:
        return f"{self.where}: {self.strerror}" if self.where else str(self.strerror)


# NBD protocol, "Error values": the only errors that may go over the wire.
_NBD_ERRORS = {
    errno.EPERM: 1,
    errno.EIO: 5,
    errno.ENOMEM: 12,
    errno.EINVAL: 22,
    errno.ENOSPC: 28,
    errno.EOVERFLOW: 75,
    errno.ENOTSUP: 95,
    errno.ESHUTDOWN: 108,
    # Near relations, told as what the protocol has for them.
    errno.EACCES: 1,
    errno.EROFS: 1,
    errno.EDQUOT: 28,
    errno.EFBIG: 28,
}
_FROM_NBD = {1: errno.EPERM, 5: errno.EIO, 12: errno.ENOMEM, 22: errno.EINVAL, 28: errno.ENOSPC,
             75: errno.EOVERFLOW, 95: errno.ENOTSUP, 108: errno.ESHUTDOWN}  # fmt: skip


def to_nbd(number: int) -> int:
    """The NBD error value for an errno; what the protocol has no word for is EIO."""
    return _NBD_ERRORS.get(number, 5)


def from_nbd(value: int) -> int:
    """The errno for an NBD error value; unknown values are EINVAL, as the protocol asks."""
    return _FROM_NBD.get(value, errno.EINVAL)
