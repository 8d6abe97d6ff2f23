"""What is to be undone when a block does not come to its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def unless_done(undo: Callable[[], object]) -> Iterator[None]:
    """Call `undo` if the block ends by an exception of any kind, cancellation included; the exception goes on."""
    done = False
    try:
        yield
        done = True
    finally:
        if not done:
            undo()
