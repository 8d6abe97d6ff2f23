"""Files as ends of a copy by lanes."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbdfs.copying.direct.lane import Chunk, Move
from nbdfs.copying.direct.local import FileIntake, FileOutlet
from nbdfs.copying.plan import Kind, Piece
from nbdfs.errors import SourceError


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """A file of 1000 bytes."""
    opened = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.write(opened, b"x" * 1000)
    yield opened
    os.close(opened)


def test_a_piece_comes_as_one_chunk_and_then_ends(fd: int) -> None:
    intake = FileIntake(fd, 4096, splices=True)
    assert not intake.busy
    intake.begin([move := Move(Piece(100, 50, Kind.DATA))])
    assert intake.busy
    assert intake.hear() == Chunk(move, 100, 50)
    assert intake.take(100, 50) == b"x" * 50
    assert intake.hear() is move
    assert not intake.busy


def test_a_source_that_became_shorter_is_an_error(fd: int) -> None:
    intake = FileIntake(fd, 4096, splices=True)
    with pytest.raises(SourceError, match="cannot read at byte 900: the file ends at 1000"):
        intake.take(900, 200)
    reading, writing = os.pipe()
    assert intake.fill(writing, 900, 200) == 100
    with pytest.raises(SourceError, match="cannot read at byte 1000"):
        intake.fill(writing, 1000, 100)
    os.close(reading)
    with pytest.raises(SourceError, match="cannot read at byte 0"):
        intake.fill(writing, 0, 100)
    os.close(writing)


def test_a_destination_that_fails_is_an_error(fd: int, tmp_path: Path) -> None:
    readonly = os.open(tmp_path / "file", os.O_RDONLY)
    outlet = FileOutlet(readonly, threading.Lock())
    with pytest.raises(SourceError, match="cannot write at byte 7") as raised:
        outlet.write(Move(Piece(0, 10, Kind.DATA)), 7, memoryview(b"abc"))
    assert raised.value.errno == errno.EBADF
    os.close(readonly)
    FileOutlet(fd, threading.Lock()).write(Move(Piece(0, 10, Kind.DATA)), 7, memoryview(b"abc"))
    assert os.pread(fd, 5, 6) == b"xabcx"
