"""Requests that begin at once, without a task of their own.

A coroutine that waits only by `park` need not be a task of trio: a `Run` carries it from wait to wait, each time on the
stack of whoever ends the wait.  A request to a remote server then costs a few calls where a task costs a nursery, a
cancel scope and two turns of the event loop.  A source whose operations can run that way says so (`Source.eager`);
where one of them has to wait for anything else after all, it first awaits `task`, which makes its run a task from
there on.

The same coroutines run in tasks of trio too: `park` then waits as trio does.

Invariants
* `_current` is the run whose coroutine is executing, None in tasks and callbacks.  Runs do not nest: one that is woken
  while another executes, or inside `held`, goes on when that has paused.
* A run is in one of four states: executing, parked (`_abort` is set), ready (in `_ready`), in a task (`_scope` is set).
"""

from __future__ import annotations

import logging
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from typing import Any, cast

import trio

log = logging.getLogger(__name__)

_PARKED = object()  # what a coroutine yields to its run: somebody will wake it
_TASK = object()  # it wants to go on in a task
_ENDED = object()  # it is at its end

Wake = Callable[[], None]

_current: Run | None = None
_ready: deque[Run] = deque()
_holds = 0  # how many blocks of `held` are being executed
_corked = False
_later: list[Callable[[], None]] = []


class Cancelled(BaseException):
    """Raised in a run that is cancelled, out of its `park`."""


def _nothing() -> None:
    return


class Run:
    """A coroutine under way, begun by `start` or `start_task`; `nursery` is where its task is, if it needs one.

    An exception that the coroutine lets out concerns nobody else: it is logged.  `ended` is called once, at its end.
    """

    __slots__ = ("_abort", "_coroutine", "_ended", "_nursery", "_scope")

    def __init__(
        self, coroutine: Coroutine[Any, Any, None], nursery: trio.Nursery, ended: Callable[[], None] = _nothing
    ) -> None:
        self._coroutine = coroutine
        self._nursery = nursery
        self._ended = ended
        self._abort: Callable[[], None] | None = None
        self._scope: trio.CancelScope | None = None

    def start(self) -> None:
        """Execute up to the first wait, now, or once the run that is executing has paused."""
        if _current is not None:
            _ready.append(self)
            return
        self._advance()
        if _ready:
            go_on()

    def start_task(self) -> None:
        """Leave all of it to a task."""
        self._scope = trio.CancelScope()
        self._nursery.start_soon(self._as_task, self._scope)

    def cancel(self) -> None:
        """End it where it waits; one that is ready goes on first, since what it waited for has come."""
        if self._scope:
            self._scope.cancel()
        elif self._abort:
            abort, self._abort = self._abort, None
            abort()
            self._advance(Cancelled())
            go_on()

    def _advance(self, error: BaseException | None = None) -> None:
        global _current
        _current = self
        try:
            wanted = self._step(self._coroutine.throw, error) if error else self._step(self._coroutine.send, None)
        finally:
            _current = None
        if wanted is _ENDED:
            self._finish()
        elif wanted is _TASK:
            self.start_task()
        elif wanted is not _PARKED:
            self._advance(RuntimeError("a source that calls itself eager waits by other means than park"))

    def _step(self, resume: Callable[..., object], *given: object) -> object:
        """Carry the coroutine on to its next wait; gives what it waits for, or _ENDED.  The barrier of all runs."""
        try:
            return resume(*given)
        except (StopIteration, Cancelled):
            return _ENDED
        except Exception:
            log.exception("a request ended by a fault")
            return _ENDED

    async def _as_task(self, scope: trio.CancelScope) -> None:
        try:
            with scope:
                await _Rest(self._coroutine, self._step)
        finally:
            self._finish()

    def _finish(self) -> None:
        ended, self._ended = self._ended, _nothing  # what it names may name this run: nobody shall keep the other alive
        ended()

    def _park(self, abort: Callable[[], None]) -> Wake:
        self._abort = abort
        return self._wake

    def _wake(self) -> None:
        self._abort = None
        _ready.append(self)
        go_on()


class _Rest:
    """What a coroutine that has paused still has to do; unlike the coroutine itself it can be awaited."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], step: Callable[..., object]) -> None:
        self._coroutine = coroutine
        self._step = step

    def send(self, value: object) -> object:
        return self._on(self._coroutine.send, value)

    def throw(self, *raised: Any) -> object:
        return self._on(self._coroutine.throw, *raised)

    def _on(self, resume: Callable[..., object], *given: object) -> object:
        wanted = self._step(resume, *given)
        if wanted is _ENDED:
            raise StopIteration
        return wanted

    def __await__(self) -> Generator[Any, Any, None]:
        return cast("Generator[Any, Any, None]", self)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self.send(None)


def go_on() -> None:
    """Carry on the runs that are ready, unless a run is executing or `held` puts it off."""
    if not _ready or _current is not None or _holds:
        return
    corked = _corked
    cork()  # what they send can go together
    while _ready:
        _ready.popleft()._advance()
    if not corked:
        uncork()


@contextmanager
def held() -> Iterator[None]:
    """Runs that are woken in the block go on at its end: for code that must not be called again half-way."""
    global _holds
    _holds += 1
    try:
        yield
    finally:
        _holds -= 1
        go_on()


def cork() -> None:
    """Requests are begun, or go on, one after the other: put off what `later` is given.  `uncork` before any wait."""
    global _corked
    _corked = True


def corked() -> bool:
    """Whether what `later` is given is put off now."""
    return _corked


def uncork() -> None:
    """Do what was put off."""
    global _corked, _later
    if _corked:
        _corked = False
        actions, _later = _later, []
        for action in actions:
            action()


def later(action: Callable[[], None]) -> None:
    """Do what is cheaper done once for several requests, as sending them: at once, or at the next `uncork`."""
    if _corked:
        _later.append(action)
    else:
        action()


@types.coroutine
def park(place: Callable[[Wake], None], abort: Callable[[], None]) -> Generator[Any, Any, None]:
    """Wait until the function that `place` was given is called, which may be once.

    If the wait is cancelled, `abort` is called first and must see to it that the function is not called any more.
    """
    if _current is not None:
        place(_current._park(abort))
        yield _PARKED
        return
    task = trio.lowlevel.current_task()

    def aborted(_: Callable[[], object]) -> trio.lowlevel.Abort:
        abort()
        return trio.lowlevel.Abort.SUCCEEDED

    place(lambda: trio.lowlevel.reschedule(task))
    yield from trio.lowlevel.wait_task_rescheduled(aborted)  # noqa: ASYNC105


@types.coroutine
def task() -> Generator[Any, Any, None]:
    """Go on in a task of trio, where everything can be waited for."""
    if _current is not None:
        yield _TASK


class Signal:
    """Something that happens once; runs and tasks can wait for it."""

    __slots__ = ("_waiting", "is_set")

    def __init__(self) -> None:
        self.is_set = False
        self._waiting: dict[object, Wake] = {}

    def set(self) -> None:
        """Say that it has happened, and wake who waits."""
        self.is_set = True
        if self._waiting:
            waiting, self._waiting = self._waiting, {}
            with held():
                for wake in waiting.values():
                    wake()

    async def wait(self) -> None:
        if not self.is_set:
            key = object()
            await park(lambda wake: self._waiting.__setitem__(key, wake), lambda: self._waiting.__delitem__(key))
