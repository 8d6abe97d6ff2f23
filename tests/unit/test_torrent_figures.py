"""How many bytes of a file of a torrent are here, whose pieces it shares with its neighbours."""

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
