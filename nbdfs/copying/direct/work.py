"""What the lanes of one copy share: the plan, what was done, and how it ended.

Each lane is a thread.  It takes pieces from `next`, in order, and reports each one once it is at the destination.  When
few are left, one lane plans the next window, while the others go on with those.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from nbdfs.copying.direct.blocking import at_once
from nbdfs.copying.options import Counters
from nbdfs.copying.plan import Kind, Piece, Planner
from nbdfs.errors import reason
from nbdfs.progress import Display, Patient, Progress
from nbdfs.ranges import RangeSet
from nbdfs.undo import unless_done

T = TypeVar("T")

_INTERVAL = 0.2  # seconds between two looks at the lanes
_FEW = 32  # pieces; so many keep the other lanes busy while one plans
_STOP_TIMEOUT = 1.0  # seconds that a lane may take to hear that it must stop
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Step(Generic[T]):
    """Something that is done in a thread of its own, which keeps no process from ending; `ended` is set then."""

    def __init__(self, function: Callable[[], T], ended: threading.Event) -> None:
        self.done = False
        self._function = function
        self._ended = ended
        self._result: list[T] = []
        self._error: BaseException | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def result(self) -> T:
        """What it gave, or raise what it raised, once it is done."""
        if self._error is not None:
            raise self._error
        return self._result[0]

    def _run(self) -> None:
        try:
            self._result.append(self._function())
        except BaseException as error:  # noqa: BLE001 - raised again by `result`
            self._error = error
        self.done = True
        self._ended.set()


class Work:
    """One copy.  `failure` says what stopped it, `interrupted` which signal did."""

    def __init__(self, planner: Planner, size: int) -> None:
        self.progress = Progress(size)
        self.done = RangeSet()
        self.counters = Counters()
        self.failure = ""
        self.interrupted = ""
        self.flushed = False
        self.asking: Any = None  # the lane for which the next window is planned
        self._planner = planner
        self._ready: deque[Piece] = deque()
        self._planned = False  # all there is; no piece becomes ready after that
        self._planning = threading.Lock()  # held while a window is planned: the pieces stay in order
        self._reporting = threading.Lock()
        self._stopped = threading.Event()
        self._left = threading.Event()  # a lane is full and pieces are left, or it has come to its end
        self._ended = threading.Event()  # set when a step is done, cleared by who waits, before looking

    def next(self, lane: Any = None, *, wait: bool = True) -> Piece | None:
        """The next piece that needs a lane; None if there is no more, or without `wait` if none is planned yet.

        `lane` is who asks, should the plan ask back.
        """
        while not self._stopped.is_set():
            planned = self._planned  # looked at before the pieces are
            try:
                piece = self._ready.popleft()
            except IndexError:
                if planned or not wait:
                    return None
                with self._planning:
                    if not self._ready:
                        self._plan(lane)
                continue
            if piece.kind is not Kind.SKIP:
                return piece
            self.arrived(piece, copied=0, zeroed=0)
        return None

    def lane_is_full(self) -> None:
        """A lane has as much to do as it can have."""
        if self._ready:
            self._left.set()

    def lane_has_ended(self) -> None:
        self._left.set()

    def wants_more_lanes(self) -> bool:
        """Wait until a lane is full or has ended; whether there is something to do for others."""
        self._left.wait()
        return bool(self._ready) and not self.stopped

    def plan_ahead(self, lane: Any) -> None:
        """Plan the next window if few pieces are left, unless another lane does."""
        if len(self._ready) < _FEW and not self._planned and self._planning.acquire(blocking=False):
            try:
                self._plan(lane)
            finally:
                self._planning.release()

    def _plan(self, lane: Any) -> None:
        self.asking = lane
        window = at_once(self._planner.window())
        self._ready.extend(window)
        self._planned = not window

    def arrived(self, piece: Piece, *, copied: int, zeroed: int) -> None:
        """A piece is at the destination: so many of its bytes copied or zeroed, the others right before."""
        with self._reporting:
            self.done.add(piece.offset, piece.offset + piece.length)
            self.progress.advance(piece.length)
            self.counters.copied += copied
            self.counters.zeroed += zeroed
            self.counters.skipped += piece.length - copied - zeroed

    def fail(self, failure: str) -> None:
        """One piece cannot be copied: the copy ends, for the first such failure."""
        with self._reporting:
            self.failure = self.failure or failure
        self._stopped.set()

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    @property
    def complete(self) -> bool:
        return self.progress.done == self.progress.total

    def carry_out(
        self,
        lanes: Sequence[Callable[[], None]],
        flush: Callable[[], bool],
        halt: Callable[[], None],
        display: Display | None,
    ) -> None:
        """Run the lanes to their end, and flush if all has arrived.

        On a signal or a failure `halt` wakes who waits.
        """
        display = Patient(display) if display else None
        with self._heeding_signals(), unless_done(halt):
            running = [_Step(lane, self._ended) for lane in lanes]
            self._wait(running, display, enough=lambda: self.complete)  # a further lane may still wait to be let in
            if self.complete and not self.stopped:
                self._wait(running[:1], display)
                try:
                    (self.flushed,) = self._wait([_Step(flush, self._ended)], display) or [False]
                except OSError as error:
                    self.fail(f"cannot flush the destination: {reason(error)}")
            if self.stopped or not all(lane.done for lane in running):
                halt()
                self._wait_for_all(running, time.monotonic() + _STOP_TIMEOUT)
        if display:
            display.finish(self.progress, self.flushed)

    def _wait(
        self, steps: Sequence[_Step[T]], display: Display | None, enough: Callable[[], bool] = lambda: False
    ) -> list[T]:
        """What the steps give that have come to their end before it is enough, or the copy is stopped."""
        while not self._all_done(steps) and not self.stopped and not enough():
            if display:
                display.show(self.progress)
            self._ended.wait(_INTERVAL)
        return [step.result() for step in steps if step.done]

    def _wait_for_all(self, steps: Sequence[_Step[Any]], deadline: float) -> None:
        while not self._all_done(steps) and (left := deadline - time.monotonic()) > 0:
            self._ended.wait(left)

    def _all_done(self, steps: Sequence[_Step[Any]]) -> bool:
        self._ended.clear()
        return all(step.done for step in steps)

    @contextmanager
    def _heeding_signals(self) -> Iterator[None]:
        def heed(number: int, _: object) -> None:
            if not self.flushed:
                self.interrupted = f"the copy was stopped by {signal.Signals(number).name}"
                self._stopped.set()

        before = [(number, signal.signal(number, heed)) for number in _SIGNALS]
        try:
            yield
        finally:
            for number, handler in before:
                signal.signal(number, handler)
