"""What the lanes of a copy share: pieces, failures, signals, and an end that waits for nobody it need not."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time

from nbdfs.copying.direct.work import Work
from nbdfs.copying.plan import Kind, Planner
from nbdfs.source import Caps, Extent, SourceInfo

STEP = 64 << 10
PIECES = 10


class Disk:
    """A device that is all data."""

    info = SourceInfo(PIECES * STEP, Caps.EXTENTS)

    async def extents(self, offset: int, length: int) -> list[Extent]:
        return [Extent(offset, length, 0)]


class Copy:
    """A copy by lanes that move nothing."""

    def __init__(self) -> None:
        self.work = Work(Planner(Disk(), None, step=STEP), Disk.info.size)
        self.halted = threading.Event()
        self.flushes = 0

    def lane(self) -> None:
        while piece := self.work.next():
            self.work.arrived(piece, copied=piece.length, zeroed=0)

    def stuck(self) -> None:
        """A lane that waits for a server which does not let it in."""
        assert self.halted.wait(60)

    def flush(self) -> bool:
        self.flushes += 1
        return True


def test_lanes_share_the_pieces() -> None:
    copy = Copy()
    copy.work.carry_out([copy.lane] * 3, copy.flush, copy.halted.set, None)
    assert copy.work.complete
    assert copy.work.flushed
    assert list(copy.work.done) == [(0, PIECES * STEP)]
    assert copy.work.counters.copied == PIECES * STEP
    assert copy.flushes == 1
    assert not copy.halted.is_set()


class SlowDisk(Disk):
    """One whose map comes in two parts, the second one when it is `told`."""

    def __init__(self) -> None:
        self.asked, self.told = threading.Event(), threading.Event()

    async def extents(self, offset: int, length: int) -> list[Extent]:
        if offset:
            self.asked.set()
            assert self.told.wait(60)
        return [Extent(offset, length // 2 if not offset else length, 0)]


def test_pieces_that_are_left_do_not_wait_for_the_next_window() -> None:
    disk = SlowDisk()
    work = Work(Planner(disk, None, step=STEP), disk.info.size)
    assert work.next() == (0, STEP, Kind.DATA)
    ahead = threading.Thread(target=work.plan_ahead, args=[None])
    ahead.start()
    assert disk.asked.wait(60)
    work.plan_ahead(None)  # which another lane does
    assert work.next() == (STEP, STEP, Kind.DATA)
    disk.told.set()
    ahead.join(60)
    left = [work.next() for _ in range(PIECES - 1)]
    assert [piece.offset for piece in left if piece] == [at * STEP for at in range(2, PIECES)]
    assert left[-1] is None


def test_a_lane_that_is_not_let_in_holds_up_nothing() -> None:
    copy = Copy()
    copy.work.carry_out([copy.lane, copy.stuck], copy.flush, copy.halted.set, None)
    assert copy.work.flushed
    assert copy.halted.is_set()


def test_a_lane_that_ends_early_leaves_the_rest() -> None:
    copy = Copy()

    def lost() -> None:
        piece = copy.work.next()
        assert piece
        copy.work.arrived(piece, copied=piece.length, zeroed=0)
        copy.work.next()

    copy.work.carry_out([lost], copy.flush, copy.halted.set, None)
    assert not copy.work.complete
    assert not copy.work.failure
    assert not copy.flushes
    assert list(copy.work.done) == [(0, STEP)]


def test_a_failure_ends_all_lanes() -> None:
    copy = Copy()

    def failing() -> None:
        copy.work.fail("cannot write")
        copy.work.fail("because of that")

    copy.work.carry_out([failing, copy.stuck], copy.flush, copy.halted.set, None)
    assert copy.work.failure == "cannot write"
    assert copy.halted.is_set()
    assert not copy.flushes


def test_a_signal_ends_all_lanes() -> None:
    copy = Copy()
    before = signal.getsignal(signal.SIGTERM)
    copy.work.carry_out([lambda: os.kill(os.getpid(), signal.SIGTERM), copy.stuck], copy.flush, copy.halted.set, None)
    assert copy.work.interrupted == "the copy was stopped by SIGTERM"
    assert copy.halted.is_set()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_is_heard_while_flushing() -> None:
    copy = Copy()

    def flush() -> bool:
        os.kill(os.getpid(), signal.SIGINT)
        return not copy.halted.wait(60)

    copy.work.carry_out([copy.lane], flush, copy.halted.set, None)
    assert copy.work.interrupted == "the copy was stopped by SIGINT"
    assert not copy.work.flushed


def test_a_failed_flush_is_a_failure() -> None:
    copy = Copy()

    def flush() -> bool:
        raise OSError(errno.EIO, "no")

    copy.work.carry_out([copy.lane], flush, copy.halted.set, None)
    assert copy.work.failure == "cannot flush the destination: no"


def stay() -> None:
    """A copy with a lane that waits for a disk, which nothing can wake."""
    copy = Copy()

    def fails() -> None:
        copy.work.fail("no more")

    copy.work.carry_out([fails, lambda: time.sleep(60)], copy.flush, copy.halted.set, None)


def test_a_lane_that_cannot_be_woken_keeps_no_process_from_ending() -> None:
    words = [sys.executable, "-c", f"from {__name__} import stay; stay()"]
    assert subprocess.run(words, timeout=30).returncode == 0
