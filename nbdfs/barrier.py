"""The barrier of a front end: whatever is raised behind it becomes the errno of one request."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from types import TracebackType

from nbdfs.errors import reason

log = logging.getLogger(__name__)


def failure(what: object, error: Exception) -> int:
    """The errno to answer with.  Anything but an OSError is a fault of ours: its traceback is logged, and it is EIO."""
    if isinstance(error, OSError):
        log.debug("%s: %s", what, reason(error))
        return error.errno or errno.EIO
    log.error("%s failed", what, exc_info=error)
    return errno.EIO


class Barrier:
    """A block whose exceptions end with it, as an errno for `fail`.  Cancellation passes through."""

    __slots__ = ("_fail", "_what")

    def __init__(self, what: object, fail: Callable[[int], None]) -> None:
        self._what = what
        self._fail = fail

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, Exception):
            self._fail(failure(self._what, error))
            return True
        return False
