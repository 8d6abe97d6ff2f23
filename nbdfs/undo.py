"""What is to be undone when a block does not come to its end."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType


class _UnlessDone:
    __slots__ = ("_undo",)

    def __init__(self, undo: Callable[[], object]) -> None:
        self._undo = undo

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._undo()


def unless_done(undo: Callable[[], object]) -> _UnlessDone:
    """Call `undo` if the block ends by an exception of any kind, cancellation included; the exception goes on."""
    return _UnlessDone(undo)
