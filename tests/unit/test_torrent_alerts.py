"""What libtorrent tells counts of the torrents that are in the session alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("libtorrent", reason="the torrent extra is not installed")

from nbdfs.backends.torrent.torrent import Torrent


def torrent(main: str | None, circle: str | None) -> Any:
    """A torrent of which only the parts are real that are told how things are."""
    made: Any = Torrent.__new__(Torrent)
    made._membership = SimpleNamespace(handle=main)
    made._circle = SimpleNamespace(handle=circle, status=None)
    made._seeding = SimpleNamespace(look=lambda *statuses: None)
    made.swarm = SimpleNamespace(status=None, crowd=True)
    return made


def tell(made: Any, *handles: str) -> None:
    made._on_status(SimpleNamespace(status=[SimpleNamespace(handle=handle) for handle in handles]))


def test_each_of_the_two_torrents_has_a_status_of_its_own() -> None:
    made = torrent("main", "circle")
    tell(made, "circle", "main")
    assert (made.swarm.status.handle, made._circle.status.handle) == ("main", "circle")


@pytest.mark.parametrize("main", ["main", None])
def test_a_status_of_a_torrent_that_has_left_is_nobodys(main: str | None) -> None:
    made = torrent(main, None)
    tell(made, "left")
    assert made.swarm.status is None
    assert made._circle.status is None
