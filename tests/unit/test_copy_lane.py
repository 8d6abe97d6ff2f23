"""One lane between ends that are played: what it does meanwhile, and where it looks for zeroes."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterable, Sequence

import pytest

from nbdfs.copying.direct.connection import Request
from nbdfs.copying.direct.lane import Chunk, Lane, Move
from nbdfs.copying.direct.work import Work
from nbdfs.copying.plan import Planner
from nbdfs.errors import SourceError
from nbdfs.nbd.proto import constants as nbd
from nbdfs.source import Caps, Extent, SourceInfo

STEP = 4096
WINDOW = 2 * STEP  # bytes of a map that are told at once


class Played:
    """A source that answers all reads before it tells of its map; `broken` is a byte that cannot be read."""

    splices = True

    def __init__(self, content: bytes, *, window: int = WINDOW, broken: int = -1) -> None:
        self.info = SourceInfo(len(content), Caps.EXTENTS)
        self.taken: list[int] = []  # the chunks that were looked at
        self.coming: deque[Chunk | Move] = deque()
        self._content = content
        self._window = window
        self._broken = broken
        self._asked: deque[Request] = deque()

    def plays(self) -> Work:
        self.work = Work(Planner(self, None, step=STEP), self.info.size)
        return self.work

    async def extents(self, offset: int, length: int) -> list[Extent]:
        return self.work.asking.extents(True, offset, length)  # type: ignore[no-any-return]

    def begin_status(self, offset: int, length: int) -> Request:
        self._asked.append(request := Request(nbd.CMD_BLOCK_STATUS, offset, min(length, self._window)))
        return request

    def map_of(self, request: Request) -> list[Extent]:
        return [Extent(request.offset, request.length, 0)]

    @property
    def busy(self) -> bool:
        return bool(self.coming or self._asked)

    def begin(self, moves: Sequence[Move]) -> None:
        for move in moves:
            self.coming += Chunk(move, move.piece.offset, move.piece.length), move

    def hear(self) -> Chunk | Move | None:
        if not self.coming:
            self._asked.popleft().done = True
            return None
        heard = self.coming.popleft()
        if isinstance(heard, Chunk) and heard.offset <= self._broken < heard.offset + heard.length:
            raise SourceError(errno.EIO, "cannot read")
        return heard

    def take(self, offset: int, length: int) -> memoryview:
        self.taken.append(offset // STEP)
        return memoryview(self._content)[offset : offset + length]

    def fill(self, pipe: int, offset: int, most: int) -> int:
        return os.write(pipe, self._content[offset : offset + most])

    def give_up(self) -> None:
        raise AssertionError


class Kept:
    """A destination in memory."""

    splices = True
    busy = False
    step = STEP

    def __init__(self, size: int) -> None:
        self.content = bytearray(size)
        self._at = 0

    def write(self, move: Move, offset: int, data: memoryview) -> None:
        self.content[offset : offset + len(data)] = data

    def zero(self, move: Move, offset: int, length: int) -> None:
        self.content[offset : offset + length] = bytes(length)

    def announce(self, pipe: int, move: Move, offset: int, length: int) -> int:
        self._at = offset
        return 0

    def drain(self, pipe: int, length: int) -> None:
        self.content[self._at : self._at + length] = os.read(pipe, length)
        self._at += length

    def hear(self, *, wait: bool) -> Iterable[Move]:
        return ()

    def flush(self) -> None:
        raise AssertionError

    def give_up(self) -> None:
        raise AssertionError


def copied(source: Played) -> tuple[Work, bytes]:
    work, destination = source.plays(), Kept(source.info.size)
    Lane(work, source, destination, depth=4, sparse=STEP).run()
    return work, bytes(destination.content)


def test_a_lane_whose_pieces_all_arrive_while_it_asks_goes_on() -> None:
    content = os.urandom(7 * STEP)
    work, there = copied(Played(content))
    assert work.complete
    assert there == content


def test_a_piece_that_fails_while_a_map_is_asked_for_ends_the_copy(caplog: pytest.LogCaptureFixture) -> None:
    work, _ = copied(Played(os.urandom(7 * STEP), broken=STEP))
    assert work.failure == "cannot read"
    assert not caplog.records  # of a map that cannot be read


def test_zeroes_are_looked_for_less_often_where_there_are_none() -> None:
    content = os.urandom(2000 * STEP)
    source = Played(content, window=len(content))
    _, there = copied(source)
    assert there == content
    gaps = [after - before for before, after in zip(source.taken, source.taken[1:], strict=False)]
    assert gaps[:3] == [1, 1, 1]
    assert gaps == sorted(gaps)
    assert 50 < gaps[-1] < 70


def test_zeroes_are_looked_for_again_where_some_were() -> None:
    content = bytearray(os.urandom(1000 * STEP))
    dense = Played(bytes(content), window=len(content))
    copied(dense)
    seen = dense.taken[-2]
    content[seen * STEP : (seen + 1) * STEP] = bytes(STEP)
    source = Played(bytes(content), window=len(content))
    work, there = copied(source)
    assert there == content
    assert work.counters.zeroed == STEP
    assert source.taken[source.taken.index(seen) :][:4] == [seen, seen + 1, seen + 2, seen + 3]
