"""The barrier of this front end: whatever is raised behind it becomes the errno of one request."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from types import TracebackType

log = logging.getLogger(__name__)


class Barrier:
    """A block whose exceptions end with it.

    An OSError gives its errno to `fail`; any other exception is a fault of ours: it is logged with its traceback
    and gives EIO.  Cancellation passes through.
    """

    __slots__ = ("_fail", "_what")

    def __init__(self, what: object, fail: Callable[[int], None]) -> None:
        self._what = what
        self._fail = fail

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, OSError):
            log.debug("%s: %s", self._what, error)
            self._fail(error.errno or errno.EIO)
        elif isinstance(error, Exception):
            log.error("%s failed", self._what, exc_info=error)
            self._fail(errno.EIO)
        return isinstance(error, Exception)
