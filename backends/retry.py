"""The `retry` layer: what failed for a moment is tried again."""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import trio

from nbdfs.around import AroundLayer, Request
from nbdfs.errors import SourceError, UsageError, reason
from nbdfs.records import Record
from nbdfs.registry import DURATION, INTEGER, LayerDriver, OpenContext, option
from nbdfs.source import Caps, Source

log = logging.getLogger(__name__)

T = TypeVar("T")

_PASSING = frozenset({
    errno.EIO, errno.EAGAIN, errno.ETIMEDOUT, errno.ESHUTDOWN, errno.EPIPE, errno.ENOTCONN, errno.ECONNRESET,
    errno.ECONNREFUSED, errno.ECONNABORTED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN,
})  # fmt: skip


class RetryOptions(Record):
    tries: int = option(5, INTEGER, "how often at most, the first time included")
    delay: float = option(0.5, DURATION, "how long to wait before the second, doubled before each further one")
    max_delay: float = option(30.0, DURATION, "longest wait")


class Retry(AroundLayer):
    """`below`, with each failed request repeated.

    A flush is repeated only if the source itself says that it may succeed later (`SourceError.retryable`): after a
    failed flush the data may be gone, and a second one would be a false success.
    """

    def __init__(self, below: Source, options: RetryOptions) -> None:
        super().__init__(below, without=Caps.IMMEDIATE)
        self._options = options
        self._retries = 0

    async def around(self, request: Request, call: Callable[[], Awaitable[T]]) -> T:
        delay = min(self._options.delay, self._options.max_delay)
        for attempt in range(1, self._options.tries):
            try:
                return await call()
            except OSError as error:
                if not _may_pass(request, error):
                    raise
                log.warning(
                    "%s: %s at %d: %s; attempt %d follows in %g s",
                    self.info.description, request.operation, request.offset, reason(error), attempt + 1, delay,
                )  # fmt: skip
            await trio.sleep(delay)
            self._retries += 1
            delay = min(delay * 2, self._options.max_delay)
        return await call()

    def statistics(self) -> Mapping[str, int]:
        return {"retries_total": self._retries}


def _may_pass(request: Request, error: OSError) -> bool:
    if isinstance(error, SourceError) and error.retryable:
        return True
    return request.operation != "flush" and error.errno in _PASSING


def _open(below: Source, options: RetryOptions, context: OpenContext) -> Source:
    if options.tries < 1:
        raise UsageError("retry: tries must be 1 or more")
    return Retry(below, options)


DRIVER = LayerDriver("retry", "try failed requests again", RetryOptions, open=_open)
