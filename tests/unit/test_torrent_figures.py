"""Which pieces are here, and how many bytes of a file, which shares pieces with its neighbours."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("libtorrent", reason="the torrent extra is not installed")

from nbdfs.backends.torrent.pieces import Pieces

PIECE = 100


def pieces(here: list[int]) -> Pieces:
    """Pieces of a torrent, of which only the facts that are counted are real."""
    made = Pieces.__new__(Pieces)
    made._metainfo = SimpleNamespace(piece_length=PIECE)  # type: ignore[assignment]
    made.here = bytearray(here)
    return made


@pytest.mark.parametrize(
    ("offset", "length", "here", "bytes_"),
    [
        (0, 400, [1, 1, 1, 1], 400),
        (0, 400, [0, 0, 0, 0], 0),
        (0, 400, [1, 0, 0, 1], 200),
        (50, 100, [1, 0, 0, 0], 50),  # the second half of the first piece
        (50, 100, [0, 1, 0, 0], 50),
        (50, 100, [1, 1, 1, 1], 100),
        (120, 30, [0, 1, 0, 0], 30),  # inside one piece
        (120, 30, [1, 0, 1, 1], 0),
        (300, 50, [0, 0, 0, 1], 50),  # the last piece of a torrent is short
        (100, 0, [1, 1, 1, 1], 0),
    ],
)
def test_bytes_here(offset: int, length: int, here: list[int], bytes_: int) -> None:
    file = SimpleNamespace(offset=offset, length=length)
    assert pieces(here).here_of(file) == bytes_  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("here", "wanted", "runs"),
    [
        ([1, 1, 0, 1], range(4), [(range(2), True), (range(2, 3), False), (range(3, 4), True)]),
        ([1, 1, 0, 1], range(1, 3), [(range(1, 2), True), (range(2, 3), False)]),
        ([0, 0, 0, 0], range(1, 4), [(range(1, 4), False)]),
        ([1, 1, 1, 1], range(2, 2), []),
    ],
)
def test_runs_of_pieces(here: list[int], wanted: range, runs: list[tuple[range, bool]]) -> None:
    assert list(pieces(here).runs(wanted)) == runs
