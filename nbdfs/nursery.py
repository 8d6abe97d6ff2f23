"""A nursery for tasks that only serve the block: errors pass it as they are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def serving_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery that is cancelled at the end of the block.

    An error of the block, if it is the only one, is raised itself and not in a group, so that a UserError stays one.
    """
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            finally:
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if isinstance(error, BaseExceptionGroup):
            raise
        raise error from error.__cause__
